"""词嵌入（与输出层共享权重）与旋转位置编码。"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class TokenEmbedding(nn.Module):
    """词嵌入；同一个矩阵也是输出层（权重共享，Press & Wolf 2017）。"""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) -> (..., D)"""
        return _Rows.apply(self.weight, ids)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.weight)  # (..., D) -> (..., V)


class _Rows(torch.autograd.Function):
    """取出 weight 的几行；梯度直接加进 weight.grad，不必先造一张整表大小的梯度。"""

    @staticmethod
    def forward(ctx, weight, ids):
        ctx.weight = weight
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx, grad):
        (ids,) = ctx.saved_tensors
        flat = grad.flatten(0, -2).to(ctx.weight.dtype)  # (..., D) -> (N, D)
        gradient_of(ctx.weight).index_add_(0, ids.flatten(), flat)
        return None, None


def gradient_of(weight: nn.Parameter) -> torch.Tensor:
    """weight.grad；没有就从零开始。"""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def rope_tables(head_dim: int, length: int, theta: float) -> tuple:
    """旋转位置编码的余弦、正弦表，各 (length, head_dim)，fp32。

    前后两半配对的排法（GPT-NeoX、Qwen3 同）；出处：RoFormer，Su et al. 2021。
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)  # (T, hd/2) -> (T, hd)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """按位置旋转 x：(..., T, hd)；cos、sin：(T, hd)。"""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
