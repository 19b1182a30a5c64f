"""解码用的矩阵乘：各种存法都等于 x @ (W·scale)ᵀ。"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kernels.int8 import Int8Linear, quantize
from kernels.products import half_problem, product_of


def linear_of(rows: int, columns: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(columns, rows, bias=False)


@pytest.mark.parametrize("shape", [(96, 32), (32, 96), (32, 32)])
@pytest.mark.parametrize("half", [False, True])
def test_products_equal_the_plain_form(shape, half):
    if half and half_problem(torch.device("cpu")):
        pytest.skip(half_problem(torch.device("cpu")))
    linear, scale = linear_of(*shape), torch.rand(shape[1]) + 0.5
    x, y = torch.randn(3, shape[0]), torch.randn(3, shape[1])
    product = product_of(linear, torch.float32, half, scale)
    plain = (y * scale) @ linear.weight.detach().t()
    with torch.no_grad():
        assert torch.allclose(product(y), plain, atol=1e-2 if half else 1e-5)
        assert torch.allclose(product.add(x, y), x + plain, atol=1e-2 if half else 1e-5)


def test_int8_layer_is_called_with_the_scaled_input():
    linear, scale = Int8Linear(64, 32), torch.rand(32) + 0.5
    linear.codes, linear.scale = quantize(linear_of(64, 32).weight.detach())
    x, y = torch.randn(40, 64), torch.randn(40, 32)
    product = product_of(linear, torch.float32, False, scale)
    assert torch.equal(product(y), linear(y * scale))
    assert torch.equal(product.add(x, y), x + linear(y * scale))


def test_half_weights_are_for_the_cpu():
    assert "CPU" in half_problem(torch.device("cuda"))
