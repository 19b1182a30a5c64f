"""把诗排成微批次：一行一首，一批里长度几乎相同，几乎没有填充。

第 n 个微批次只由（种子、n）决定，与进程数、是否续训无关。
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import Any, Callable, Iterable

import numpy as np

_CPU_TOKENS = 2048  # CPU 一次算这么多 token 已经够快，再多只占内存


def split_for(budget: int, device: str) -> int:
    """budget 个 token 的微批次先分几份算；梯度与不分时相同。"""
    return max(1, budget // _CPU_TOKENS) if device == "cpu" else 1


class BatchPlan:
    """全部轮次的微批次安排。

    每轮把诗打乱后按长度稳定排序，从长到短切成批：行数 × 最长行 ≤ budget 个 token；
    再打乱批的次序。各轮的切分点相同，所以每轮的微批次数不变。
    """

    def __init__(self, lengths: np.ndarray, budget: int, seed: int, shuffle: bool = True) -> None:
        """lengths：(n,) 每个文档输入的 token 数；budget：一个微批次的 token 数上限。"""
        self.lengths = np.asarray(lengths)
        self.seed, self.shuffle = seed, shuffle
        self.bounds = _cut(np.sort(self.lengths)[::-1], budget)
        self.per_epoch = len(self.bounds) - 1
        self._arranged = (-1, None, None)  # 整个换掉，所以几个线程可以同时取

    def documents(self, number: int) -> np.ndarray:
        """第 number 个微批次（从 0 数，跨轮连续）的文档编号。"""
        epoch, position = divmod(number, self.per_epoch)
        arranged = self._arranged
        if arranged[0] != epoch:
            arranged = self._arranged = self._arrange(epoch)
        _, order, batches = arranged
        batch = batches[position]
        return order[self.bounds[batch] : self.bounds[batch + 1]]

    def _arrange(self, epoch: int) -> tuple:
        """(轮次, 文档的次序, 批的次序)。"""
        rng = np.random.default_rng((self.seed, epoch))
        count = len(self.lengths)
        start = rng.permutation(count) if self.shuffle else np.arange(count)
        order = start[np.argsort(-self.lengths[start], kind="stable")]
        batches = np.arange(self.per_epoch)
        return epoch, order, rng.permutation(batches) if self.shuffle else batches


def _cut(descending: np.ndarray, budget: int) -> list:
    """从长到短的长度 → 各批的边界。"""
    bounds, start = [0], 0
    while start < len(descending):
        rows = max(1, budget // max(1, int(descending[start])))
        start = min(start + rows, len(descending))
        bounds.append(start)
    return bounds


@dataclass
class Batch:
    """一个微批次。inputs：(B, T) int64；targets：(B, T) int64，不训练的位置为 -1。"""

    inputs: np.ndarray
    targets: np.ndarray
    tokens: int  # 不含填充的输入 token 数
    trained: int  # 要训练的 token 数
    ready: tuple = (0, [])  # (分几份, 备好的各份)

    def prepare(self, count: int, hold: Callable[[np.ndarray], Any]) -> None:
        """先分好 count 份，各数组经过 hold（如放进锁页内存）；在后台做，取的时候不必等。"""
        self.ready = count, [tuple(hold(array) for array in part) for part in self.parts(count)]

    def parts(self, count: int) -> list:
        """按行分成至多 count 份 (inputs, where, labels)：备好的，否则现分成 numpy 数组。"""
        if self.ready[0] == count:
            return self.ready[1]
        rows = -(-len(self.inputs) // count)
        return [
            _part(self.inputs[start : start + rows], self.targets[start : start + rows])
            for start in range(0, len(self.inputs), rows)
        ]


def _part(inputs: np.ndarray, targets: np.ndarray) -> tuple:
    flat = targets.reshape(-1)
    where = np.flatnonzero(flat >= 0)
    return inputs, where, flat[where]


def assemble(documents: list, pad_id: int = 0) -> Batch:
    """[(ids, mask), …] → Batch；输入是 ids[:-1]，目标是 ids[1:] 中 mask 为 1 的。"""
    longest = max(len(ids) for ids, _ in documents) - 1
    inputs = np.full((len(documents), longest), pad_id, dtype=np.int64)
    targets = np.full((len(documents), longest), -1, dtype=np.int64)
    for row, (ids, mask) in enumerate(documents):
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = np.where(mask[1:] != 0, ids[1:].astype(np.int64), -1)
    tokens = sum(len(ids) - 1 for ids, _ in documents)
    return Batch(inputs, targets, tokens, int((targets >= 0).sum()))


class Prefetcher:
    """后台线程提前准备好接下来的几个微批次；make(n) 给出第 n 个。用完要 close（或用 with）。"""

    def __init__(
        self, make: Callable[[int], Batch], numbers: Iterable[int], depth: int = 4
    ) -> None:
        self._queue = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(make, numbers), daemon=True)
        self._thread.start()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self, make: Callable[[int], Batch], numbers: Iterable[int]) -> None:
        try:
            for number in numbers:
                item = (number, make(number))
                if not self._put(item):
                    return
        except Exception as error:  # 交给取数据的线程抛出
            self._put((None, error))

    def _put(self, item: tuple) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def get(self, number: int) -> Batch:
        """第 number 个；必须按给定的次序取。"""
        found, item = self._queue.get()
        if found is None:
            raise item
        assert found == number, f"数据次序错乱：要 {number}，来的是 {found}"
        return item

    def close(self) -> None:
        """让线程停下，等它结束。"""
        self._closed.set()
        self._thread.join()
