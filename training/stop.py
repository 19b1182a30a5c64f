"""请求停下的信号：先立一个标志，做到能停的地方再停。"""

from __future__ import annotations

import contextlib
import signal
import time
from types import FrameType

# 各进程的次序、个数必须相同，所以本机没有的也占一格
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
_NUMBERS = tuple(int(getattr(signal, name, 0)) for name in _NAMES)
_PAUSE = 1.0
_HANGUP = int(getattr(signal, "SIGHUP", 0))


class Interrupted(Exception):
    """有进程收到 Ctrl-C 一类的信号：放弃没做完的更新，保存最后一次完整的更新。"""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = int(number)


class StopSignal:
    """第一次 Ctrl-C、SIGTERM、SIGHUP 只立一个标志，第二次照常中断。

    连着来的（按住不放、连按）是同一次，停了一秒再来才算第二次。
    patient：终端与 torchrun 会把同一次 Ctrl-C 各送一遍，几秒内的重复都不算第二次。
    """

    def __init__(self, patient: bool = False) -> None:
        self.received = 0
        self._patience, self._first, self._last = (5.0 if patient else 0.0), 0.0, 0.0
        self._old = {}

    def __enter__(self) -> StopSignal:
        for number in filter(None, _NUMBERS):
            if number == _HANGUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup：使用者要它不受挂断影响
            with contextlib.suppress(ValueError):  # 不在主线程时不能装
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        pause, self._last = now - self._last, now
        if not self.received:
            self.received, self._first = number, now
        elif number != _HANGUP and pause >= _PAUSE and now - self._first >= self._patience:
            raise KeyboardInterrupt  # 终端关掉时内核与 shell 各送一次 SIGHUP，不算催促

    def check(self) -> None:
        """收到过信号就抛 Interrupted。"""
        if self.received:
            raise Interrupted(self.received)

    def marks(self) -> list:
        """本进程收到的是哪个信号，写成能在进程之间相加的几个数。"""
        return [float(bool(number) and number == self.received) for number in _NUMBERS]

    @staticmethod
    def check_marks(marks: list) -> None:
        """各进程的 marks 之和：有谁收到过信号，全体以同一个编号停下。"""
        for number, count in zip(_NUMBERS, marks):
            if count:
                raise Interrupted(number or signal.SIGTERM)
