"""矩阵乘写出的注意力：对照 PyTorch 的 SDPA。"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.attention import attention_by_products, padded_length


@pytest.mark.parametrize("length", [1, 15, 16, 33, 200, 300])
def test_attention_by_products_equals_sdpa(length):
    """前向与 q、k、v 的梯度都与 PyTorch 的注意力一致；300 会在反向里重算权重。"""
    torch.manual_seed(0)
    q, k, v, grad = torch.randn(4, 2, 3, length, 8).unbind(0)
    size = padded_length(length)
    assert size > length and size % 16 == 0

    def run(attend):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        y = attend(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, grad)]

    def ours(*heads):
        q, k, v = (F.pad(x, (0, 0, 0, size - length)) for x in heads)
        return attention_by_products(q * q.size(-1) ** -0.5, k, v)[:, :, :length]

    plain = run(lambda *heads: F.scaled_dot_product_attention(*heads, is_causal=True))
    for a, b in zip(run(ours), plain):
        assert torch.allclose(a, b, atol=1e-4)
