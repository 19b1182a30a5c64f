"""评一组诗：全部指标；每组诗一列，数字带区间，表、JSON、图都从同一张指标表来。"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from poems import wording
from support import console, files, picture
from writing import measures, originality
from writing.fluency import Judge
from writing.measures import Figure
from writing.originality import CopyIndex

COPY_CHARS = 12  # 相同片段达到这么多字，算这首诗有抄


class Metric(NamedTuple):
    """一个指标怎样写；draw 为真的进图。"""

    name: str
    label: str
    form: str = "{:.3f}"
    draw: bool = False


class Column(NamedTuple):
    """一组诗的结果；numbers 里的值是 Figure、普通的数或 None。"""

    label: str
    numbers: dict


METRICS = (
    Metric("bits_per_char", "比特每字", "{:.4f}"),
    Metric("perplexity", "困惑度（每 token）", "{:.2f}"),
    Metric("poems", "评了几首", "{}"),
    Metric("skipped", "太长跳过", "{}"),
    Metric("written", "写了几首", "{}"),
    Metric("ended_share", "自己收尾", "{:.1%}", True),
    Metric("repeated_lines", "重复行", "{:.1%}", True),
    Metric("lines", "每首行数", "{:.1f}", True),
    Metric("line_chars", "每行字数", "{:.1f}", True),
    Metric("line_chars_sd", "每行字数的标准差", "{:.1f}"),
    Metric("distinct_1", "distinct-1", draw=True),
    Metric("distinct_2", "distinct-2", draw=True),
    Metric("js_lines", "行数分布的距离", draw=True),
    Metric("js_line_chars", "行长分布的距离", draw=True),
    Metric("js_stanzas", "节数分布的距离", draw=True),
    Metric("shared_4grams", "与同组的诗相同的四字", "{:.1%}", True),
    Metric("title_mrr", "切题（16 选 1）", draw=True),
    Metric("fluency", "裁判的比特每字", "{:.2f}", True),
    Metric("copied_share", f"有 {COPY_CHARS} 字以上与训练诗相同", "{:.1%}", True),
    Metric("longest_copy_mean", "最长相同片段的平均字数", "{:.1f}"),
    Metric("longest_copy", "最长相同片段", "{}"),
)


# ── 量 ────────────────────────────────────────────────────────────────


class Yardstick(NamedTuple):
    """量诗的尺子：比分布用的人写的诗、查抄索引、裁判；没有训练诗时后两样是 None。"""

    human: list
    index: CopyIndex | None = None
    judge: Judge | None = None


def appraise(texts: list, yard: Yardstick, seed: int = 0) -> dict:
    """一组诗的指标：名字 → Figure、数或 None。"""
    lengths = [len(line) for text in texts for line in wording.verse_lines(text)]
    return {
        **measures.shape(texts, yard.human, seed),
        "line_chars_sd": float(np.std(lengths)) if lengths else 0.0,
        "fluency": _fluency(texts, yard.judge, seed),
        **_copies(texts, yard.index, seed),
    }


def _fluency(texts: list, judge: Judge | None, seed: int) -> Figure | None:
    if judge is None:
        return None
    units = [originality.encode(text) for text in texts]
    bits = [judge.char_bits(each)[:-1].sum() for each in units]
    return measures.ratio(bits, list(map(len, units)), seed)


def _copies(texts: list, index: CopyIndex | None, seed: int) -> dict:
    if index is None or not texts:
        return dict.fromkeys(("copied_share", "longest_copy_mean", "longest_copy"))
    lengths = [index.longest_copy(text).length for text in texts]
    return {
        "copied_share": measures.ratio([length >= COPY_CHARS for length in lengths], seed=seed),
        "longest_copy_mean": sum(lengths) / len(lengths),
        "longest_copy": max(lengths),
    }


# ── 给人看 ────────────────────────────────────────────────────────────


def table(columns: list) -> str:
    """并排的表：一列一组诗，有区间的写在括号里。"""
    rows = [["", *(column.label for column in columns)]]
    for metric in METRICS:
        cells = [_cell(column.numbers.get(metric.name), metric.form) for column in columns]
        if set(cells) != {"—"}:
            rows.append([metric.label, *cells])
    widths = [max(map(console.width, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(console.pad, row, widths)).rstrip() for row in rows)


def _cell(value: object, form: str) -> str:
    if value is None:
        return "—"
    if not isinstance(value, Figure):
        return form.format(value)
    return f"{form.format(value.value)}（{form.format(value.low)}～{form.format(value.high)}）"


def record(column: Column) -> dict:
    """JSON 用：每个指标一个数，区间都在 intervals 里。"""
    figures = {k: v for k, v in column.numbers.items() if isinstance(v, Figure)}
    plain = {k: v.value if k in figures else v for k, v in column.numbers.items()}
    return {**plain, "intervals": {k: [v.low, v.high] for k, v in figures.items()}}


def draw(columns: list, path: Path) -> bool:
    """每个指标一格，各组从上到下，虚线是最后一列（人写的）；没有 matplotlib 时为 False。"""
    pyplot = picture.setup_plot()
    if pyplot is None:
        return False
    shown = [metric for metric in METRICS if metric.draw]
    rows = -(-len(shown) // 4)
    size = (13, rows * (1.0 + 0.28 * len(columns)))
    figure, grid = pyplot.subplots(rows, 4, figsize=size, layout="constrained", squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for metric, axes in zip(shown, grid.flat):
        _draw_metric(axes, metric, columns)
    labels = [column.label for column in columns[:-1]]
    for axes in grid[:, 0]:
        human = picture.plot_text(columns[-1].label, "human")
        axes.set_yticks(range(len(columns)), [*labels, human])
    temporary = Path(path).with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    files.replace(temporary, Path(path))
    return True


def _draw_metric(axes: Any, metric: Metric, columns: list) -> None:
    for place, column in enumerate(columns):
        figure = column.numbers.get(metric.name)
        if figure is None:
            continue
        human = place == len(columns) - 1
        color = "#6b8e4e" if human else "#3b6ea5"
        axes.plot([figure.low, figure.high], [place, place], color=color)
        axes.plot([figure.value], [place], "o", color=color)
        if human:
            axes.axvline(figure.value, color=color, ls="--", alpha=0.5)
    axes.set_title(picture.plot_text(metric.label, metric.name), fontsize=10)
    axes.set_yticks(range(len(columns)), [""] * len(columns))
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.grid(alpha=0.25, axis="x")
