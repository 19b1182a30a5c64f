"""一次训练留下的记录：train_log.csv、samples.txt、loss.png、run_info.json。

续训时先把记录裁到检查点的位置，所以没有缺行也没有重行。
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from pathlib import Path
from typing import Any, Callable, NamedTuple

from support import files, picture
from training.position import Position
from training.settings import Settings


class Step(NamedTuple):
    """循环给出的一次更新，各列由它算出。"""

    settings: Settings
    position: Position  # 做完这次更新以后
    loss: float  # 每 token
    norm: float  # 裁剪以前梯度的范数
    lr_scale: float
    tokens: int
    seconds: float


# train_log.csv 的列 → 怎样由一次更新算出；添一列只改这里，旧文件续写时它在旧行里是空的
_COLUMNS = {
    "iter": lambda step: step.settings.iteration(step.position.update),
    "update": lambda step: step.position.update,
    "loss": lambda step: f"{step.loss:.6f}",
    "val_bpc": lambda step: "",  # 到了边界验证过才有
    "lr": lambda step: f"{step.settings.learning_rate * step.lr_scale:.6g}",
    "tokens": lambda step: step.position.tokens,
    "tokens_per_s": lambda step: f"{step.tokens / step.seconds:.1f}",
    "seconds": lambda step: f"{step.position.seconds:.2f}",
}
COLUMNS = tuple(_COLUMNS)
OLD_BPC = "old_val_bpc"  # 旧诗的验证：给了 REPLAY_DATA 才有这一列


def row(step: Step) -> dict:
    """一次更新 → train_log.csv 的一行。"""
    return {name: make(step) for name, make in _COLUMNS.items()}


class TrainLog:
    """train_log.csv：每次更新一行，写完即落到操作系统；写不下的留着，下次一起写。"""

    def __init__(self, path: Path, last_update: int, old_poems: bool = False) -> None:
        """打开（没有就建）并裁掉 last_update 之后的行；原来的损坏了就抛 ValueError。

        old_poems：多一列 OLD_BPC，已有的也留着。
        """
        self.path = Path(path)
        self._waiting = []
        rows = [row for row in read(path) if _update(row) <= last_update]
        old_poems = old_poems or any(OLD_BPC in row for row in rows)
        self._columns = (*COLUMNS, OLD_BPC) if old_poems else COLUMNS
        with files.atomic_write(self.path) as file:
            writer = _writer(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)

    def add(self, row: dict) -> None:
        """添一行；写不下时抛 OSError，文件里不留半行。"""
        self._waiting.append(row)
        text = io.StringIO()
        _writer(text, self._columns).writerows(self._waiting)
        content = text.getvalue().encode("utf-8")
        with open(self.path, "ab", buffering=0) as file:
            before = file.tell()
            if file.write(content) < len(content):
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._waiting.clear()


def _update(row: dict) -> int:
    """一行的更新编号；这一行不是本程序写的样子时抛 ValueError。"""
    if None in row:
        raise ValueError("有一行的列太多")
    int(row["iter"]), float(row["loss"])
    return int(row["update"])


def _writer(file: Any, columns: tuple) -> csv.DictWriter:
    return csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")


def read(path: Path) -> list:
    """train_log.csv 的完整行；没有文件时为空，写了一半的末行不算，那时还没有的列是空的。

    不是 CSV、不是 UTF-8 时抛 ValueError。
    """
    path = Path(path)
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1].splitlines()
    empty = dict.fromkeys(COLUMNS, "")
    try:
        rows = list(csv.DictReader(whole))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return [{**empty, **found} for found in rows if None not in found.values()]


_SAMPLE_HEAD = re.compile(r"^── 迭代 (\d+) ", flags=re.M)


def add_sample(path: Path, iteration: int, prompt: str, poem: str) -> None:
    """往 samples.txt 里添一首。"""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(f"── 迭代 {iteration} ── {prompt}\n{poem.strip()}\n\n")


def trim_samples(path: Path, last_iteration: int) -> None:
    """裁掉 last_iteration 之后的示例诗；损坏了就抛 ValueError。"""
    path = Path(path)
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    for match in _SAMPLE_HEAD.finditer(text):
        if int(match.group(1)) > last_iteration:
            with files.atomic_write(path) as file:
                file.write(text[: match.start()])
            return


def write_info(path: Path, info: dict) -> None:
    """run_info.json：给实时页面看的本次训练的计划。"""
    with files.atomic_write(path) as file:
        json.dump(info, file, ensure_ascii=False, indent=1)


def draw(log_path: Path, picture_path: Path) -> bool:
    """由 train_log.csv 画 loss.png；没有 matplotlib 或还没有数据时返回 False。"""
    pyplot = picture.setup_plot()
    rows = read(log_path)
    if pyplot is None or not rows:
        return False
    steps = [int(row["iter"]) for row in rows]
    losses = _smooth([float(row["loss"]) for row in rows])
    scored = [(int(row["iter"]), float(row["val_bpc"])) for row in rows if row["val_bpc"]]
    text = picture.plot_text
    figure, (upper, lower) = pyplot.subplots(
        2, 1, figsize=(8, 6), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    upper.plot(steps, losses, color="#3b6ea5", label=text("训练损失（左轴）", "train loss (left)"))
    upper.set_ylabel(text("训练损失（nat/token）", "train loss (nats/token)"))
    if scored:
        _draw_validation(upper.twinx(), scored, text)
    upper.legend(loc="lower left")
    upper.grid(alpha=0.25)
    lower.plot(steps, [float(row["lr"]) for row in rows], color="#6b8e4e")
    lower.set_ylabel(text("学习率", "learning rate"))
    lower.set_xlabel(text("迭代", "iteration"))
    lower.grid(alpha=0.25)
    with files.atomic_write(picture_path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)
    return True


def _draw_validation(axes: Any, scored: list, text: Callable) -> None:
    steps, values = zip(*scored)
    axes.plot(steps, values, "o-", ms=4, color="#c0504d", label=text("验证（右轴）", "validation"))
    axes.set_ylabel(text("验证：比特/字", "validation: bits/char"))
    best = min(range(len(values)), key=values.__getitem__)
    axes.plot(steps[best], values[best], "*", ms=14, color="#d9a520", label=text("最佳", "best"))
    axes.annotate(
        f"{values[best]:.3f}",
        (steps[best], values[best]),
        xytext=(6, 8),
        textcoords="offset points",
    )
    if values[-1] > values[best] * 1.01:
        axes.axvspan(
            steps[best], steps[-1], color="#c0504d", alpha=0.08, label=text("过拟合", "overfitting")
        )
    axes.legend(loc="upper right")


def _smooth(values: list, weight: float = 0.9) -> list:
    """带偏差校正的指数滑动平均；跳过非有限值。"""
    average, total, out = 0.0, 0.0, []
    for value in values:
        if value == value and abs(value) != float("inf"):
            average = weight * average + (1 - weight) * value
            total = weight * total + (1 - weight)
        out.append(average / total if total else float("nan"))
    return out
