"""查表：对照 torch 的 embedding，梯度累加。"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.lookup import lookup


def test_gradients_accumulate_like_torch():
    torch.manual_seed(0)
    ours, plain = (torch.nn.Parameter(torch.zeros(11, 4)) for _ in range(2))
    for _ in range(2):
        ids, grad = torch.randint(0, 11, (3, 7)), torch.randn(3, 7, 4)
        lookup(ours, ids).backward(grad)
        F.embedding(ids, plain).backward(grad)
    assert torch.allclose(ours.grad, plain.grad, atol=1e-6)
