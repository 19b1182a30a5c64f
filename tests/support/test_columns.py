"""columns.py：临时文件里的一列与内存里的数组一样；分堆找到全部共有的键。"""

from __future__ import annotations

import numpy as np
import pytest

from support import columns
from support.columns import Column


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """每几项就写出、换一段、换一次映射。"""
    for name, value in (("_WAITING", 7), ("_BLOCK", 64), ("_WINDOW", 64), ("_HEAP", 16)):
        monkeypatch.setattr(columns, name, value)


@pytest.mark.parametrize("dtype, width", [("uint8", 1), ("int64", 1), ("uint16", 3)])
def test_reads_back_what_was_added(tmp_path, dtype, width):
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 200, (50, width)).astype(dtype)
    rows = rows[:, 0] if width == 1 else rows
    column = Column(dtype, tmp_path, width)
    for first, last in ((0, 1), (1, 1), (1, 20), (20, 50)):
        column.extend(rows[first:last])
        assert np.concatenate([*column.blocks(), rows[:0]]).tolist() == rows[:last].tolist()
    places = rng.integers(0, 50, 30)
    assert column.take(places).tolist() == rows[places].tolist()
    assert column.take(places[:0]).shape == rows[:0].shape
    column.truncate(60)
    column.truncate(33)
    column.extend(rows[:2])
    expected = [*rows[:33].tolist(), *rows[:2].tolist()]
    assert len(column) == 35 and column.take(np.arange(35)).tolist() == expected
    column.close()


def test_numbers_one_at_a_time(tmp_path):
    column = Column("uint64", tmp_path)
    for number in range(30):
        column.append(2**63 + number)
        assert len(column) == number + 1
    assert [*np.concatenate([*column.blocks()])] == [2**63 + number for number in range(30)]
    column.close()


@pytest.mark.parametrize("count", [0, 1, 10, 500])
def test_sharing_gives_every_key_that_two_records_have(tmp_path, count):
    rng = np.random.default_rng(count)
    keys = rng.integers(0, 2 * count + 1, count).astype(np.uint32)
    records = np.empty(count, dtype=[("key", np.uint32), ("number", np.uint32)])
    records["key"], records["number"] = keys, np.arange(count)
    found = {}
    for part in columns.sharing(np.array_split(records, 3), count, tmp_path):
        assert not {*part["key"].tolist()} & {*found}  # 同一个键只在一次里
        for key, number in part.tolist():
            found.setdefault(key, []).append(number)
    expected = {key: np.flatnonzero(keys == key).tolist() for key in keys.tolist()}
    assert found == {key: numbers for key, numbers in expected.items() if len(numbers) > 1}
    assert not any(tmp_path.iterdir())
