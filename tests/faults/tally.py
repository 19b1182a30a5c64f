"""记分：每一次尝试的结局，最后的表。"""

from __future__ import annotations

import random
import re
import sys

from support import console

TOLD = "说明白"  # 停下，一条中文消息，什么都没有坏
FINE = "照常"  # 做成了，结果与没被打扰的一样
LOST = "丢失"  # 做好的东西没有了，或半成品顶着真名字
TRACE = "回溯"  # 程序的错直接摊给了使用者
WRONG = "悄悄错"  # 没有说，结果却不对；或者没有停下来
VERDICTS = (TOLD, FINE, LOST, TRACE, WRONG)
BAD = (LOST, TRACE, WRONG)
_SHOWN = 5  # 同一项里至多给出几个坏的例子
_CHINESE = re.compile("[\u3400-\u9fff]")
_TRACEBACK = "Traceback (most recent call last)"


def random_bytes(rng: random.Random, count: int) -> bytes:
    """同 Random.randbytes；那个 Python 3.9 才有。"""
    return rng.getrandbits(8 * count).to_bytes(count, "little") if count else b""


class Tally:
    """各项各种结局的次数，与坏的例子。"""

    def __init__(self) -> None:
        self.counts = {}
        self.examples = {}

    def add(self, part: str, verdict: str, detail: str = "") -> None:
        """part 里的一次尝试；坏的马上说出来。"""
        row = self.counts.setdefault(part, dict.fromkeys(VERDICTS, 0))
        row[verdict] += 1
        if verdict in BAD and row[verdict] <= _SHOWN:
            self.examples.setdefault(part, []).append(f"{verdict}：{detail}")
            print(f"  ✗ {part} {verdict}：{detail}", file=sys.stderr, flush=True)

    def merge(self, other: dict) -> None:
        """别的进程记下的（to_dict）。"""
        for part, row in other["counts"].items():
            mine = self.counts.setdefault(part, dict.fromkeys(VERDICTS, 0))
            for verdict, count in row.items():
                mine[verdict] += count
        for part, found in other["examples"].items():
            self.examples.setdefault(part, []).extend(found)

    def to_dict(self) -> dict:
        return {"counts": self.counts, "examples": self.examples}

    def tried(self, part: str) -> int:
        return sum(self.counts.get(part, {}).values())

    @property
    def bad(self) -> int:
        return sum(row[verdict] for row in self.counts.values() for verdict in BAD)

    def table(self) -> str:
        """Markdown 的表，末行是合计。"""
        rows = [("演习", "次数", *VERDICTS)]
        total = dict.fromkeys(VERDICTS, 0)
        for part, row in self.counts.items():
            rows.append((part, self.tried(part), *(row[verdict] for verdict in VERDICTS)))
            total = {verdict: total[verdict] + row[verdict] for verdict in VERDICTS}
        rows.append(("合计", sum(total.values()), *total.values()))
        texts = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
        widths = [max(console.width(row[i]) for row in texts) for i in range(len(texts[0]))]
        lines = [
            "| " + " | ".join(console.pad(cell, size) for cell, size in zip(row, widths)) + " |"
            for row in texts
        ]
        lines.insert(1, "|" + "|".join("-" * (size + 2) for size in widths) + "|")
        return "\n".join(lines)


def judge(code: int, text: str, allowed: tuple = (0, 1, 2)) -> tuple:
    """一个脚本的退出码与它说的话 → (结局, 说明)；allowed：此时可以有的退出码。"""
    tail = " / ".join(text.strip().splitlines()[-2:])[-300:]
    if _TRACEBACK in text:
        return TRACE, tail
    if code not in allowed:
        return WRONG, f"退出码 {code}：{tail}"
    if code == 0:
        return FINE, ""
    return (TOLD, "") if _CHINESE.search(text) else (WRONG, f"退出码 {code}，没有说明：{tail}")


def problem(error: BaseException) -> str:
    """一个漏出来的异常，写成一行。"""
    return f"{type(error).__name__}: {error}"[:300]
