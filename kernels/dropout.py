"""dropout：随机数自己取，只由随机种子决定，与设备内部的实现、要不要重算无关。"""

from __future__ import annotations

import math

import torch

FUSED = "融合"  # 代替随机数传给 drop：由设备的融合核现取，只留一个字节的遮罩
_LEVELS = 1 << 16  # int16 有这么多种


def random_noise(shape: tuple, device: torch.device) -> torch.Tensor:
    """均匀的 int16 随机数。"""
    if device.type != "cpu":
        low, high = -_LEVELS // 2, _LEVELS // 2
        return torch.randint(low, high, shape, dtype=torch.int16, device=device)
    count = math.prod(shape)
    words = torch.empty(-(-count // 4), dtype=torch.int64)  # 一次取 64 位，比逐个取快几倍
    return words.random_(-(2**63), None).view(torch.int16)[:count].view(shape)


def drop(x: torch.Tensor, noise: torch.Tensor | str, rate: float) -> torch.Tensor:
    """noise 落在最小的 rate 那一份的位置清零，其余放大，均值不变；x 与 noise 同形状。"""
    if isinstance(noise, str):
        return torch.native_dropout(x, rate, True)[0]
    lost = round(rate * _LEVELS)
    return torch.where(noise >= lost - _LEVELS // 2, x * (_LEVELS / (_LEVELS - lost)), 0.0)
