"""near.py：近似对、分组；分堆与一次读多少都不改变结果。"""

from __future__ import annotations

import contextlib
import random
import tracemalloc
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest

from poems import dedup, near
from support import columns
from support.columns import Column
from tests.poems.test_dedup import random_text


class Shelf:
    """几列数，用完一起丢。"""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self.stack = folder, stack

    def column(self, values: object, dtype: str = "uint64") -> Column:
        """一列数。"""
        column = Column(dtype, self.folder)
        self.stack.callback(column.close)
        column.extend(np.array(values))
        return column

    def signatures(self, texts: list[str]) -> Column:
        """各首的签名。"""
        column = Column("uint16", self.folder, dedup.HASHES)
        self.stack.callback(column.close)
        column.extend(dedup.signature(texts))
        return column

    def near_groups(self, texts: list[str], threshold: float) -> list[int]:
        """各首的组号。"""
        pairs = near.near_pairs(self.signatures(texts), threshold, self.folder)
        return dense(near.connected(pairs.numbers), len(texts))


def dense(groups: near.Groups, count: int) -> list[int]:
    """各首的组号：组里最小的号。"""
    found = np.arange(count)
    found[groups.members] = groups.roots
    return found.tolist()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    with contextlib.ExitStack() as stack:
        yield Shelf(tmp_path, stack)


@pytest.fixture(params=["一次装下", "分成许多堆与段"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """同样的诗，内存里一次放多少都是同样的结果。"""
    if request.param != "一次装下":
        for module, name, value in (
            (columns, "_HEAP", 16),
            (columns, "_WINDOW", 1 << 11),
            (columns, "_BLOCK", 1 << 10),
            (columns, "_WAITING", 8),
            (near, "_WINDOW", 5),
            (near, "_BATCH", 3),
        ):
            monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("small")
def test_near_pairs_finds_all_close_copies_and_no_strangers(shelf: Shelf) -> None:
    rng = random.Random(4)
    texts = [random_text(rng, rng.randint(12, 200)) for _ in range(400)]
    copies = []
    for number in range(0, 400, 8):
        text = list(texts[number])
        text[len(text) // 2] = "囧"
        copies.append("".join(text) + "完了")
    signatures = shelf.signatures(texts + copies)
    found = near.near_pairs(signatures, 0.25, shelf.folder)
    expected = [[number, 400 + number // 8] for number in range(0, 400, 8)]
    assert found.numbers.tolist() == expected
    assert (found.likeness >= 0.25).all()
    without = np.array([16, 403])
    found = near.near_pairs(signatures, 0.25, shelf.folder, without)
    assert found.numbers.tolist() == [pair for pair in expected if not {*pair} & {16, 403}]


@pytest.mark.usefixtures("small")
def test_many_copies_of_one_poem_fall_into_one_group(shelf: Shelf) -> None:
    rng = random.Random(5)
    text = random_text(rng, 120)
    texts = [text[:number] + "囧" + text[number + 1 :] for number in range(100)]
    groups = shelf.near_groups([*texts, random_text(rng, 120)], 0.8)
    assert groups == [0] * 100 + [100]


def test_poems_without_words_are_not_alike(shelf: Shelf) -> None:
    assert shelf.near_groups([], 0.8) == []
    assert shelf.near_groups(["", ""], 0.8) == [0, 1]


def test_connected_agrees_with_a_plain_union_find() -> None:
    rng = random.Random(6)
    pairs = np.array([[rng.randrange(300), rng.randrange(300)] for _ in range(220)])
    parent = list(range(300))

    def root(item: int) -> int:
        while parent[item] != item:
            item = parent[item]
        return item

    for first, second in pairs.tolist():
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    assert dense(near.connected(pairs), 300) == [root(item) for item in range(300)]
    assert dense(near.connected(np.empty((0, 2), dtype=np.int64)), 3) == [0, 1, 2]


@pytest.mark.usefixtures("small")
def test_same_key_pairs_uses_keys_and_likeness(shelf: Shelf) -> None:
    rng = random.Random(7)
    text = random_text(rng, 100)
    signatures = shelf.signatures([text, random_text(rng, 100), text[:60], text[:60]])
    keys = shelf.column([5, 5, 5, 0])
    found = near.same_key_pairs(signatures, keys, 0.1, shelf.folder)
    assert found.numbers.tolist() == [[0, 2]]


@pytest.mark.usefixtures("small")
def test_split_groups_joins_parts_and_near_copies_only(shelf: Shelf) -> None:
    rng = random.Random(8)
    body = random_text(rng, 80)
    poems = [
        ("秋歌之一", "甲", random_text(rng, 80)),  # 0
        ("秋歌之二", "甲", random_text(rng, 80)),  # 1 与 0 同组
        ("秋歌之三", "乙", random_text(rng, 80)),  # 2 别的作者
        ("无题", "甲", random_text(rng, 80)),  # 3
        ("无题", "甲", random_text(rng, 80)),  # 4 同名但没有部分标记：不同组
        ("长河", "丙", random_text(rng, 80)),  # 5
        ("长河（节选）", "丙", random_text(rng, 80)),  # 6 与 5 同组
        ("某", "丁", body),  # 7
        ("另", "戊", body[:-1] + "囧"),  # 8 与 7 近似
    ]
    titles, authors, bodies = zip(*poems)
    keys, marks = zip(*map(dedup.part_key, titles, authors))
    groups = near.split_groups(
        shelf.signatures(bodies), shelf.column(keys), shelf.column(marks, "uint8"), shelf.folder
    )
    assert dense(groups, len(poems)) == [0, 0, 2, 3, 4, 5, 5, 7, 7]


def test_more_poems_take_no_more_memory(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """放不进内存的都在临时文件里：八倍的诗，同样的峰值。"""
    monkeypatch.setattr(columns, "_HEAP", 2000)
    monkeypatch.setattr(columns, "_BLOCK", 1 << 14)
    monkeypatch.setattr(near, "_WINDOW", 2000)

    def peak(count: int) -> int:
        signatures = Column("uint16", shelf.folder, dedup.HASHES)
        shelf.stack.callback(signatures.close)
        rows = np.random.default_rng(1).integers(0, 1 << 12, (400, dedup.HASHES))
        for _ in range(count // 400):  # 每四百首与上四百首一样：桶里总有伙伴
            signatures.extend(rows)
            rows[:, 0] += 1
        tracemalloc.start()
        try:
            near.near_pairs(signatures, 1.1, shelf.folder)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(16_000) < 1.5 * peak(2_000)
