"""SIGKILL 演习：python -m tests.many_kills [--kills 50] [--seed 0]（约六分钟，不在测试套件里）。

同一次小训练先不受打扰地跑完，再跑一遍、在随机的时刻杀死 50 次，每次都用同一条命令接着练；
五分之二的时刻瞄准保存的中途（临时文件出现之后），五分之一在启动的任何时刻，其余在训练途中。
最后权重、优化器、位置、最佳、train_log.csv、samples.txt 必须与没被打扰的逐位相同。
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import checkpoint
from support import artefacts, console
from support.console import UserError
from tests import small_run
from tests.faults.outcome import TIMES, digest
from training import runlog

UPDATES = 1500
CHANGES = {"ACCUM_STEPS": 1, "TRAIN_ITER": UPDATES, "SAVE_EVERY": 4, "EVAL_EVERY": 40}
CHANGES.update(SAMPLE_EVERY=100, DROPOUT=0.1, WARMUP_STEPS=50)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = drill(Path(folder), given.kills, random.Random(given.seed))
    print(json.dumps(report, ensure_ascii=False))
    if report["different"]:
        raise UserError("与没被打扰的训练不同：" + "、".join(report["different"]))


def drill(folder: Path, kills: int, rng: random.Random) -> dict:
    """杀 kills 次再练完，返回统计与不同之处。"""
    data = small_run.build_data(folder)
    calm, harried = (small_run.work_dir(folder / name, data) for name in ("calm", "harried"))
    launch(calm).wait()
    aims = {"save": 0, "start": 0, "train": 0}
    with console.progress(kills, "杀死", "次") as bar:
        for _ in range(kills):
            aim = rng.choices(("save", "start", "train"), (2, 1, 2))[0]
            process = launch(harried)
            killed = strike(process, harried, aim, rng)
            if not killed:
                raise UserError(f"训练在杀满 {kills} 次以前就结束了；请减小 --kills")
            aims[aim] += 1
            bar.update(1)
    reached = len(runlog.read(harried / artefacts.TRAIN_LOG))
    launch(harried).wait()
    ours, theirs = outcome(calm), outcome(harried)
    return {
        "kills": sum(aims.values()),
        **aims,
        "updates": UPDATES,
        "updates_at_last_kill": reached,
        "weights_sha256": [result["权重"][:16] for result in (ours, theirs)],
        "different": [name for name in ours if ours[name] != theirs[name]],
    }


def launch(folder: Path) -> subprocess.Popen:
    """在 folder 里开始（或接着）那次训练。"""
    values = small_run.values(folder, **CHANGES)
    path = folder / "values.json"
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    command = [sys.executable, str(small_run.ROOT / "tests/training_worker.py"), str(path), "none"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def strike(process, folder: Path, aim: str, rng: random.Random) -> bool:
    """等到那一刻杀死进程；它已自己结束时返回 False。"""
    if aim == "start":
        time.sleep(rng.uniform(0.0, 4.0))
    else:
        size = log_size(folder)
        wait_for(process, lambda: log_size(folder) > size)
        time.sleep(rng.uniform(0.0, 0.3))
    if aim == "save":
        temporary = folder / (artefacts.CHECKPOINT + ".tmp")
        wait_for(process, temporary.exists)
        time.sleep(rng.uniform(0.0, 0.004))
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def wait_for(process, happened) -> None:
    """忙等到 happened() 为真或进程结束。"""
    while process.poll() is None and not happened():
        time.sleep(0.0002)


def log_size(folder: Path) -> int:
    path = folder / artefacts.TRAIN_LOG
    return path.stat().st_size if path.exists() else 0


def outcome(folder: Path) -> dict:
    """要逐位相同的一切：名字 → 摘要。"""
    state = checkpoint.load(folder / artefacts.CHECKPOINT)
    best = checkpoint.load(folder / artefacts.BEST_MODEL)
    position = {k: v for k, v in state["position"].items() if k not in ("seconds", "pending")}
    with open(folder / artefacts.TRAIN_LOG, encoding="utf-8", newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    return {
        "权重": digest(state["weights"]),
        "最好的权重": digest(best["weights"]),
        "优化器": digest(state["optimizer"]),
        "位置": digest(position),
        "最佳": digest(state["best"]),
        "train_log.csv": digest(rows),
        "samples.txt": digest((folder / artefacts.SAMPLES).read_text(encoding="utf-8")),
    }


if __name__ == "__main__":
    console.run(main)
