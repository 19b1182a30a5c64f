"""重复的诗：能用的都放进索引（文字在临时文件里），找出谁被谁取代，写出留下的。"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from functools import lru_cache
from typing import BinaryIO

import numpy as np

from poems import dedup, mend
from poems.report import NEAR_COPY, Report
from support import console

EXACT_COPY = "与另一首完全相同"

_BATCH = 2000  # 每多少首算一次签名
_CANDIDATE = 0.25  # 签名有这么像的才逐字核对
_EXCERPT = 0.02  # 同一作者同一题目的，这么像就核对（节选可能比全诗短得多）


class Index:
    """留下的诗：文字在临时文件里，内存里每首只有约 170 字节。"""

    def __init__(self, spill: BinaryIO) -> None:
        self.spill = spill  # 每行：出处 \t 记录的 JSON
        self.offsets = array("Q")
        self.lengths = array("I")  # 正文字数，含换行
        self.anonymous = bytearray()
        self.digests = array("Q")
        self.title_keys = array("Q")
        self._position = 0
        self._normals: list[str] = []
        self._signatures: list[np.ndarray] = []

    def add(self, where: str, poem: mend.Poem) -> None:
        """再放一首。"""
        record = {"title": poem.title, "para": poem.para, "author": poem.author}
        where = where.replace("\t", " ").replace("\n", " ")  # 文件名里什么都可能有
        line = f"{where}\t{json.dumps(record, ensure_ascii=False)}\n".encode("utf-8", "replace")
        self.spill.write(line)
        self.offsets.append(self._position)
        self._position += len(line)
        self.lengths.append(len("\n\n".join(poem.para)))
        self.anonymous.append(poem.author == mend.UNKNOWN_AUTHOR)
        self.digests.append(dedup.digest(poem.normal))
        self.title_keys.append(dedup.title_key(dedup.base_title(poem.title), poem.author))
        self._normals.append(poem.normal)
        if len(self._normals) >= _BATCH:
            self._sign()

    def forget(self, count: int) -> None:
        """只留前 count 首，后面的当作没有放过。"""
        if count == len(self.offsets):
            return
        self._position = self.offsets[count]
        self.spill.seek(self._position)
        self.spill.truncate()
        for numbers in (self.offsets, self.lengths, self.anonymous, self.digests, self.title_keys):
            del numbers[count:]
        signed = sum(map(len, self._signatures))
        while signed > count:  # 已经算过签名的，整批整批地退
            last = self._signatures.pop()
            signed -= len(last)
            if signed < count:
                self._signatures.append(last[: count - signed])
                signed = count
        del self._normals[count - signed :]

    def _sign(self) -> None:
        self._signatures.append(dedup.signature(self._normals))
        self._normals = []

    def take_signatures(self) -> np.ndarray:
        """uint16 (n, 64)，按加入的次序；只能取一次。"""
        self._sign()
        result = np.empty((len(self.offsets), dedup.HASHES), dtype=np.uint16)
        end = len(result)
        while self._signatures:
            part = self._signatures.pop()
            result[end - len(part) : end] = part
            end -= len(part)
        return result

    def read(self, number: int) -> tuple[str, dict]:
        """第 number 首的（出处，记录）。"""
        self.spill.seek(self.offsets[number])
        where, _, record = self.spill.readline().decode("utf-8").partition("\t")
        return where, json.loads(record)


# ── 谁被谁取代 ────────────────────────────────────────────────────────


def find_copies(index: Index, near_copy: float) -> tuple[np.ndarray, np.ndarray]:
    """返回 copy_of int64 (n,)：被哪一首取代，-1 为留下；exact bool (n,)：是否完全相同。

    留较长的；一样长时留作者已知的，再留排在前面的。
    """
    count = len(index.offsets)
    order = np.lexsort(
        (
            np.arange(count),
            np.frombuffer(index.anonymous, dtype=np.uint8),
            -np.array(index.lengths, dtype=np.int64),
        )
    )
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.arange(count)  # 0 最该留下
    copy_of = _exact_copies(np.array(index.digests, dtype=np.uint64), rank)
    exact = copy_of >= 0
    _near_copies(index, near_copy, rank, copy_of)
    return copy_of, exact


def _exact_copies(digests: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """规范形式相同的诗，指向其中最该留下的一首。"""
    copy_of = np.full(len(digests), -1, dtype=np.int64)
    order = np.lexsort((rank, digests))
    if not len(order):
        return copy_of
    first = np.ones(len(order), dtype=bool)
    first[1:] = digests[order][1:] != digests[order][:-1]
    kept = order[first][np.cumsum(first) - 1]  # 各首所在一组的第一名
    copy_of[order[~first]] = kept[~first]
    return copy_of


def _near_copies(index: Index, near_copy: float, rank: np.ndarray, copy_of: np.ndarray) -> None:
    """在还没有被取代的诗里找近似的，写进 copy_of。从最该留下的一首看起。"""
    signatures = index.take_signatures()
    keys = np.array(index.title_keys, dtype=np.uint64)
    signatures[copy_of >= 0] = dedup.NOTHING
    keys[copy_of >= 0] = 0
    pairs, _ = dedup.near_pairs(signatures, _CANDIDATE)
    pairs = np.concatenate([pairs, dedup.same_key_pairs(signatures, keys, _EXCERPT)])
    likeness = dedup.likeness(signatures, pairs)
    certain = (1 + near_copy) / 2  # 签名像到这个程度就不必逐字核对

    @lru_cache(maxsize=256)
    def shingles(number: int) -> Counter:
        record = index.read(number)[1]
        return dedup.shingles(dedup.normal_form("".join(record["para"])))

    better: dict[int, dict[int, float]] = {}  # 诗 → {比它更该留下的: 有多像}
    for (first, second), like in zip(pairs.tolist(), likeness.tolist()):
        if rank[first] > rank[second]:
            first, second = second, first
        better.setdefault(second, {})[first] = like
    for number in sorted(better, key=lambda item: rank[item]):
        for other, like in sorted(better[number].items()):
            target = other if copy_of[other] < 0 else int(copy_of[other])
            sure = target == other and like >= certain
            if sure or dedup.overlap(shingles(number), shingles(target)) >= near_copy:
                copy_of[number] = target
                break


# ── 写出 ──────────────────────────────────────────────────────


def write_poems(
    index: Index, copy_of: np.ndarray, exact: np.ndarray, file: BinaryIO, report: Report
) -> str:
    """把留下的诗写成每行一条的 JSON 列表，返回内容的 sha256。"""
    checksum = hashlib.sha256()

    def write(text: bytes) -> None:
        checksum.update(text)
        file.write(text)

    kept = np.flatnonzero(copy_of < 0)
    report.lengths = np.array(index.lengths, dtype=np.int64)[kept]
    for number in np.flatnonzero(copy_of >= 0).tolist():
        _report_copy(index, number, int(copy_of[number]), bool(exact[number]), report)
    index.spill.seek(0)
    separator = b"[\n"
    with console.progress(len(copy_of), "写出") as bar:
        for target, line in zip(copy_of.tolist(), index.spill):
            bar.update()
            if target < 0:
                write(separator + line.partition(b"\t")[2].rstrip(b"\n"))
                separator = b",\n"
    write(b"\n]\n")
    return checksum.hexdigest()


def _report_copy(index: Index, number: int, target: int, exact: bool, report: Report) -> None:
    reason = EXACT_COPY if exact else NEAR_COPY
    if report.dropped.has_examples(reason):  # 例子够了就不必再去读它
        report.dropped.counts[reason] += 1
        return
    where, record = index.read(number)
    same = index.read(target)[1]
    report.dropped.add(
        reason,
        where=where,
        title=record["title"],
        text="\n".join(record["para"]),
        same_as=f"{same['author']}《{same['title']}》",
    )
