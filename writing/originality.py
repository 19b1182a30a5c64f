"""查抄：一段文字与训练诗最长的相同片段，以及它出自哪首诗。

索引 copy_index.bin 由 dataset.bin 的训练诗建一次：全部正文拼成一个 UTF-16 码元数组（诗与诗之间
隔一个 0），再按各位置起 4 个码元的大小给位置排序。查一首诗是在排序里二分，再向后比到不同为止。
基本平面以外的字（少数生僻字、表情）折到私用区的一个码元里，所以码元数就是字数。
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

import dataset
from support import artefacts, console, container, files

FILE = container.Kind(b"POEMCOPY", 2, "查抄索引")
KEY = 4  # 排序用几个码元
_WINDOW = 32  # 向后比较时一次比几个码元
_PAIRS = 1 << 16  # 一次比较几对位置


class Copy(NamedTuple):
    """最长的相同片段；没有相同的字时 length 为 0。"""

    length: int  # 字数，换行也算
    snippet: str
    title: str
    author: str

    def describe(self) -> str:
        """给人看的一句话。"""
        if not self.length:
            return "与训练诗没有相同的字"
        shown = self.snippet.replace("\n", "／")
        return (
            f"与训练诗最长的相同片段 {self.length} 字：“{shown}”，出自{self.author}《{self.title}》"
        )


# ── 建索引 ────────────────────────────────────────────────────────────


def load(work_dir: str) -> CopyIndex:
    """WORK_DIR 的索引；没有或 dataset.bin 换过就现在建。没有 dataset.bin 时抛出 UserError。"""
    data = dataset.load(Path(work_dir) / artefacts.DATASET)
    path = files.work_path(work_dir, artefacts.COPY_INDEX)
    opened = _open(path, data.fingerprint)
    if opened is None:
        build(data, path)
        opened = container.load(path, FILE)
    return CopyIndex(opened, data)


def build(data: dataset.PoemDataset, path: Path) -> None:
    """由训练诗建索引文件。"""
    units, starts, poems = _training_text(data)
    order = np.argsort(_keys(units, KEY, len(units) - KEY), kind="stable").astype(np.int32)
    arrays = {"units": units, "order": order, "starts": starts, "poems": poems}
    pieces = {name: container.piece(value) for name, value in arrays.items()}
    container.write(path, FILE, {"dataset": data.fingerprint}, pieces)


def _open(path: Path, fingerprint: str) -> container.Container | None:
    """打开索引；不存在、损坏、版本或数据集不符时为 None（重建）。"""
    if not path.is_file():
        return None
    try:
        opened = container.load(path, FILE)
    except container.Damaged:
        return None
    if opened.header.get("dataset") == fingerprint and not opened.verify():
        return opened
    opened.close()  # Windows 上不关就换不了文件
    return None


def _training_text(data: dataset.PoemDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """训练诗的正文：码元 uint16 (N,)、每首的起点 int32 (S,)、每首的序号 int32 (S,)。

    同一首诗配了几种提示词时只取一份。
    """
    from tokenizer import HFTokenizer

    tok = HFTokenizer.from_json(data.tokenizer_json)
    first, last = data.range("train")
    pieces, starts, poems, place = [], [], [], 0
    seen: set[str] = set()
    with console.progress(last - first, "建查抄索引", "篇") as bar:
        for index, poem, text in data.bodies("train", tok):
            bar.update(index + 1 - first - bar.n)
            if poems and poems[-1] != poem:
                seen = set()
            if not text or text in seen:
                continue
            seen.add(text)
            pieces += [encode(text), np.zeros(1, dtype=np.uint16)]
            starts.append(place)
            poems.append(poem)
            place += len(text) + 1
    pieces.append(np.zeros(KEY, dtype=np.uint16))
    units = np.concatenate(pieces)
    return units, np.array(starts, dtype=np.int32), np.array(poems, dtype=np.int32)


def encode(text: str) -> np.ndarray:
    """每个字一个 uint16；0 只用来隔开各首诗，文字里的换成 U+FFFD。"""
    points = np.frombuffer(text.encode("utf-32-le", "replace"), dtype="<u4")
    points = np.where(points > 0xFFFF, 0xE000 + points % 6400, points)
    return np.where(points == 0, 0xFFFD, points).astype(np.uint16)


def _keys(units: np.ndarray, width: int, count: int) -> np.ndarray:
    """前 count 个位置各自起 width 个码元拼成的 uint64 (count,)。"""
    keys = np.zeros(count, dtype=np.uint64)
    for shift in range(width):
        keys = (keys << np.uint64(16)) | units[shift : shift + count].astype(np.uint64)
    return keys


# ── 查 ────────────────────────────────────────────────────────────────


class CopyIndex:
    """打开的索引；data 是它的数据集（查出处用）。"""

    def __init__(self, opened: container.Container, data: dataset.PoemDataset) -> None:
        self.units, self.order = opened.arrays["units"], opened.arrays["order"]
        self.starts, self.poems = opened.arrays["starts"], opened.arrays["poems"]
        self.data = data

    def longest_copy(self, text: str) -> Copy:
        """text 与训练诗最长的相同片段（逐字相同，标点与换行也算）；一样长时取最靠前的。"""
        length, mine, theirs = self._longest(encode(text))
        snippet = text[mine : mine + length]
        if not snippet:
            return Copy(0, "", "", "")
        section = int(np.searchsorted(self.starts, theirs, side="right")) - 1
        info = self.data.poem_info(int(self.poems[section]))
        return Copy(len(snippet), snippet, info["title"], info["author"])

    def _longest(self, units: np.ndarray) -> tuple[int, int, int]:
        """(长度, 在 units 里的位置, 在训练诗里的位置)。"""
        if not len(units) or not len(self.order):
            return 0, 0, 0
        for width in range(KEY, 0, -1):  # 先找至少相同 width 个码元的位置
            low, high = self._ranges(units, width)
            if (high > low).any():
                break
        else:
            return 0, 0, 0
        if width < KEY:
            mine = int(np.argmax(high > low))
            return width, mine, int(self.order[low[mine]])
        best = (0, 0, 0)
        counts = high - low
        ends = np.cumsum(counts)
        for first in range(0, int(ends[-1]), _PAIRS):
            pair = np.arange(first, min(first + _PAIRS, int(ends[-1])))
            mine = np.searchsorted(ends, pair, side="right")
            theirs = self.order[low[mine] + pair - (ends[mine] - counts[mine])].astype(np.int64)
            length, which = self._extend(units, mine, theirs)
            if length > best[0]:
                best = (length, int(mine[which]), int(theirs[which]))
        return best

    def _ranges(self, units: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """units 各位置起 width 个码元，在排序里的范围 [low, high)，各 (n,)。"""
        count = len(units) - width + 1
        if count < 1:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        keys = _keys(units, width, count)
        low = self._bisect(keys, width, before=True)
        return low, self._bisect(keys, width, before=False)

    def _bisect(self, keys: np.ndarray, width: int, before: bool) -> np.ndarray:
        """每个 key 在排序里的插入点（同时二分全部 key）。"""
        low = np.zeros(len(keys), dtype=np.int64)
        high = np.full(len(keys), len(self.order), dtype=np.int64)
        while (low < high).any():
            middle = (low + high) // 2
            place = self.order[np.minimum(middle, len(self.order) - 1)].astype(np.int64)
            found = np.zeros(len(keys), dtype=np.uint64)
            for shift in range(width):
                found = (found << np.uint64(16)) | self.units[place + shift].astype(np.uint64)
            right = ((found < keys) if before else (found <= keys)) & (low < high)
            low = np.where(right, middle + 1, low)
            high = np.where(right, high, np.where(low < high, middle, high))
        return low

    def _extend(self, units: np.ndarray, mine: np.ndarray, theirs: np.ndarray) -> tuple[int, int]:
        """各对位置起相同的码元数里最大的，和它是第几对。"""
        padded = np.concatenate((units, np.zeros(_WINDOW + 1, dtype=np.uint16)))
        alive, length = np.arange(len(mine)), KEY
        steps = np.arange(_WINDOW)
        while True:
            a = np.minimum(mine[alive, None] + length + steps, len(padded) - 1)
            b = np.minimum(theirs[alive, None] + length + steps, len(self.units) - 1)
            same = (padded[a] == self.units[b]) & (padded[a] != 0)
            run = np.where(same.all(1), _WINDOW, np.argmin(same, 1))
            if (run == _WINDOW).any():
                alive, length = alive[run == _WINDOW], length + _WINDOW
            else:
                which = int(np.argmax(run))
                return length + int(run[which]), int(alive[which])
