"""标准输入输出：缺了的补上，断了的丢开。"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO

_BROKEN = (OSError, ValueError)  # ValueError：流已经关了


def prepare() -> None:
    """缺的标准流（pythonw、服务、2>&-）接到空设备；控制台写不出的字显示为 ?。"""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def keep_on_without_output() -> None:
    """从此输出断了（终端关了、管道断了、磁盘满了）也不出错，只是没人看见。"""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Lasting):  # 笔记本里几个 %run 用的是同一对流
            setattr(sys, name, Lasting(stream))


def is_terminal(stream: TextIO | None) -> bool:
    """有没有人在屏幕前看；没有这个流、它已经关了，都是没有。"""
    with contextlib.suppress(*_BROKEN):
        return stream is not None and stream.isatty()
    return False


def is_notebook(stream: TextIO | None) -> bool:
    """写进笔记本的格子里：不是终端，却有人在看。"""
    inner = stream.stream if isinstance(stream, Lasting) else stream
    return type(inner).__module__.startswith("ipykernel")


def discard(stream: TextIO) -> None:
    """以后写到这里的都丢掉，缓冲里剩下的也是：进程结束时就不会再为它出错。"""
    with contextlib.suppress(*_BROKEN):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Lasting:
    """写不出去也不出错的输出流：第一次写不出去时，以后的都丢掉。"""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except _BROKEN:
            discard(self.stream)
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except _BROKEN:
            discard(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
