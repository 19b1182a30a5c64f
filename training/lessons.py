"""先练老师，再练学生：TEACHER 写一个数，就照同样的配置、别的种子先练这么多个老师。

老师各在 WORK_DIR/teacher1、teacher2……里，都是平常的训练；停在哪一次，重新运行同一条命令就
从那里接着。
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import checkpoint
import dataset
from support import artefacts, files
from support.console import UserError
from training import teacher
from training.distributed import Ranks
from training.settings import Settings

_INPUTS = ("FROM", "REPLAY_DATA")


class Lesson(NamedTuple):
    """一次训练。"""

    values: dict  # config.values()
    title: str = ""  # 给人看的；只有一次时是空的


def settle(values: dict, ranks: Ranks) -> list:
    """依次要做的训练；TEACHER 不是一个数时只有原来的一次。"""
    count = teacher.number(values["TEACHER"])
    ranks.agree({"TEACHER": count})
    if not count:
        return [Lesson(values if count is None else {**values, "TEACHER": ""})]
    planned = ranks.together(lambda: plan(values, count))
    if values["RESUME"] == "off":
        ranks.in_turn(lambda: _put_aside(planned))
        return [lesson._replace(values={**lesson.values, "RESUME": "on"}) for lesson in planned]
    mine = ranks.together(lambda: begun(values["WORK_DIR"]) if ranks.reads_files else None)
    known = [found for found in ranks.all_gather(mine) if found is not None]
    if not known:
        return planned
    newest = max(known, key=lambda found: found["update"])
    return ranks.together(lambda: _go_on(values, planned, newest))


def plan(values: dict, count: int) -> list:
    """先练 count 个老师，再练学生。"""
    home = Path(values["WORK_DIR"])
    if "," in str(home):
        raise UserError(f"WORK_DIR={home} 里有逗号，TEACHER 用它分开几个老师：请换一个目录。")
    folders = [str(home / f"{artefacts.TEACHER}{n}") for n in range(1, count + 1)]
    shared = {**values, **_inputs(values), "TEACHER": ""}
    lessons = [
        Lesson(
            {**shared, "WORK_DIR": folder, "SEED": values["SEED"] + n},
            f"【老师 {n}/{count}】{folder}",
        )
        for n, folder in enumerate(folders, 1)
    ]
    return [*lessons, Lesson({**values, "TEACHER": ",".join(folders)}, "【学生】")]


def _inputs(values: dict) -> dict:
    """写成相对 WORK_DIR 的输入，从老师的目录里也找得到。"""
    found = {name: files.find_input(values[name], values["WORK_DIR"]) for name in _INPUTS}
    return {name: str(path) for name, path in found.items() if path is not None}


# ── 接着以前的 ────────────────────────────────────────────────────────


def begun(work_dir: str) -> dict | None:
    """work_dir 里已有的训练：做了几次更新，谁是老师；没有时为 None，坏了抛 UserError。"""
    saved = checkpoint.load_newest(work_dir)
    if saved is None:
        return None
    found = teacher.paths(saved["config"].get("TEACHER", ""))
    names = [re.split(r"[\\/]", path)[-1] for path in found]  # 目录可能搬过
    return {"update": saved["position"].get("update", 0), "teachers": names}


def _go_on(values: dict, planned: list, newest: dict) -> list:
    """学生已经开始了：老师得是同样的几个；练完了的不必再有老师。"""
    folders = teacher.paths(planned[-1].values["TEACHER"])
    if newest["teachers"] != [Path(folder).name for folder in folders]:
        raise UserError(
            f"{values['WORK_DIR']} 里已有一次不是由这 {len(folders)} 个老师教的训练"
            "（什么都没有改动）。\n"
            "先练老师、再从头练学生：加 --RESUME=off（旧产物会改名留着），或换一个 --WORK_DIR；\n"
            "接着原来的训练：写原来的 TEACHER（没有写过就去掉它）"
        )
    if newest["update"] >= Settings.pick(values).updates:
        return [Lesson({**values, "TEACHER": ""})]
    return planned


def _put_aside(planned: list) -> None:
    """RESUME=off 只在开头管一次：检查点都改名，往后停在哪里都从那里接着。"""
    student = planned[-1].values["WORK_DIR"]
    _fingerprint(files.work_path(student, artefacts.DATASET))  # 没有数据集就什么都不动
    for lesson in planned:
        newest = Path(lesson.values["WORK_DIR"]) / artefacts.CHECKPOINT
        previous = newest.with_name(artefacts.CHECKPOINT_PREVIOUS)
        for path in (files.temporary_of(newest), newest, previous):
            with contextlib.suppress(FileNotFoundError):  # 这台机器的另一个进程刚刚改了名
                _say_aside(path, files.keep_aside(path))


def lend_data(work_dir: str, folder: str) -> None:
    """老师的目录 folder 里也要有 WORK_DIR 的那份 dataset.bin；同一块盘上是硬链接，不占地方。"""
    source = files.work_path(work_dir, artefacts.DATASET)
    target = files.work_path(folder, artefacts.DATASET)
    wanted = _fingerprint(source)
    with contextlib.suppress(UserError):  # 没有，或坏了
        if _fingerprint(target) == wanted:
            return
    saved = checkpoint.load_newest(folder)
    if saved is not None and saved["dataset"] != wanted:
        raise UserError(
            f"{folder} 里的老师是用另一份 dataset.bin 练的（什么都没有改动）。\n"
            "重练老师与学生：加 --RESUME=off（旧产物会改名留着），或换一个 --WORK_DIR"
        )
    _say_aside(target, files.keep_aside(target))
    try:
        os.link(source.resolve(), target)
    except OSError:  # 不同的盘，没有硬链接的文件系统，那里有断了的链接
        with open(source, "rb") as data, files.atomic_write(target, "wb") as out:
            shutil.copyfileobj(data, out)


def _say_aside(path: Path, aside: Path | None) -> None:
    if aside is not None:
        print(f"已有的 {path} 改名为 {aside.name}", flush=True)


def _fingerprint(path: Path) -> str:
    with dataset.load(path) as data:
        return data.fingerprint
