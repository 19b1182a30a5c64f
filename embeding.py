"""词嵌入（与输出层共享权重）与旋转位置编码。字母见 gpt.py。"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from kernels.lookup import lookup


class TokenEmbedding(nn.Module):
    """词嵌入；同一个矩阵也是输出层（权重共享，Press & Wolf 2017）。"""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return lookup(self.weight, ids)  # (...) -> (..., C)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.weight)  # (..., C) -> (..., V)


def rope_tables(head_dim: int, length: int, theta: float) -> tuple:
    """旋转位置编码的余弦、正弦表，各 (length, D)，fp32。

    前后两半配对的排法（GPT-NeoX、Qwen3 同）；出处：RoFormer，Su et al. 2021。
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)  # (T, D/2) -> (T, D)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """按位置旋转 x：(..., T, D)；cos、sin：(T, D)。"""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
