"""研究的结论：每种配方的平均、标准误，与基线在同样种子上的差；表与图。"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from support import console, files, picture
from training.study import BASELINE


class Mean(NamedTuple):
    """几个数的平均与标准误；只有一个数时误差是 nan。"""

    value: float
    error: float
    count: int

    @classmethod
    def of(cls, numbers: list) -> Mean:
        count = len(numbers)
        value = sum(numbers) / count
        if count < 2:
            return cls(value, math.nan, count)
        spread = sum((number - value) ** 2 for number in numbers) / (count - 1)
        return cls(value, math.sqrt(spread / count), count)

    def text(self, sign: str = "") -> str:
        shown = f"{self.value:{sign}.3f}"
        return shown if math.isnan(self.error) else f"{shown} ± {self.error:.3f}"


class Verdict(NamedTuple):
    """一种配方。"""

    name: str
    val: Mean
    judge: Mean
    gain: Mean | None  # 与基线之差（验证），只看两边都有的种子；没有共同的种子时没有
    judged_gain: Mean | None
    seconds: float
    curves: list  # 各种子的 [(第几遍, 比特/字), …]


def verdicts(rows: list) -> list:
    """CSV 的行 → 各配方的结论，次序同出现的次序。"""
    by_name: dict[str, dict] = {}
    for row in rows:
        by_name.setdefault(row["recipe"], {})[row["seed"]] = row
    base = by_name.get(BASELINE, {})
    return [
        Verdict(
            name,
            Mean.of([float(row["val_bpc"]) for row in runs.values()]),
            Mean.of([float(row["judge_bpc"]) for row in runs.values()]),
            _difference(runs, base, "val_bpc"),
            _difference(runs, base, "judge_bpc"),
            sum(float(row["seconds"]) for row in runs.values()) / len(runs),
            [_curve(row["curve"]) for row in runs.values()],
        )
        for name, runs in by_name.items()
    ]


def _difference(runs: dict, base: dict, column: str) -> Mean | None:
    common = [seed for seed in runs if seed in base]
    gains = [float(runs[seed][column]) - float(base[seed][column]) for seed in common]
    return Mean.of(gains) if gains else None


def _curve(text: str) -> list:
    pairs = (pair.split(":") for pair in text.split())
    return [(float(passes), float(bpc)) for passes, bpc in pairs]


def table(found: list) -> str:
    """给人看的表；差是负的就是更好。"""
    rows = [("配方", "种子", "验证", f"比 {BASELINE}", "评判", f"比 {BASELINE}", "秒")]
    for each in found:
        gains = [gain.text("+") if gain else "—" for gain in (each.gain, each.judged_gain)]
        numbers = (each.val.text(), gains[0], each.judge.text(), gains[1], f"{each.seconds:.0f}")
        rows.append((each.name, str(each.val.count), *numbers))
    widths = [max(console.width(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(console.pad(cell, size) for cell, size in zip(row, widths)).rstrip()
        for row in rows
    )


def draw(found: list, path: Path) -> bool:
    """左边是各配方的验证曲线，右边是与基线之差；没有 matplotlib 时返回 False。"""
    pyplot = picture.setup_plot()
    if pyplot is None or not found:
        return False
    text = picture.plot_text
    height = max(4.0, 1.2 + 0.3 * len(found))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, height), layout="constrained")
    for number, each in enumerate(found):
        color = "black" if each.name == BASELINE else f"C{number % 10}"
        for index, curve in enumerate(each.curves):
            label = each.name if index == 0 else None
            left.plot(*zip(*curve), color=color, lw=1, label=label)
    left.set_xlabel(text("第几遍", "passes"))
    left.set_ylabel(text("验证：比特/字", "validation: bits/char"))
    left.legend(fontsize=7)
    _draw_gains(right, [each for each in found if each.gain and each.name != BASELINE])
    right.set_xlabel(text(f"验证与 {BASELINE} 之差（负的更好）", "difference (negative is better)"))
    for axes in (left, right):
        axes.grid(alpha=0.25)
    with files.atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)
    return True


def _draw_gains(axes: Any, found: list) -> None:
    found = sorted(found, key=lambda each: -each.gain.value)
    for place, each in enumerate(found):
        error = 0.0 if math.isnan(each.gain.error) else each.gain.error
        axes.errorbar(each.gain.value, place, xerr=error, fmt="o", color="#3b6ea5", capsize=3)
    axes.axvline(0, color="black", lw=1)
    axes.set_yticks(range(len(found)), [each.name for each in found])
