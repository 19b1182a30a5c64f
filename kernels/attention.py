"""用批量矩阵乘写出的因果注意力 softmax(q @ kᵀ) @ v。

CPU 上半精度的 SDPA 反向比 fp32 还慢，而半精度的批量矩阵乘快得多。一次算 _WIDTH 行：它们看不到
更后面的键，不必算，省近一半。字母：G 是行数 × 头数，S 是补齐的长度，t 是一次算的行数，T 是这些行
看得到的键数，D 是头宽。
"""

from __future__ import annotations

import math
from typing import Any

import torch

_WIDTH = 128  # 一次算几行注意力
_KEPT = 256  # 长度不超过它时，注意力的权重留给反向用；更长的占内存，反向里重算


def padded_length(length: int) -> int:
    """q、k、v 要补到的长度 S > length，16 的倍数：整块的快，形状也少。"""
    return length // 16 * 16 + 16


def attention_by_products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q（已除以 √D）、k、v：(B, H, S, D) -> (B, H, S, D)"""
    flat = (each.flatten(0, 1) for each in (q, k, v))  # (B, H, S, D) -> (G, S, D)
    return _Products.apply(*flat).view_as(q)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out, saved = torch.empty_like(q), []
        for start, end in _spans(q.size(1)):
            weights = _weights(q, k, start, end)
            out[:, start:end] = weights @ v[:, :end]  # (G, t, T) @ (G, T, D) -> (G, t, D)
            saved.append(weights)
        short = q.size(1) <= _KEPT
        ctx.save_for_backward(q, k, v, *(saved if short else ()))
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        q, k, v, *saved = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for start, end in _spans(q.size(1)):
            weights = saved.pop(0) if saved else _weights(q, k, start, end)
            part = grad[:, start:end]
            grad_v[:, :end] += weights.transpose(1, 2) @ part
            scores = part @ v[:, :end].transpose(1, 2)  # (G, t, D) -> (G, t, T)
            torch._softmax_backward_data(scores, weights, -1, scores.dtype, grad_input=scores)
            grad_q[:, start:end] = scores @ k[:, :end]
            grad_k[:, :end] += scores.transpose(1, 2) @ q[:, start:end]
        return grad_q, grad_k, grad_v


def _weights(q: torch.Tensor, k: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """第 start 到 end 行的注意力权重 (G, t, T)。"""
    scores = q[:, start:end] @ k[:, :end].transpose(1, 2)  # (G, t, D) -> (G, t, T)
    scores[:, :, start:] += _future(end - start, scores)
    return torch.softmax(scores, -1, out=scores)


def _future(size: int, like: torch.Tensor) -> torch.Tensor:
    """(size, size)：看不到的位置是 -inf，其余是 0。"""
    return torch.full((size, size), -math.inf, dtype=like.dtype, device=like.device).triu_(1)


def _spans(size: int) -> list:
    """[(起, 止)]：这些行只看得到前“止”个键。"""
    return [(start, min(size, start + _WIDTH)) for start in range(0, size, _WIDTH)]
