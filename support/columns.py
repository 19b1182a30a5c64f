"""几千万个数，不占内存：一列一列地放在临时文件里，一段一段地读；找出共有同一个键的。"""

from __future__ import annotations

import array
import contextlib
import mmap
import tempfile
from pathlib import Path
from typing import Any, Iterable, Iterator

import numpy as np

_WAITING = 1 << 14  # 攒到这么多项就写出
_BLOCK = 1 << 20  # 一次读出的字节数
_WINDOW = 1 << 26  # 随处取时，一次映射里碰到的字节数
_HEAP = 1 << 20  # 分堆时，一堆大约至多这么多项
_HEAPS = 64  # 至多几堆：一堆一个打开的文件


class Column:
    """只往后加的一列；一项是一个数，或一行 width 个数。用完请 close()。"""

    def __init__(self, dtype: Any, folder: Path | str, width: int = 1) -> None:
        self.dtype, self.width = np.dtype(dtype), width
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - close() 关
        self._item = self.dtype.itemsize * width  # 一项的字节数
        self._plain = width == 1 and self.dtype.kind in "iu"
        self._waiting = array.array(self.dtype.char if self._plain else "B")
        self._written = 0  # 已经在文件里的项数

    def __len__(self) -> int:
        return self._written + len(self._waiting) * self._waiting.itemsize // self._item

    def append(self, value: int) -> None:
        """再加一个数。"""
        self._waiting.append(value)
        if len(self._waiting) >= _WAITING:
            self._write()

    def extend(self, values: np.ndarray) -> None:
        """再加几项：(n,) 或 (n, width)。"""
        self._waiting.frombytes(np.ascontiguousarray(values, dtype=self.dtype).tobytes())
        if len(self._waiting) >= _WAITING:
            self._write()

    def truncate(self, count: int) -> None:
        """只留前 count 项。"""
        self._write()
        if count < self._written:
            self._written = count
            self.file.truncate(count * self._item)

    def blocks(self) -> Iterator[np.ndarray]:
        """从头到尾，一次一段：(n,) 或 (n, width)。"""
        self._write()
        count = max(1, _BLOCK // self._item)
        for first in range(0, self._written, count):
            self.file.seek(first * self._item)
            size = min(count, self._written - first) * self._item
            yield self._shaped(np.frombuffer(self.file.read(size), dtype=self.dtype))

    def take(self, places: np.ndarray) -> np.ndarray:
        """places (n,) 各处的项：(n,) 或 (n, width)；先后随意。"""
        self._write()
        places = np.asarray(places, dtype=np.int64)
        found = self._shaped(np.empty(len(places) * self.width, dtype=self.dtype))
        order = np.argsort(places, kind="stable")
        window = places[order] // max(1, _WINDOW // self._item)
        for part in np.split(order, np.flatnonzero(np.diff(window)) + 1):
            if len(part):  # 每次重新映射：映射过的页才不会越积越多
                with mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    data = self._shaped(np.frombuffer(mapped, dtype=self.dtype))
                    found[part] = data[places[part]]
                    del data
        return found

    def close(self) -> None:
        """丢掉临时文件。"""
        self.file.close()

    def _shaped(self, data: np.ndarray) -> np.ndarray:
        return data if self.width == 1 else data.reshape(-1, self.width)

    def _write(self) -> None:
        if len(self._waiting):
            self.file.seek(0, 2)
            self.file.write(self._waiting)
            self.file.flush()
            self._written = len(self)
            del self._waiting[:]


def sharing(records: Iterable[np.ndarray], count: int, folder: Path | str) -> Iterator[np.ndarray]:
    """键与别的记录相同的记录，按键排好；几次给出，同一个键的总在同一次里，先后不变。

    records：一段一段的结构数组，有一个无符号整数的字段 key，共约 count 条。先按键的低位分堆，
    内存里一次只有一堆。
    """
    heaps: list[Column] = []
    mask = min(_HEAPS, 1 << max(0, (count - 1) // _HEAP).bit_length()) - 1
    with contextlib.ExitStack() as stack:
        for block in records:
            if not heaps:
                heaps = [Column(block.dtype, folder) for _ in range(mask + 1)]
                for heap in heaps:
                    stack.callback(heap.close)
            which = block["key"] & block["key"].dtype.type(mask)
            for number, heap in enumerate(heaps):
                heap.extend(block[which == number])
        for heap in heaps:
            yield from _shared(np.concatenate([*heap.blocks(), np.empty(0, heap.dtype)]))
            heap.close()


def _shared(heap: np.ndarray) -> Iterator[np.ndarray]:
    heap = heap[np.argsort(heap["key"], kind="stable")]
    same = heap["key"][1:] == heap["key"][:-1]
    shared = np.zeros(len(heap), dtype=bool)
    shared[1:] |= same
    shared[:-1] |= same
    if shared.any():
        yield heap[shared]
