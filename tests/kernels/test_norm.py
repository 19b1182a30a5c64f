"""归一化的融合写法：数与梯度同平常的写法；留下的只有输入与每行一个数。"""

from __future__ import annotations

import torch

from gpt import RMSNorm
from kernels.norm import rms_norm


def test_equals_the_plain_form():
    torch.manual_seed(0)
    plain = RMSNorm(24, 1e-6)
    torch.nn.init.uniform_(plain.weight, 0.5, 1.5)
    x = torch.randn(3, 5, 24)
    upstream = torch.randn(3, 5, 24)
    found = []
    for fused in (False, True):
        plain.fused, plain.weight.grad = fused, None
        leaf = x.clone().requires_grad_()
        out = plain(leaf)
        (out * upstream).sum().backward()
        found.append((out.detach(), leaf.grad, plain.weight.grad.clone()))
    for one, other in zip(*found):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_keeps_the_input_and_one_number_per_row():
    saved = []
    x, weight = torch.randn(8, 24, requires_grad=True), torch.ones(24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        rms_norm(x, weight, 1e-6)
    assert sorted(t.numel() for t in saved) == [8, 24, 8 * 24]


def test_gradcheck():
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-6), (x, weight))
