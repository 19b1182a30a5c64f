"""先练老师，再练学生：TEACHER 写一个数，就照同样的配置、别的种子先练这么多个老师。

老师各在 WORK_DIR/teacher1、teacher2……里，都是平常的训练；停在哪一次，重新运行同一条命令就
从那里接着。
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import dataset
from support import artefacts, files
from support.console import UserError

_INPUTS = ("FROM", "REPLAY_DATA")


class Lesson(NamedTuple):
    """一次训练。"""

    values: dict  # config.values()
    title: str = ""  # 给人看的；只有一次时是空的


def number(given: str) -> int | None:
    """TEACHER 写的是几个老师；写的是路径、没有写时为 None。"""
    return int(given) if given.strip().isdecimal() else None


def plan(values: dict) -> list:
    """依次要做的训练；TEACHER 不是一个数时只有原来的一次。"""
    count, home = number(values["TEACHER"]), Path(values["WORK_DIR"])
    if count is None:
        return [Lesson(values)]
    folders = [str(home / f"{artefacts.TEACHER}{n}") for n in range(1, count + 1)]
    shared = {**values, **_inputs(values), "TEACHER": ""}
    lessons = [
        Lesson(
            {**shared, "WORK_DIR": folder, "SEED": values["SEED"] + n},
            f"【老师 {n}/{count}】{folder}",
        )
        for n, folder in enumerate(folders, 1)
    ]
    student = {**values, "TEACHER": ",".join(folders)}
    return [*lessons, Lesson(student, "【学生】" if lessons else "")]


def _inputs(values: dict) -> dict:
    """写成相对 WORK_DIR 的输入，从老师的目录里也找得到。"""
    found = {name: files.find_input(values[name], values["WORK_DIR"]) for name in _INPUTS}
    return {name: str(path) for name, path in found.items() if path is not None}


def lend_data(work_dir: str, folder: str) -> None:
    """老师的目录 folder 里也要有 WORK_DIR 的那份 dataset.bin；同一块盘上是硬链接，不占地方。"""
    source = files.work_path(work_dir, artefacts.DATASET)
    target = files.work_path(folder, artefacts.DATASET)
    wanted = _fingerprint(source)
    with contextlib.suppress(UserError):  # 没有，或坏了
        if _fingerprint(target) == wanted:
            return
    files.keep_aside(target)
    try:
        os.link(source, target)
    except FileExistsError:
        pass  # 这台机器的另一个进程刚刚放好
    except OSError:  # 不同的盘，或没有硬链接的文件系统
        with open(source, "rb") as data, files.atomic_write(target, "wb") as out:
            shutil.copyfileobj(data, out)


def _fingerprint(path: Path) -> str:
    with dataset.load(path) as data:
        return data.fingerprint
