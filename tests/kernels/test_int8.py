"""int8：误差的界、往返、大小、矩阵乘。"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import checkpoint
from kernels import int8
from tests import tiny_model


def test_error_is_at_most_half_a_step():
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    weight[3] = 0
    weight[5] *= 1e-6
    codes, scale = int8.quantize(weight)
    assert codes.dtype == torch.int8 and scale.shape == (40,)
    error = (int8.restore(codes, scale) - weight).abs()
    assert (error <= 0.51 * scale.float()[:, None]).all()
    assert (codes[3] == 0).all() and codes.abs().max() <= 127


def test_weights_survive_the_round_trip():
    weights = checkpoint.weights_of(tiny_model.model(300))
    small = int8.quantize_weights(weights)
    assert set(int8.restore_weights(small)) == set(weights)
    assert "embed.codes" in small and "embed.weight" not in small
    assert small["norm.weight"] is weights["norm.weight"]


def test_unquantized_matrix_is_refused():
    """没有 int8 矩阵乘、在显卡上时走的就是这里：原样放过，标着 int8 的坏文件就认不出。"""
    weights = checkpoint.weights_of(tiny_model.model(300))
    with pytest.raises(ValueError, match="没有量化"):
        int8.restore_weights(weights)


def test_size():
    """README 大小的模型：连同分词器不超过 fp32 的 27%。"""
    weights = {"embed.weight": torch.zeros(2000, 256), "a.qkv.weight": torch.zeros(768, 256)}
    small = int8.quantize_weights(weights)
    size = sum(value.numel() * value.element_size() for value in small.values())
    assert size < 0.26 * sum(value.numel() * 4 for value in weights.values())


@pytest.mark.parametrize("rows", [1, 4, 40])
def test_product_equals_the_restored_matrix(rows):
    if int8.fast_problem():
        pytest.skip(int8.fast_problem())
    torch.manual_seed(0)
    codes, scale = int8.quantize(torch.randn(64, 32))
    x = torch.randn(rows, 32)
    plain = F.linear(x, int8.restore(codes, scale))
    assert torch.allclose(int8.product(x, codes, scale), plain, atol=0.1, rtol=0.02)


def test_install_replaces_every_linear_layer():
    model = tiny_model.model(300)
    int8.install(model)
    assert not any(isinstance(each, torch.nn.Linear) for each in model.modules())
    assert isinstance(model.blocks[1].mlp.down, int8.Int8Linear)
