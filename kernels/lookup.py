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


def sum_rows(table: torch.Tensor, ids: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """table (V, C) 的几行相加，不求导：结果的第 k 行是 ids (P,) 从 starts[k] 起、到下一个为止的各行
    之和；-> (B, C)，B 是 starts 的长度。每行由一个线程依次加，所以各进程逐位相同。
    """
    device = table.device
    if device.type == "mps":  # 旧的 torch 在这里没有这个算子
        table, ids, starts = table.cpu(), ids.cpu(), starts.cpu()
    return F.embedding_bag(ids, table.detach(), starts, mode="sum").to(device)
