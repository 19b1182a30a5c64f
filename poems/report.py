"""清洗的报告：读了多少、留下多少、丢了改了什么、为什么，各举两个例子。"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, Iterable

import numpy as np

from support import artefacts, console, files, picture

NEAR_COPY = "与另一首近似，留较长的"  # 丢弃的原因之一

EXAMPLES = 2
FILES = 10  # 逐个说到文件时，至多说几个


class Tally:
    """按原因计数，每种原因留两个例子。"""

    def __init__(self, most: int = EXAMPLES) -> None:
        self.most = most  # 每种原因举几个例子
        self.counts: Counter = Counter()
        self.examples: dict[str, list] = {}

    def add(self, reason: str, **example: str) -> None:
        """记一次；example 是给人看的例子。"""
        self.counts[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if not self.has_examples(reason):
            shown.append({key: _shorten(value) for key, value in example.items()})

    def has_examples(self, reason: str) -> bool:
        """这种原因的例子够了没有。"""
        return len(self.examples.get(reason, ())) >= self.most

    def copy(self) -> Tally:
        """一份不再变的。"""
        other = Tally(self.most)
        other.counts = self.counts.copy()
        other.examples = {reason: shown[:] for reason, shown in self.examples.items()}
        return other

    def to_list(self) -> list[dict]:
        """多的在前。"""
        return [
            {"reason": reason, "count": count, "examples": self.examples[reason]}
            for reason, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        ]


class Report:
    """一次清洗的全部计数。"""

    def __init__(self) -> None:
        self.read = 0  # 首
        self.files = 0
        self.dropped = Tally()
        self.mended = Tally()
        self.encodings = Tally()
        self.layouts = Tally(FILES)  # 各个文件是怎样读的
        self.doubts = Tally(FILES)  # 像是读错了的文件
        self.broken = Tally(FILES)  # 读不下去、整个没有用的文件
        self.skipped = Tally()
        self.lengths = np.zeros(1, dtype=np.int64)  # 留下的诗：第 k 个是 k 个字的有几首

    @property
    def kept(self) -> int:
        """留下几首。"""
        return int(self.lengths.sum())

    @property
    def chars(self) -> int:
        """留下的诗共几个字。"""
        return int(self.lengths @ np.arange(len(self.lengths)))

    def count_lengths(self, lengths: np.ndarray) -> None:
        """再记下几首留下的诗，各有几个字。"""
        longest = max(len(self.lengths), int(lengths.max(initial=0)) + 1)
        grown = np.bincount(lengths.astype(np.int64), minlength=longest)
        grown[: len(self.lengths)] += self.lengths
        self.lengths = grown

    def to_dict(self, source: str, sha256: str) -> dict[str, Any]:
        """clean_report.json 的内容。"""
        return {
            "version": 1,
            "input": source,
            "output": {"file": artefacts.POEMS, "sha256": sha256},
            "files": self.files,
            "poems_read": self.read,
            "poems_kept": self.kept,
            "chars_kept": self.chars,
            "lengths": self._percentiles(),
            "dropped": self.dropped.to_list(),
            "mended": self.mended.to_list(),
            "encodings": self.encodings.to_list(),
            "layouts": self.layouts.to_list(),
            "doubts": self.doubts.to_list(),
            "broken_files": self.broken.to_list(),
            "skipped_files": self.skipped.to_list(),
        }

    def mark(self) -> dict[str, Any]:
        """现在的计数，交给 back_to 就回到这里。"""
        return {"read": self.read, "dropped": self.dropped.copy(), "mended": self.mended.copy()}

    def back_to(self, mark: dict[str, Any]) -> None:
        """回到 mark 时的计数。"""
        self.read, self.dropped, self.mended = mark["read"], mark["dropped"], mark["mended"]

    def _percentiles(self) -> dict[str, int]:
        if not self.kept:
            return {}
        points = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}
        return {name: round(percentile(self.lengths, q)) for name, q in points.items()}

    def text(self) -> str:
        """给人看的表。"""
        parts = [
            f"读了 {self.files} 个文件、{self.read} 首；留下 {self.kept} 首，{self.chars} 字。"
        ]
        for heading, tally, unit in (
            ("丢弃", self.dropped, "首"),
            ("改动", self.mended, "首"),
            ("读法", self.layouts, "个文件"),
            ("请看一看", self.doubts, "个文件"),
            ("读不下去、没有用的文件", self.broken, "个文件"),
            ("编码", self.encodings, "个文件"),
            ("略过的文件", self.skipped, "个文件"),
        ):
            if tally.counts:
                total = sum(tally.counts.values())
                note = f"（{total} {unit}）" if heading != "改动" else "（一首可有多处）"
                parts.append(f"\n{heading}{note}")
                parts.extend(_table(tally.to_list()))
        parts.extend(self._mostly_alike())
        return "\n".join(parts)

    def _mostly_alike(self) -> list[str]:
        """多半的诗被当作近似重复：换了几个字的模板诗、组诗会这样，要不要由人定。"""
        alike = self.dropped.counts.get(NEAR_COPY, 0)
        if alike < 10 or 2 * alike < self.read:
            return []
        return [
            f"\n提醒：{self.read} 首里有 {alike} 首因为与别的诗近似而没有留。"
            "要是它们本来就是不同的诗，请放宽：python data_clean.py --NEAR_COPY=1"
        ]


def _table(rows: list[dict]) -> Iterable[str]:
    width = max(console.width(row["reason"]) for row in rows)
    for row in rows:
        shown = row["examples"][: None if row["count"] <= FILES else EXAMPLES]
        examples = "；".join(_example(example) for example in shown)
        yield f"  {console.pad(row['reason'], width)}  {row['count']:>7}  {examples}"


def _example(example: dict) -> str:
    shown = f"《{example['title']}》" if example.get("title") else example["where"]
    return shown + (f"（同 {example['same_as']}）" if example.get("same_as") else "")


def _shorten(text: str, limit: int = 60) -> str:
    """例子只留一行开头，写不进 UTF-8 的字符换掉。"""
    line = " / ".join(text.split("\n"))
    line = line[:limit] + "…" if len(line) > limit else line
    return printable(line)


def printable(text: str) -> str:
    """写不进 UTF-8 的字符（例如文件名里的坏字节）换成 ?。"""
    return text.encode("utf-8", "replace").decode("utf-8")


def percentile(counts: np.ndarray, q: float) -> float:
    """第 q 百分位（同 np.percentile）；counts 的第 k 个是值为 k 的有几个。"""
    ends = np.cumsum(counts)
    place = q / 100 * (int(ends[-1]) - 1)
    low, high = np.searchsorted(ends, (int(place), math.ceil(place)), side="right").tolist()
    return low + (high - low) * (place - int(place))


def draw_lengths(counts: np.ndarray, path: Path) -> bool:
    """字数分布图，counts 见 Report.lengths；没有 matplotlib 时返回 False。"""
    pyplot = picture.setup_plot()
    if pyplot is None:
        return False
    text = picture.plot_text
    top = max(percentile(counts, 99), 20.0)
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    present = np.flatnonzero(counts)
    axes.hist(np.minimum(present, top), bins=60, weights=counts[present], color="#4c72b0")
    median = percentile(counts, 50)
    axes.axvline(median, color="#c44e52", label=f"{text('中位数', 'median')} {median:.0f}")
    axes.set_xlabel(
        text("正文字数（最长的 1% 并入最后一格）", "characters (top 1% in the last bin)")
    )
    axes.set_ylabel(text("首", "poems"))
    axes.set_title(text("清洗后的诗有多长", "Length of the cleaned poems"))
    axes.legend()
    figure.tight_layout()
    with files.atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)
    return True
