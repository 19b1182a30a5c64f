"""几个线程写得最快：边写边量。

一步解码是许多很小的矩阵乘，每一个都要等最慢的线程；机器空闲时线程多些快，旁边有别的程序在忙时
一个线程能快十倍。所以隔一阵子用相邻的线程数试几步，快了就换；试着没用就隔得更久，变慢了马上再试。
"""

from __future__ import annotations

import time
from typing import Callable, TypeVar

import torch

FIRST, LONGEST = 16, 1024  # 隔多少步试一次：从 FIRST 起，没用一次就加倍
TRIAL = 3  # 一次试几步
FASTER, SLOWER = 0.9, 2.0  # 快到这个比例就换；慢到这个比例就马上再试

Result = TypeVar("Result")


class Pace:
    """一种批量（几首诗同写）的线程数。"""

    def __init__(self, choices: list) -> None:
        """choices：可用的线程数，从小到大；从最大的开始。"""
        self.choices, self.place = choices, len(choices) - 1
        self.usual = 0.0  # 现在的线程数一步要几秒，滑动平均；0 = 还没有量
        self.best = 0.0  # 选定以来最快的滑动平均
        self.gap, self.left = FIRST, TRIAL  # 隔多少步试一次，还有几步
        self.tried = []  # 正在试的几步各用了几秒
        self.step = -1  # 下次往哪边试

    @property
    def threads(self) -> int:
        """下一步用几个线程。"""
        return self.choices[self._other() if self.left <= 0 else self.place]

    def learn(self, seconds: float) -> None:
        """刚才那一步用了多久。"""
        if self.left <= 0:
            self._try(seconds)
            return
        if len(self.choices) == 1:
            return
        self.left -= 1
        self.usual = seconds if not self.usual else 0.75 * self.usual + 0.25 * seconds
        self.best = min(self.best or self.usual, self.usual)
        if self.usual > SLOWER * self.best:
            self.best, self.gap, self.left = self.usual, FIRST, 0

    def _other(self) -> int:
        """要试的是 choices 里的第几个；两头只有一边可去。"""
        place = self.place + self.step
        return place if 0 <= place < len(self.choices) else self.place - self.step

    def _try(self, seconds: float) -> None:
        self.tried.append(seconds)
        hopeless = seconds > SLOWER * self.usual  # 一步就看得出，不必试完
        if len(self.tried) < TRIAL and not hopeless:
            return
        fastest = min(self.tried)
        if not hopeless and fastest < FASTER * self.usual:
            self.place, self.usual, self.best = self._other(), fastest, fastest
            self.gap = FIRST
        else:
            self.step, self.gap = -self.step, min(LONGEST, 2 * self.gap)
        self.tried, self.left = [], self.gap


class Paces:
    """各种批量各有一个 Pace；一个载入的模型一份。"""

    def __init__(self, most: int | None = None) -> None:
        """most：至多几个线程，默认 PyTorch 此刻的数。"""
        most = most or torch.get_num_threads()
        self.choices = sorted({*(1 << power for power in range(most.bit_length())), most})
        self.by_rows = {}

    def run(self, rows: int, work: Callable[[], Result]) -> Result:
        """同写 rows 首时的一步：用选定的线程数做 work，量它多久，再把线程数还原。"""
        pace = self.by_rows.setdefault(rows, Pace(self.choices))
        before = torch.get_num_threads()
        torch.set_num_threads(pace.threads)
        start = time.perf_counter()
        try:
            return work()
        finally:
            pace.learn(time.perf_counter() - start)
            torch.set_num_threads(before)
