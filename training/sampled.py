"""抽样的 softmax：训练时输出层只算常用的词、这份里要猜的词，和随机抽的一些（Jean et al. 2015）。

词表的一大半是少用的词，每个位置却都要算一遍。抽到的一个代表没有抽到的几个，分母的期望与算全部时
相同；同样的 token 学到的一样，快得多（docs/LOG.md 的“抽样的 softmax”）。验证总是算全部的词。
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from training.corpus import Corpus
from training.settings import Settings

_PIECE = 1 << 20  # 数词频时一次读这么多 token
_ENOUGH = 1 << 24  # 数这么多 token 就知道哪些常用


class Drawn(NamedTuple):
    """一份微批次要算的词。"""

    labels: np.ndarray  # (n,) 各位置的下一个 token 是 rows 里的第几个
    rows: np.ndarray  # (M,) 词的编号
    bias: np.ndarray  # (M,) float32，加在对数几率上：−log(被抽中的概率)


def frequencies(ids: np.ndarray, size: int) -> np.ndarray:
    """ids (N,) 里各词出现几次，int64 (size,)；很多时只数前面的。"""
    pieces = range(0, min(len(ids), _ENOUGH), _PIECE)
    return sum(
        (np.bincount(ids[start : start + _PIECE], minlength=size) for start in pieces),
        np.zeros(size, dtype=np.int64),
    )


class Sampler:
    """从一份词表里抽；抽谁只由种子决定。"""

    WORTH = 0.7  # 要算的词不到词表的这么多才抽样，否则不如都算
    COMMON = 1.5  # 总是算的常用词是随机抽的几倍

    def __init__(self, counts: np.ndarray, draws: int) -> None:
        """counts：(V,) 各词在训练诗里出现几次；draws：至少随机抽几个，> 0。"""
        common = np.argsort(-counts, kind="stable")[: int(self.COMMON * draws)]
        self.draws = draws
        self.words = len(counts)  # 上一次算了几个词
        self._step = max(1, draws // 4)  # 词数凑成它的倍数：形状只有几种
        self._always = np.zeros(len(counts), dtype=bool)
        self._always[common] = True

    def told(self) -> str:
        """开场说的一行。"""
        common = np.count_nonzero(self._always)
        return (
            f"抽样的 softmax（SAMPLED_SOFTMAX={self.draws}）：输出层只算常用的 {common} 个词、"
            f"要猜的和抽到的 {self.draws} 个，损失是估计；验证算全部 {len(self._always)} 个"
        )

    def draw(self, labels: np.ndarray, seed: int) -> Drawn | None:
        """labels (n,)：各位置的下一个 token → 这一份算哪些词；几乎是全部时为 None。"""
        certain = self._always.copy()
        certain[labels] = True
        known, rest = np.flatnonzero(certain), np.flatnonzero(~certain)
        total = -(-(len(known) + self.draws) // self._step) * self._step
        if total > self.WORTH * len(certain):
            self.words = len(certain)
            return None
        self.words, count = total, total - len(known)
        rows = np.concatenate([known, np.random.default_rng(seed).permutation(rest)[:count]])
        bias = np.zeros(total, dtype=np.float32)
        bias[len(known) :] = math.log(len(rest) / count)
        place = np.zeros(len(certain), dtype=np.int64)
        place[rows] = np.arange(total)
        return Drawn(place[labels], rows, bias)


def find(settings: Settings, corpus: Corpus) -> Sampler | None:
    """SAMPLED_SOFTMAX 要的；没有要、词表太小时为 None。"""
    draws, size = int(settings.sampled_softmax), corpus.tokenizer.vocab_size
    if draws < 1 or (1 + Sampler.COMMON) * draws > Sampler.WORTH * size:
        return None
    return Sampler(frequencies(corpus.data.stream("train")[0], size), draws)
