"""SIGKILL 与信号：每个会写的脚本，在随机的时刻、或正要改动磁盘的那一刻。"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from support import artefacts
from tests.faults import outcome, sabotage
from tests.faults.tally import FINE, LOST, TOLD, TRACE, WRONG, Tally, judge
from tests.faults.workshop import CAN_FORK, KILLED, ROOT, Case, Process, Workshop, run, swift

# 使用者的心血：换新的以后，旧的也要还在（改了名）
_PRECIOUS = (artefacts.TOKENIZER_HUG, artefacts.TOKENIZER_BPE, artefacts.CHECKPOINT)
_PRECIOUS += (artefacts.BEST_MODEL, artefacts.MODEL_INT8, artefacts.EXPORT_HF)
_PRECIOUS += (artefacts.EXPORT_GGUF, artefacts.IMPORTED)
_FOLDERS = (artefacts.EXPORT_HF, artefacts.EXPORT_GGUF)  # 目录换不成一步：旧的改了名，新的还没有来
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def kill(shop: Workshop, tally: Tally, case: Case, rng: random.Random) -> None:
    """杀一到五次，再做完，与没被打扰的比。"""
    trial, kept = shop.copy(case.ready), precious(case)
    part = f"杀死 {script(case)}"
    for _ in range(rng.randint(1, 5)):
        how = _strike(case, trial, rng)
        if how is None:
            break
        problem = after_kill(case, trial)
        tally.add(part, LOST if problem else FINE, f"{case.name} {how}：{problem}")
    problem = finished(case, trial, kept)
    if problem is not None:
        tally.add(part, problem[0], f"{case.name} 再做一遍：{problem[1]}")
    shop.clear(trial)


def _strike(case: Case, trial: Path, rng: random.Random) -> str | None:
    """杀死一次，返回怎样杀的；它先做完了就是 None。"""
    if CAN_FORK and rng.random() < 0.7:
        moment, after = rng.randrange(case.moments), rng.random() < 0.5
        prepare = sabotage.both(swift, sabotage.kill_at(moment, after))
        code, _ = run(case.words, trial, prepare)
        return f"第 {moment} 个时刻{'之后' if after else ''}" if code == KILLED else None
    process, wait = Process(case.words, trial, swift), rng.uniform(0, case.seconds)
    time.sleep(wait)
    process.kill()
    return f"{wait:.3f} 秒后" if process.poll() == KILLED else None


def script(case: Case) -> str:
    """哪个脚本，不论目录里有没有上一次的产物。"""
    return case.name.split("（")[0]


def precious(case: Case) -> dict:
    """这一步要换掉的心血：名字 → 字节的摘要。"""
    names = [name for name in case.writes if name in _PRECIOUS and (case.ready / name).exists()]
    if case.name.startswith("data_clean（自己"):
        names.append(artefacts.POEMS)
    return {name: outcome.raw(case.ready / name) for name in names}


def after_kill(case: Case, trial: Path) -> str:
    """刚被杀死时哪里不好；没有不好是空的。"""
    half = outcome.half_made(trial)
    if half:
        return f"半成品顶着真名字：{'、'.join(half)}"
    gone = [path.name for path in case.ready.iterdir() if not (trial / path.name).exists()]
    gone = [name for name in gone if name not in (*_FOLDERS, *_RENAMED_FIRST)]
    return f"不见了：{'、'.join(gone)}" if gone else ""


# 新的训练一开始就改名的：记录接不下去，没有它们也不丢模型
_RENAMED_FIRST = (artefacts.TRAIN_LOG, artefacts.SAMPLES, artefacts.RUN_INFO)
_RENAMED_FIRST += (artefacts.LOSS_PICTURE, artefacts.CHECKPOINT_PREVIOUS)


def finished(case: Case, trial: Path, kept: dict, only: tuple = ()) -> tuple | None:
    """把它做完，与没被打扰的比：(坏的结局, 说明)，好的是 None。only：只比这些产物。"""
    code, text = run(case.words, trial, swift)
    verdict, detail = judge(code, text, allowed=(0,))
    if verdict != FINE:
        return verdict, detail
    names = only or case.writes
    wanted, found = outcome.contents(case.calm, names), outcome.contents(trial, names)
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        return WRONG, f"与没被打扰的不同：{'、'.join(different)}"
    left = outcome.leftovers(trial)
    if left:
        return WRONG, f"留下了 {'、'.join(left)}"
    here = outcome.hashes(trial)
    lost = [name for name, mark in kept.items() if mark not in here]
    return (LOST, f"原来的 {'、'.join(lost)} 没有了") if lost else None


def signals(shop: Workshop, tally: Tally, case: Case, rng: random.Random) -> None:
    """一到四个同样的信号，间隔至多 60 毫秒；停得安静，再做完与没被打扰的一样。"""
    trial, kept = shop.copy(case.ready), precious(case)
    name = rng.choice(_SIGNALS)
    number, count = int(getattr(signal, name)), rng.choice((1, 1, 2, 3, 4))
    process = Process(case.words, trial, swift)
    wait = rng.uniform(0, 1.1 * case.seconds)
    time.sleep(wait)
    for _ in range(count):
        process.send(number)
        time.sleep(rng.uniform(0, 0.06 / count))
    code = process.wait()
    usual = (0, 128 + number) if name == "SIGINT" else (0, 128 + number, -number)
    text = process.text()
    verdict, detail = judge(0 if code == -number else code, text, usual)
    if verdict == TRACE and str(ROOT / case.words[0]) not in text:  # 脚本的第一行还没有运行
        verdict, detail = FINE, ""
    detail = detail and f"{case.name} {count} 个 {name}，{wait:.3f} 秒后：{detail}"
    problem = after_kill(case, trial)
    if verdict in (TOLD, FINE) and problem:
        verdict, detail = LOST, problem
    if verdict in (TOLD, FINE):
        worse = finished(case, trial, kept)
        verdict, detail = worse or (verdict, detail)
    tally.add("信号", verdict, detail)
    shop.clear(trial)


_EARLY = ("data_clean.py", "train_gpt.py", "infere.py", "evaluate.py", "quantize.py", "export.py")
_EARLY += ("diagnose.py", "serve.py", "train_dataset_one.py", "hug_face_tokenizer.py")


_GUARD = "from support import console"


def early_interrupt(shop: Workshop, tally: Tally, rng: random.Random) -> None:
    """真的启动一个 Python，导入的时候就按 Ctrl-C。"""
    trial, script = shop.copy(shop.whole), rng.choice(_EARLY)
    command = [sys.executable, str(ROOT / script)]
    process = subprocess.Popen(
        command, cwd=trial, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.PIPE
    )
    wait = rng.uniform(0.15, 2.0)
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[0].decode("utf-8", "replace")
    verdict, detail = judge(process.returncode, text, (0, 130))
    # 最初的几十毫秒里，Python 自己还没有起好，或还没有导入完接住它的那一行：谁也接不住
    if verdict not in (TOLD, FINE) and (str(ROOT) not in text or _GUARD in text):
        verdict = FINE
    tally.add("很早的 Ctrl-C", verdict, f"{script} {wait:.2f} 秒：{detail}")
    shop.clear(trial)
