"""近似的诗：由签名找诗对，连成组。签名在临时文件里（support/columns.py），见 dedup.signature。"""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Iterator, NamedTuple

import numpy as np

from poems.dedup import HASHES, NOTHING
from support.columns import Column, sharing

_BAND = 2  # 一个桶要求连续几个 MinHash 相同；2 个 × 32 桶：Jaccard 0.3 时找到的机会为 95%
_REACH = 8  # 桶里每首诗只与其后这么多首配对，桶再大也不会成平方地增长
_KEY_REACH = 64  # 标题与作者相同的，多看几首
_BATCH = 1 << 16  # 一次比多少对
_WINDOW = 1 << 17  # 一次读出多少首的签名
_SPLIT_LIKENESS = 0.4  # 划分训练与验证时，签名有这么像就放在同一边

NO_NUMBERS = np.empty(0, dtype=np.int64)


# ── 诗对 ──────────────────────────────────────────────────────────────


class Pairs(NamedTuple):
    """够像的诗对，按行升序，没有重复。"""

    numbers: np.ndarray  # int64 (m, 2)，小号在前
    likeness: np.ndarray  # float32 (m,)，签名相同的比例


def near_pairs(
    signatures: Column, threshold: float, folder: Path | str, without: np.ndarray = NO_NUMBERS
) -> Pairs:
    """签名 (n, 64) 相同的比例不低于 threshold 的诗对；without 里的诗（升序）不算，空诗也不算。

    用局部敏感哈希找，threshold 低于 0.3 时会有遗漏。
    """
    found = []
    for band in range(HASHES // _BAND):
        keys = (
            np.ascontiguousarray(block).view(f"<u{2 * _BAND}")[:, band]
            for block in signatures.blocks()
        )
        nothing = int.from_bytes(NOTHING.to_bytes(2, "little") * _BAND, "little")
        found += _alike(keys, nothing, signatures, without, _REACH, threshold, folder)
    return joined(found)


def same_key_pairs(
    signatures: Column,
    keys: Column,
    threshold: float,
    folder: Path | str,
    without: np.ndarray = NO_NUMBERS,
) -> Pairs:
    """keys (n,) 相同、签名相同的比例不低于 threshold 的诗对；key 为 0 的不算。"""
    return joined([*_alike(keys.blocks(), 0, signatures, without, _KEY_REACH, threshold, folder)])


def joined(parts: list[Pairs]) -> Pairs:
    """几份合成一份。"""
    if not parts:
        return Pairs(NO_NUMBERS.reshape(0, 2), np.empty(0, dtype=np.float32))
    numbers, likeness = (np.concatenate(field) for field in zip(*parts))
    order = np.lexsort((numbers[:, 1], numbers[:, 0]))
    numbers, likeness = numbers[order], likeness[order]
    fresh = np.ones(len(numbers), dtype=bool)
    fresh[1:] = (numbers[1:] != numbers[:-1]).any(axis=1)
    return Pairs(numbers[fresh], likeness[fresh])


def _alike(
    keys: Iterable[np.ndarray],
    nothing: int,
    signatures: Column,
    without: np.ndarray,
    reach: int,
    threshold: float,
    folder: Path | str,
) -> Iterator[Pairs]:
    """key 相同的诗里，按号相距不超过 reach 首、够像的诗对；key 是 nothing 的不算。"""
    for shared in sharing(numbered(keys, nothing, without), len(signatures), folder):
        numbers = shared["number"].astype(np.int64)
        for first in range(0, len(shared), _WINDOW):
            part = slice(first, first + _WINDOW + reach)
            rows = signatures.take(numbers[part])  # (w, 64)
            yield from _neighbours(shared["key"][part], numbers[part], rows, reach, threshold)


def numbered(
    keys: Iterable[np.ndarray], nothing: int | None = None, without: np.ndarray = NO_NUMBERS
) -> Iterator[np.ndarray]:
    """各段的 key → 一段一段的（key、number）；key 是 nothing 的、号在 without（升序）里的不要。"""
    start = 0
    for block in keys:
        kept = np.full(len(block), True) if nothing is None else block != nothing
        first, last = np.searchsorted(without, (start, start + len(block)))
        kept[without[first:last] - start] = False
        numbers = np.flatnonzero(kept)
        records = np.empty(len(numbers), dtype=[("key", block.dtype), ("number", np.uint32)])
        records["key"], records["number"] = block[numbers], numbers + start
        start += len(block)
        yield records


def _neighbours(
    keys: np.ndarray, numbers: np.ndarray, rows: np.ndarray, reach: int, threshold: float
) -> Iterator[Pairs]:
    """排好的一段里，前 _WINDOW 首各与其后 reach 首里 key 相同的比。"""
    for step in range(1, reach + 1):
        at = np.flatnonzero(keys[step:] == keys[:-step])
        at = at[at < _WINDOW]
        if not len(at):
            return
        for start in range(0, len(at), _BATCH):
            some = at[start : start + _BATCH]
            likeness = likeness_of(rows[some], rows[some + step])
            good = likeness >= threshold
            if good.any():
                some, likeness = some[good], likeness[good]
                yield Pairs(np.stack([numbers[some], numbers[some + step]], axis=1), likeness)


def likeness_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """两列签名 (m, 64) 各对相同的比例，float32 (m,)：Jaccard 系数的估计，标准误不超过 0.0625。"""
    return (first == second).mean(axis=1, dtype=np.float32)


# ── 组 ────────────────────────────────────────────────────────────────


class Groups(NamedTuple):
    """不止一首的组；不在里面的诗各自一组。"""

    members: np.ndarray  # int64 (k,)，升序
    roots: np.ndarray  # int64 (k,)，各首所在的组里最小的号


def connected(pairs: np.ndarray) -> Groups:
    """并查集：pairs (m, 2) 连起来的放在一组。"""
    members, pairs = np.unique(pairs, return_inverse=True)
    pairs = pairs.reshape(-1, 2)
    groups = np.arange(len(members), dtype=np.int64)
    while True:
        first, second = groups[pairs[:, 0]], groups[pairs[:, 1]]
        if (first == second).all():
            return Groups(members.astype(np.int64), members[groups].astype(np.int64))
        np.minimum.at(groups, np.maximum(first, second), np.minimum(first, second))
        while True:  # 沿着指向走到根
            above = groups[groups]
            if (above == groups).all():
                break
            groups = above


def split_groups(signatures: Column, keys: Column, marks: Column, folder: Path | str) -> Groups:
    """不可分在训练与验证两边的诗放在一组：近似的诗，以及同一作者同一首诗的各部分。

    keys、marks：各首的 dedup.part_key。标题相同而都没有部分标记的（《无题》《春天》）不算同一首。
    """
    pairs = [near_pairs(signatures, _SPLIT_LIKENESS, folder).numbers]
    for shared in sharing(numbered(keys.blocks(), nothing=0), len(keys), folder):
        numbers = shared["number"].astype(np.int64)
        same = shared["key"][1:] == shared["key"][:-1]
        first = np.flatnonzero(np.r_[True, ~same])  # 各组从哪里开始
        marked = np.maximum.reduceat(marks.take(numbers), first) > 0
        lengths = np.diff(np.r_[first, len(numbers)])
        linked = np.flatnonzero(same & np.repeat(marked, lengths)[1:])
        pairs.append(np.stack([numbers[linked], numbers[linked + 1]], axis=1))
    return connected(np.concatenate(pairs))
