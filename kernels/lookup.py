"""查表：取出一个矩阵的几行，梯度直接加进它的 .grad，不必先造一张整表大小的梯度。"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def lookup(weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """weight (V, C)、ids (...) -> (..., C)。要用 backward()，不能用 torch.autograd.grad。"""
    return _Rows.apply(weight, ids)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        (ids,) = ctx.saved_tensors
        flat = grad.flatten(0, -2).to(ctx.weight.dtype)  # (..., C) -> (N, C)
        gradient_of(ctx.weight).index_add_(0, ids.flatten(), flat)
        return None, None


def gradient_of(weight: torch.Tensor) -> torch.Tensor:
    """weight.grad；没有就从零开始。"""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad
