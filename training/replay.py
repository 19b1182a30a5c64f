"""旧诗：训练新诗时每一遍混进来的一部分，免得模型忘了从前学过的。

旧诗按长短分成与名额一样多的组，每一遍从每组取一篇，轮着来：每一遍的微批次数不变，
旧诗早晚都轮得到，取哪几篇只由（种子、第几遍）决定。
"""

from __future__ import annotations

import numpy as np


class Replay:
    """lengths：(n,) 各篇旧诗的长度；count：每一遍的名额，1 到 n。"""

    def __init__(self, lengths: np.ndarray, count: int, seed: int) -> None:
        rng = np.random.default_rng((seed, len(lengths), count))
        by_length = np.argsort(lengths, kind="stable")
        self._sizes = np.full(count, len(lengths) // count)
        self._sizes[: len(lengths) % count] += 1
        self._starts = np.cumsum(self._sizes) - self._sizes
        group = np.repeat(np.arange(count), self._sizes)
        self.longest = np.maximum.reduceat(lengths[by_length], self._starts)  # (count,)
        self._turns = by_length[np.lexsort((rng.random(len(lengths)), group))]  # 组内的次序打乱

    def documents(self, epoch: int) -> np.ndarray:
        """第 epoch 遍各名额上的旧诗，(count,)；每一篇都不长过 longest。"""
        return self._turns[self._starts + epoch % self._sizes]


def places(fresh: int, share: float, old: int) -> int:
    """fresh 篇新诗配多少篇旧诗，旧诗才占 share；至多 old 篇，要混就至少一篇。"""
    return min(old, max(1, round(fresh * share / (1 - share)))) if share > 0 else 0
