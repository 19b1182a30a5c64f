"""WORK_DIR 的锁：同一时刻只有一个程序往里面写；读的不受影响。

锁由系统管着，持有它的进程一死就自动放开；文件里写着是谁，给下一个看。
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import IO, Iterator

from support import artefacts, console, files
from support.console import UserError

_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_FAR = 1 << 20  # Windows 锁住的字节别人读不了，所以锁在内容之外


@contextlib.contextmanager
def writing(folder: Path | str) -> Iterator[None]:
    """写 folder 期间持有它的锁，先清掉被杀的程序留下的半成品；别人正在写时抛 UserError。"""
    path = files.work_path(str(folder), artefacts.LOCK)
    with _held(path) as file:
        file.truncate(0)
        file.write(_me().encode("utf-8"))
        file.flush()
        files.sweep(path.parent)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows 上开着的文件删不掉，留着也无妨
                path.unlink()


@contextlib.contextmanager
def _held(path: Path) -> Iterator[IO[bytes]]:
    while True:
        with _opened(path) as file:
            try:
                _lock(file)
            except OSError as error:
                if error.errno in _HELD:
                    raise UserError(_refusal(path)) from None
                # 不支持锁的文件系统：照常写
            if _same(file, path):
                yield file
                return


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(path, "a+b", buffering=0)
    except OSError as error:
        raise UserError(console.explain(error)) from error


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(_FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return
    import fcntl

    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _same(file: IO[bytes], path: Path) -> bool:
    """拿到的还是叫这个名字的文件；上一个主人放开时刚好删掉了它，就要重来。"""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _me() -> str:
    me = {
        "script": os.path.basename(sys.argv[0]) or "python",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": time.strftime("%m-%d %H:%M:%S"),
    }
    return json.dumps(me, ensure_ascii=False)


def _refusal(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        who = "{script}（进程 {pid}，主机 {host}，{started} 开始）".format(**owner)
    except (OSError, ValueError, TypeError, LookupError):
        who = "另一个程序"
    return (
        f"{who} 正在写 WORK_DIR={path.parent}，两个一起写会互相覆盖；什么都没有改动。\n"
        "请等它结束，或换一个目录：--WORK_DIR=…"
    )
