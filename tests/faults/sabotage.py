"""在子进程里动手脚：数着系统调用，到第几次时杀死自己、出系统错误；限制文件大小与内存。"""

from __future__ import annotations

import builtins
import errno
import os
import signal
import tempfile
from pathlib import Path

# 改变磁盘上样子的调用；两次之间，名字与内容不变
_CALLS = ("replace", "rename", "link", "unlink", "mkdir", "rmdir", "fsync")
ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT)


def count(place: Path):
    """prepare：每有一次这样的调用，就在 place 里写一个字节。"""

    def prepare() -> None:
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        _watch(lambda number, name: os.write(handle, b"."))

    return prepare


def kill_at(moment: int, after: bool = False):
    """prepare：第 moment 次调用之前（after：做完以后）杀死自己。"""
    return lambda: _watch(_at(moment, lambda: os.kill(os.getpid(), signal.SIGKILL)), after)


def fail_at(moment: int, number: int, lasting: bool = False):
    """prepare：第 moment 次调用出系统错误 number；lasting：以后的也都出错。"""

    def deed() -> None:
        raise OSError(number, os.strerror(number))

    return lambda: _watch(_at(moment, deed, lasting))


def limit(size: int, kind: str = "FSIZE"):
    """prepare：文件（FSIZE）或内存（AS）至多 size 字节。"""

    def prepare() -> None:
        import resource

        number = getattr(resource, f"RLIMIT_{kind}")
        resource.setrlimit(number, (size, resource.RLIM_INFINITY))

    return prepare


def both(*steps):
    """prepare：依次做。"""

    def prepare() -> None:
        for step in steps:
            step()

    return prepare


def _at(moment: int, deed, lasting: bool = False):
    def happened(number: int, name: str) -> None:
        if number == moment or (lasting and number > moment):
            deed()

    return happened


def _watch(happened, after: bool = False) -> None:
    """每次改动磁盘的调用，happened(第几次, 名字)。"""
    state = {"count": 0}

    def watched(name: str, function):
        def wrapper(*args, **options):
            number, state["count"] = state["count"], state["count"] + 1
            if after:
                result = function(*args, **options)
                happened(number, name)
                return result
            happened(number, name)
            return function(*args, **options)

        return wrapper

    for name in _CALLS:
        setattr(os, name, watched(name, getattr(os, name)))
    opened = builtins.open

    def open_watched(file, mode="r", *args, **options):
        writes = set(mode) & set("wax+") and not isinstance(file, int)
        function = watched("open", opened) if writes else opened
        return function(file, mode, *args, **options)

    builtins.open = open_watched
    tempfile.TemporaryFile = watched("temporary", tempfile.TemporaryFile)
