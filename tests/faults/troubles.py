"""磁盘出错、文件大小受限、两个程序写同一个目录。"""

from __future__ import annotations

import os
import random
import time

from tests.faults import outcome, sabotage
from tests.faults.kills import after_kill, finished, precious
from tests.faults.tally import FINE, LOST, TOLD, WRONG, Tally, judge
from tests.faults.workshop import Case, Process, Workshop, run, swift

_ENOUGH = ("checkpoint.bin",)  # 训练：记录少几行不要紧，权重要一样
_PROMISES = ("没有改动任何文件", "已有的文件没有改动", "什么都没有改动")


def disk(shop: Workshop, tally: Tally, case: Case, rng: random.Random) -> None:
    """磁盘出一次错（或从此都出错），再在好的磁盘上做完。"""
    trial, kept = shop.copy(case.ready), precious(case)
    before = {path.name: outcome.raw(path) for path in trial.iterdir()}
    how, prepare = _trouble(case, rng)
    code, text = run(case.words, trial, sabotage.both(swift, prepare))
    verdict, detail = judge(code, text, allowed=(0, 1))
    problem = after_kill(case, trial)
    if verdict in (TOLD, FINE) and problem:
        verdict, detail = LOST, problem
    if verdict == TOLD and any(promise in text for promise in _PROMISES):
        changed = [name for name, mark in before.items() if not _same(trial / name, mark)]
        if changed:
            verdict, detail = WRONG, f"说没有改动，却动了 {'、'.join(changed)}"
    if verdict in (TOLD, FINE):
        only = _ENOUGH if case.name.startswith("train_gpt") else ()
        worse = finished(case, trial, kept, only)
        verdict, detail = worse or (verdict, detail)
    tally.add("磁盘出错", verdict, f"{case.name} {how}：{detail}")
    shop.clear(trial)


def _trouble(case: Case, rng: random.Random) -> tuple:
    if rng.random() < 0.4:
        size = rng.randrange(1 << 11, 1 << rng.randrange(12, 20))  # 它说的话也在文件里，要写得下
        return f"文件至多 {size} 字节", sabotage.limit(size)
    moment, number = rng.randrange(case.moments), rng.choice(sabotage.ERRORS)
    lasting = rng.random() < 0.5
    how = f"第 {moment} 个时刻{'起' if lasting else ''}{os.strerror(number)}"
    return how, sabotage.fail_at(moment, number, lasting)


def _same(path, mark: str) -> bool:
    return path.exists() and outcome.raw(path) == mark


def two_writers(shop: Workshop, tally: Tally, case: Case, rng: random.Random) -> None:
    """两个脚本差不多同时写一个目录：至少一个做成，另一个做成或被一句话拒绝，产物都完好。"""
    trial, other = shop.copy(case.ready), rng.choice((case, rng.choice(shop.cases)))
    first = Process(case.words, trial, swift)
    time.sleep(rng.uniform(0, case.seconds))
    extra = shop.folder / "second"
    second = Process(other.words, trial, sabotage.both(_say_into(extra), swift))
    codes = first.wait(), second.wait()
    texts = first.text(), extra.read_text(encoding="utf-8", errors="replace")
    verdicts = [judge(code, text, (0, 1)) for code, text in zip(codes, texts)]
    worst = next((each for each in verdicts if each[0] not in (TOLD, FINE)), None)
    half = outcome.half_made(trial)
    if worst is None and half:
        worst = LOST, f"半成品：{'、'.join(half)}"
    if worst is None and codes[0] and codes[1] and case is other:
        worst = WRONG, f"两个都没有做成：{texts}"
    if worst is None and case is other:
        worst = finished(case, trial, {})
    told = TOLD if any(codes) else FINE
    verdict, detail = worst or (told, "")
    tally.add("两个一起写", verdict, f"{case.name} 与 {other.name}：{detail}")
    shop.clear(trial)


def _say_into(path):
    """prepare：输出改到 path，免得与另一个混在一起。"""

    def prepare() -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)

    return prepare
