"""test_loop.py 启动的训练进程：在指定的一刻用 SIGKILL 杀死自己。

参数：配置值的 JSON 文件；时刻 none | update:N（第 N 次更新之前）| write:N（第 N 次写文件写到一半）
| rename:N（第 N 次改名之前）。
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import console, files, hardware
from training import loop, runlog


def kill() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def counted(function, number: int):
    """第 number 次调用之前杀死自己。"""
    calls = {"left": number}

    def wrapper(*args, **options):
        calls["left"] -= 1
        if calls["left"] < 0:
            kill()
        return function(*args, **options)

    return wrapper


def main() -> int:
    values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    hardware.measure_peak = lambda *_: 1e11
    runlog.draw = lambda *_: False
    moment, _, number = sys.argv[2].partition(":")
    if moment == "update":
        loop.one_update = counted(loop.one_update, int(number))
    if moment == "write":
        os.fsync = counted(os.fsync, int(number))
    if moment == "rename":
        files.replace = counted(files.replace, int(number))
    return loop.exit_code(loop.train(values))


if __name__ == "__main__":
    console.run(main)
