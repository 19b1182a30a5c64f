"""停下的信号：编号在进程之间相加也认得出来，挂断算数，nohup 照旧。"""

from __future__ import annotations

import signal
import sys

import pytest

from training import stop
from training.stop import Interrupted, StopSignal

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows 没有 SIGHUP")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_marks_of_all_ranks_name_the_signal(number):
    asked, other = StopSignal(), StopSignal()
    asked.received = int(number)
    total = [a + b for a, b in zip(asked.marks(), other.marks())]
    with pytest.raises(Interrupted) as caught:
        StopSignal.check_marks(total)
    assert caught.value.number == number
    StopSignal.check_marks(other.marks())  # 谁也没收到：不停


@posix
def test_hangup_asks_once_however_often_it_comes():
    with StopSignal() as asked:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)  # 终端关掉时内核与 shell 各送一次
        assert asked.received == signal.SIGHUP
        with pytest.raises(Interrupted):
            asked.check()


@posix
def test_nohup_is_respected():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked.received == 0
    finally:
        signal.signal(signal.SIGHUP, old)


def test_second_interrupt_does_not_wait(monkeypatch):
    """连着来的是同一次；停了一秒再来的才是第二次。"""
    now = [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])
    with StopSignal() as asked:
        for pause in (0.0, 0.02, 0.6, 0.9, 0.9):  # 按住不放，或连按
            now[0] += pause
            signal.raise_signal(signal.SIGINT)
        assert asked.received == signal.SIGINT
        now[0] += 1.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
