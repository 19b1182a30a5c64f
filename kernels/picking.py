"""抽样里走遍词表的两步，用编译好的 picking.cpp：意思同 writing/sample.py 的同名函数。"""

from __future__ import annotations

import ctypes

import torch


class Picking:
    """CPU 上、不用排序时的 mark_chances 与 steady_pick。"""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._mark_chances, self._steady_pick = library.mark_chances, library.steady_pick
        self._mark_chances.restype = self._steady_pick.restype = None

    def mark_chances(self, logits: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        """logits (B, V)、marks (M,) -> (B, M)"""
        chances = torch.empty(len(logits), len(marks))
        self._mark_chances(*_sized(logits), _at(marks), ctypes.c_int64(len(marks)), _at(chances))
        return chances

    def steady_pick(
        self,
        logits: torch.Tensor,
        chances: torch.Tensor,
        marks: torch.Tensor,
        uniform: torch.Tensor,
        temperature: torch.Tensor,
        min_p: torch.Tensor,
    ) -> torch.Tensor:
        """logits (B, V)、chances (B, M)（都会被改写），uniform、temperature、min_p (B,) -> (B,)"""
        tokens = torch.empty(len(logits), dtype=torch.long)
        numbers = map(_at, (uniform, temperature, min_p, tokens))
        count = ctypes.c_int64(len(marks))
        self._steady_pick(*_sized(logits), _at(chances), _at(marks), count, *numbers)
        return tokens


def _at(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _sized(matrix: torch.Tensor) -> tuple:
    """矩阵的地址、行数、列数。"""
    rows, columns = matrix.shape
    return _at(matrix), ctypes.c_int64(rows), ctypes.c_int64(columns)
