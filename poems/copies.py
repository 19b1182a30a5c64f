"""重复的诗：能用的都放进索引（在临时文件里），找出谁被谁取代，写出留下的。"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Iterator, NamedTuple

import numpy as np

from poems import dedup, mend, near
from poems.report import NEAR_COPY, Report
from support import console
from support.columns import Column, sharing

EXACT_COPY = "与另一首完全相同"

_BATCH = 2000  # 每多少首算一次签名
_CANDIDATE = 0.25  # 签名有这么像的才逐字核对
_EXCERPT = 0.02  # 同一作者同一题目的，这么像就核对（节选可能比全诗短得多）


class Index:
    """留下的诗，都在 folder 里的临时文件里，不占内存；用完请 close()。"""

    def __init__(self, folder: Path | str) -> None:
        self.folder = folder
        self.spill = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - 每行：出处 \t 记录的 JSON
        self.offsets = Column("uint64", folder)
        self.lengths = Column("uint32", folder)  # 正文字数，含换行
        self.anonymous = Column("uint8", folder)
        self.digests = Column("uint64", folder)
        self.title_keys = Column("uint64", folder)
        self._signatures = Column("uint16", folder, dedup.HASHES)
        self._position = 0
        self._normals: list[str] = []

    def __len__(self) -> int:
        return len(self.offsets)

    def close(self) -> None:
        """丢掉临时文件。"""
        for file in (self.spill, self._signatures, *self._numbers()):
            file.close()

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
        if count == len(self):
            return
        self._position = int(self.offsets.take(np.array([count]))[0])
        self.spill.seek(self._position)
        self.spill.truncate()
        for column in self._numbers():
            column.truncate(count)
        del self._normals[max(0, count - len(self._signatures)) :]
        self._signatures.truncate(count)

    def signatures(self) -> Column:
        """各首的签名 uint16 (n, 64)，按加入的次序。"""
        self._sign()
        return self._signatures

    def read(self, number: int) -> tuple[str, dict]:
        """第 number 首的（出处，记录）。"""
        self.spill.seek(int(self.offsets.take(np.array([number]))[0]))
        where, _, record = self.spill.readline().decode("utf-8").partition("\t")
        return where, json.loads(record)

    def ranks(self, numbers: np.ndarray) -> np.ndarray:
        """numbers (k,) 里谁最该留下：0 最该。较长的；一样长时作者已知的，再是号小的。"""
        lengths = self.lengths.take(numbers).astype(np.int64)
        order = np.lexsort((numbers, self.anonymous.take(numbers), -lengths))
        ranks = np.empty(len(numbers), dtype=np.int64)
        ranks[order] = np.arange(len(numbers))
        return ranks

    def _numbers(self) -> tuple[Column, ...]:
        return (self.offsets, self.lengths, self.anonymous, self.digests, self.title_keys)

    def _sign(self) -> None:
        self._signatures.extend(dedup.signature(self._normals))
        self._normals = []


# ── 谁被谁取代 ────────────────────────────────────────────────────────


class Copies(NamedTuple):
    """不留的诗，按号升序。"""

    numbers: np.ndarray  # int64 (k,)
    targets: np.ndarray  # int64 (k,)，被哪一首取代
    exact: np.ndarray  # bool (k,)，是否完全相同


def find_copies(index: Index, near_copy: float) -> Copies:
    """谁被谁取代。留较长的；一样长时留作者已知的，再留排在前面的。"""
    exact = _exact_copies(index)
    close = _near_copies(index, near_copy, np.array(sorted(exact), dtype=np.int64))
    numbers = sorted({*exact, *close})
    return Copies(
        np.array(numbers, dtype=np.int64),
        np.array([exact.get(number, close.get(number)) for number in numbers], dtype=np.int64),
        np.array([number in exact for number in numbers], dtype=bool),
    )


def _exact_copies(index: Index) -> dict[int, int]:
    """规范形式相同的诗 → 其中最该留下的一首。"""
    found = {}
    for shared in sharing(near.numbered(index.digests.blocks()), len(index), index.folder):
        numbers = shared["number"].astype(np.int64)
        order = np.lexsort((index.ranks(numbers), shared["key"]))
        keys, numbers = shared["key"][order], numbers[order]
        first = np.r_[True, keys[1:] != keys[:-1]]
        kept = numbers[first][np.cumsum(first) - 1]  # 各首所在一组的第一名
        found.update(zip(numbers[~first].tolist(), kept[~first].tolist()))
    return found


def _near_copies(index: Index, near_copy: float, without: np.ndarray) -> dict[int, int]:
    """在 without（升序）以外的诗里找近似的。从最该留下的一首看起。"""
    signatures, folder = index.signatures(), index.folder
    pairs = near.joined(
        [
            near.near_pairs(signatures, _CANDIDATE, folder, without),
            near.same_key_pairs(signatures, index.title_keys, _EXCERPT, folder, without),
        ]
    )
    members = np.unique(pairs.numbers)
    rank = dict(zip(members.tolist(), index.ranks(members).tolist()))
    certain = (1 + near_copy) / 2  # 签名像到这个程度就不必逐字核对

    @lru_cache(maxsize=256)
    def shingles(number: int) -> Counter:
        record = index.read(number)[1]
        return dedup.shingles(dedup.normal_form("".join(record["para"])))

    better: dict[int, dict[int, float]] = {}  # 诗 → {比它更该留下的: 有多像}
    for (first, second), like in zip(pairs.numbers.tolist(), pairs.likeness.tolist()):
        if rank[first] > rank[second]:
            first, second = second, first
        better.setdefault(second, {})[first] = like
    copy_of: dict[int, int] = {}
    for number in sorted(better, key=rank.__getitem__):
        for other, like in sorted(better[number].items()):
            target = copy_of.get(other, other)
            sure = target == other and like >= certain
            if sure or dedup.overlap(shingles(number), shingles(target)) >= near_copy:
                copy_of[number] = target
                break
    return copy_of


# ── 写出 ──────────────────────────────────────────────────────


def write_poems(index: Index, found: Copies, file: BinaryIO, report: Report) -> str:
    """把留下的诗写成每行一条的 JSON 列表，返回内容的 sha256。"""
    checksum = hashlib.sha256()

    def write(text: bytes) -> None:
        checksum.update(text)
        file.write(text)

    _count_lengths(index, found.numbers, report)
    for number, target, exact in zip(*(field.tolist() for field in found)):
        _report_copy(index, number, target, exact, report)
    index.spill.seek(0)
    separator = b"[\n"
    with console.progress(len(index), "写出") as bar:
        for line in _kept(index.spill, found.numbers, bar):
            write(separator + line.partition(b"\t")[2].rstrip(b"\n"))
            separator = b",\n"
    write(b"\n]\n")
    return checksum.hexdigest()


def _kept(spill: BinaryIO, dropped: np.ndarray, bar: Any) -> Iterator[bytes]:
    """留下的各行。"""
    waiting = iter(dropped.tolist())
    next_dropped = next(waiting, -1)
    for number, line in enumerate(spill):
        bar.update()
        if number == next_dropped:
            next_dropped = next(waiting, -1)
        else:
            yield line


def _count_lengths(index: Index, dropped: np.ndarray, report: Report) -> None:
    """留下的诗各有几个字，记进 report。"""
    start = 0
    for block in index.lengths.blocks():
        first, last = np.searchsorted(dropped, (start, start + len(block)))
        report.count_lengths(np.delete(block, dropped[first:last] - start))
        start += len(block)


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
