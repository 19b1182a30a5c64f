"""训练的现状：把 WORK_DIR 里的 train_log.csv、samples.txt、run_info.json 读成一份小 JSON。

训练随时在写这些文件，所以写了一半的行跳过，文件不在就当还没有。
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any, Dict

from support import artefacts
from training import overfit, reference, runlog

Row = Dict[str, Any]  # train_log.csv 的一行：名字 → 数或 None

MAX_POINTS = 400  # 曲线最多给页面多少个点
MAX_SAMPLES = 24
MAX_SAMPLE_BYTES = 256 * 1024  # samples.txt 只读末尾这么多
_QUIET_SECONDS = 120  # 至少静默这么久才算停了
_SAMPLE_HEAD = re.compile(r"^── 迭代 (\d+) ── (.*)$", flags=re.M)


def status(work_dir: str, now: float | None = None) -> dict[str, Any]:
    """训练页要的一切：曲线、示例、速度、剩余秒数。没有训练过时 state 为 none。"""
    folder = Path(work_dir)
    now = time.time() if now is None else now
    rows = read_log(folder / artefacts.TRAIN_LOG)
    info = _read_info(folder / artefacts.RUN_INFO)
    samples = read_samples(folder / artefacts.SAMPLES)
    if not rows:
        started = bool(info) and _age(folder / artefacts.RUN_INFO, now) < 30 * 60
        return {"state": "starting" if started else "none", "samples": samples}
    last = rows[-1]
    total = _number(info.get("train_iter"))
    speed = _recent_speed(rows)
    evaluated = [row for row in rows if row["val_bpc"] is not None]
    best = min(evaluated, key=lambda row: row["val_bpc"], default=None)
    over = _overfitting(evaluated)
    return {
        "state": _state(last, total, _age(folder / artefacts.TRAIN_LOG, now), rows),
        "iter": last["iter"],
        "update": last["update"],
        "total": total,
        "loss": last["loss"],
        "lr": last["lr"],
        "tokens": last["tokens"],
        "tokens_per_s": speed,
        "seconds": last["seconds"],
        "eta": _eta(rows, total),
        "memory_mb": _number(info.get("memory_mb")),
        "best": best and {"iter": best["iter"], "val_bpc": best["val_bpc"]},
        "overfitting": over,
        "mend": None if over is None else _mend(over, info),
        "reference": _reference(rows, info),
        "train": thin([[r["iter"], r["loss"]] for r in rows if r["loss"] is not None]),
        "val": thin([[r["iter"], r["val_bpc"]] for r in evaluated]),
        "rate": thin([[r["iter"], r["lr"]] for r in rows if r["lr"] is not None]),
        "speed": thin([[r["iter"], r["tokens_per_s"]] for r in rows if r["tokens_per_s"]]),
        "samples": samples,
    }


def read_log(path: Path) -> list[Row]:
    """train_log.csv → 行的列表（名字 → 数或 None）；没有 iter 的行跳过，iter 倒退时只留新的。"""
    rows = []
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            for record in csv.DictReader(line.replace("\0", "") for line in file):
                row = {name: _number(record.get(name)) for name in runlog.COLUMNS}
                if row["iter"] is None or row["seconds"] is None:  # 写了一半，或不是数据
                    continue
                while rows and rows[-1]["iter"] >= row["iter"]:
                    rows.pop()
                rows.append(row)
    except (OSError, csv.Error):
        return rows
    return rows


def read_samples(path: Path) -> list[dict[str, Any]]:
    """samples.txt 末尾的示例诗，新的在前：[{"iter", "prompt", "text"}, …]"""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - MAX_SAMPLE_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return split_samples(text)[::-1][:MAX_SAMPLES]


def split_samples(text: str) -> list[dict[str, Any]]:
    """runlog.add_sample 写的「── 迭代 N ── 题目」把示例分开；第一个标题之前的残文不要。"""
    parts = _SAMPLE_HEAD.split(text)[1:]  # 迭代, 题目, 诗, 迭代, 题目, 诗, …
    samples = zip(parts[::3], parts[1::3], parts[2::3])
    return [
        {"iter": int(iteration), "prompt": prompt.strip(), "text": poem.strip()}
        for iteration, prompt, poem in samples
        if poem.strip()
    ]


def thin(points: list[list[float]], limit: int = MAX_POINTS) -> list[list[float]]:
    """把 [[x, y], …] 变成至多 limit 个点：相邻的点取平均，最后一个点原样保留。"""
    if len(points) <= limit:
        return points
    size = math.ceil((len(points) - 1) / (limit - 1))
    groups = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    means = [[group[-1][0], sum(y for _, y in group) / len(group)] for group in groups]
    return [*(point for point in means if point[0] < points[-1][0]), points[-1]]


def _recent_speed(rows: list[Row]) -> float | None:
    """最近二十次更新的 token/s（中位数，不受验证与保存的影响）。"""
    recent = sorted(r["tokens_per_s"] for r in rows[-20:] if r["tokens_per_s"])
    return recent[len(recent) // 2] if recent else None


def _eta(rows: list[Row], total: float | None) -> int | None:
    """剩余秒数：按最近的迭代速度；不知道总数时为 None。"""
    last = rows[-1]
    if not total or last["iter"] >= total:
        return 0 if total else None
    first = rows[max(0, len(rows) - 200)]
    if first is last:
        first = {"iter": 0, "seconds": 0}
    spent, done = last["seconds"] - first["seconds"], last["iter"] - first["iter"]
    return round((total - last["iter"]) * spent / done) if spent > 0 and done > 0 else None


def _state(last: Row, total: float | None, age: float, rows: list[Row]) -> str:
    if total and last["iter"] >= total:
        return "done"
    gaps = sorted(b["seconds"] - a["seconds"] for a, b in zip(rows[-21:], rows[-20:]))
    slowest = gaps[-1] if gaps else 0
    return "running" if age < max(_QUIET_SECONDS, 5 * slowest) else "stopped"


def _overfitting(evaluated: list[Row]) -> int | None:
    """过拟合开始的迭代：验证最低的那一次；没有过拟合时为 None。"""
    if not evaluated:
        return None
    scores = [row["val_bpc"] for row in evaluated]
    best = min(range(len(scores)), key=scores.__getitem__)
    over = overfit.began(scores[best], scores[-1], len(scores) - 1 - best)
    return evaluated[best]["iter"] if over else None


def _mend(over: int, info: dict[str, Any]) -> str:
    """过拟合怎样办。"""
    return overfit.mend(over, _number(info.get("dropout")) or 0.0, bool(info.get("taught")))


def _reference(rows: list[Row], info: dict[str, Any]) -> dict[str, Any] | None:
    """差不多的参照：名字、一句话，和换成这次训练的迭代数的两条曲线；没有时为 None。"""
    last, found = rows[-1], reference.for_run(info)
    if found is None or not last["tokens"] or not last["iter"]:
        return None
    gap = reference.compare(rows, found)
    scale = last["iter"] / last["tokens"]
    until = max(last["iter"], _number(info.get("train_iter")) or 0)

    def over_iterations(curve: list) -> list[list[float]]:
        moved = [[round(tokens * scale), value] for tokens, value in curve]
        return thin([point for point in moved if point[0] <= until])

    return {
        "name": found.name,
        "text": gap and gap.text(found.name),
        "normal": gap is None or gap.normal,
        "train": over_iterations(found.loss),
        "val": over_iterations(found.val),
    }


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return info if isinstance(info, dict) else {}


def _number(value: Any) -> float | None:
    """有限的数，整数值给 int；别的都是 None。"""
    if isinstance(value, bool) or value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except OSError:
        return math.inf
