"""一次训练留下的记录：train_log.csv、samples.txt、loss.png、run_info.json。

续训时先把记录裁到检查点的位置，所以没有缺行也没有重行。
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from support import files, picture

COLUMNS = ("iter", "update", "loss", "val_bpc", "lr", "tokens", "tokens_per_s", "seconds")
LOG, PICTURE, SAMPLES, INFO = "train_log.csv", "loss.png", "samples.txt", "run_info.json"


class TrainLog:
    """train_log.csv：每次更新一行，写完即落到操作系统。"""

    def __init__(self, path: Path, last_update: int) -> None:
        """打开（没有就建）并裁掉 last_update 之后的行。"""
        self.path = Path(path)
        rows = [row for row in read(path) if int(row["update"]) <= last_update]
        with files.atomic_write(self.path) as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self._file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")

    def add(self, row: dict) -> None:
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list:
    """train_log.csv 的完整行；没有文件时为空，写了一半的末行不算。"""
    path = Path(path)
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1].splitlines()
    rows = csv.DictReader(whole)
    return [row for row in rows if all(row.get(name) is not None for name in COLUMNS)]


_SAMPLE_HEAD = re.compile(r"^── 迭代 (\d+) ", flags=re.M)


def add_sample(path: Path, iteration: int, prompt: str, poem: str) -> None:
    """往 samples.txt 里添一首。"""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(f"── 迭代 {iteration} ── {prompt}\n{poem.strip()}\n\n")


def trim_samples(path: Path, last_iteration: int) -> None:
    """裁掉 last_iteration 之后的示例诗。"""
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
    temporary = Path(picture_path).with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    files.replace(temporary, Path(picture_path))
    return True


def _draw_validation(axes, scored, text):
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


def _smooth(values, weight=0.9):
    """带偏差校正的指数滑动平均；跳过非有限值。"""
    average, total, out = 0.0, 0.0, []
    for value in values:
        if value == value and abs(value) != float("inf"):
            average = weight * average + (1 - weight) * value
            total = weight * total + (1 - weight)
        out.append(average / total if total else float("nan"))
    return out
