"""读得顺不顺：与模型无关的裁判，一个字的 n 元模型（插值 Kneser–Ney，Kneser & Ney 1995）。

它只看过训练诗，所以比特每字太低是套话，太高是胡话；目标是人写的诗的那个数。
一个字 12 位，5 个字正好装进一个 uint64：每一级的表就是排好序的数组，查一次是几次二分。
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ORDER = 5
BITS = 12  # 一个字占几位；ORDER × BITS 不能超过 64
EDGE, RARE = 0, 1  # 诗的开头与结尾；表里没有的字


class Level(NamedTuple):
    """一级：各片段（升序）、它们次数的前缀和（从 0 开始）、折扣。"""

    grams: np.ndarray  # uint64 (G,)
    sums: np.ndarray  # int32 (G + 1,)
    discount: float


class Judge:
    """训练好的裁判。"""

    def __init__(self, units: np.ndarray) -> None:
        """units：训练诗的码元 uint16，诗与诗之间、末尾都隔着 0（见 originality.encode）。"""
        counts = np.bincount(units, minlength=1 << 16)
        counts[0] = 0
        kept = np.argsort(-counts, kind="stable")[: (1 << BITS) - 2]
        kept = kept[counts[kept] > 0]
        self.ids = np.full(1 << 16, RARE, dtype=np.uint64)
        self.ids[kept] = np.arange(2, 2 + len(kept), dtype=np.uint64)
        self.ids[0] = EDGE
        self.size = len(kept) + 2
        self.rare = int(np.count_nonzero(counts)) - len(kept) + 1  # 多一个给没见过的字
        self.levels = _levels(_windows(self.ids[units]))

    def char_bits(self, units: np.ndarray) -> np.ndarray:
        """一首诗每个字的比特，最后多一个是结尾的：(n,) -> (n + 1,)。"""
        ids = self.ids[np.concatenate((units, np.zeros(1, dtype=units.dtype)))]
        windows = _windows(ids)
        chance = np.full(len(ids), 1 / self.size)
        for order, level in enumerate(self.levels, 1):
            chance = _mix(level, windows & _mask(order), chance)
        return -np.log2(np.where(ids == RARE, chance / self.rare, chance))


def _windows(ids: np.ndarray) -> np.ndarray:
    """每个位置连同它前面 ORDER − 1 个字，拼成一个数；上一首诗的字换成 EDGE。"""
    places = np.arange(len(ids), dtype=np.int32)
    since = np.where(ids == EDGE, places, np.int32(-1))
    np.maximum.accumulate(since, out=since)
    since = places - np.append(np.int32(-1), since[:-1])  # 前面 since − 1 个字是同一首诗的
    windows = np.zeros(len(ids), dtype=np.uint64)
    for back in range(ORDER - 1, -1, -1):
        windows <<= np.uint64(BITS)
        shifted = ids[: max(0, len(ids) - back)]
        windows[back:] |= np.where(since[back:] > back, shifted, np.uint64(EDGE))
    return windows


def _mask(order: int) -> np.uint64:
    """只留下最后 order 个字。"""
    return np.uint64((1 << (BITS * order)) - 1)


def _levels(windows: np.ndarray) -> list:
    """一字到 ORDER 字的表：最长的一级数次数，短的数它前面有过几种字。"""
    windows.sort()
    levels = [_level(windows)]
    for order in range(ORDER - 1, 0, -1):
        shorter = levels[0].grams & _mask(order)
        shorter.sort()
        levels.insert(0, _level(shorter))
    return levels


def _level(ordered: np.ndarray) -> Level:
    """升序、可以重复的片段 → 一级。"""
    first = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    sums = np.append(np.flatnonzero(first), len(ordered)).astype(np.int32)
    counts = np.diff(sums)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    return Level(ordered[first], sums, discount)


def _mix(level: Level, grams: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    """这一级的概率：见过的打了折扣，省下的按短一级的概率 shorter 分；各 (n,)。"""
    same = grams | _mask(1)  # 同样的前文：从 same − _mask(1) 到 same
    first = np.searchsorted(level.grams, same - _mask(1))
    last = np.searchsorted(level.grams, same, side="right")
    hits = level.sums[np.searchsorted(level.grams, grams, side="right")]
    hits = hits - level.sums[np.searchsorted(level.grams, grams)]  # 没有这个片段时为 0
    total = level.sums[last] - level.sums[first]
    own = np.maximum(hits - level.discount, 0) + level.discount * (last - first) * shorter
    return np.where(total > 0, own / np.maximum(total, 1), shorter)
