"""几首候选谁在前：题目最能抬高它的概率的在前；比同伴怪得多或平得多的、行有重复的往后。

只看概率的话，最平庸的总在最前。
"""

from __future__ import annotations

import statistics
from typing import Sequence

from poems import chat_format
from writing import likelihood, measures
from writing.poet import Poet
from writing.session import Row

ENOUGH = 0.15  # 题目的增益（每 token）到这里就够了；再大的是满篇只写题目的那个词
ODD = 0.5  # 平均对数概率离同伴的中位数一个 nat，抵题目的增益多少 nat（每 token）
REPEATED = 3.0  # 全是重复的行扣多少
DIGITS = 3  # 只差在这么多位小数以后的算一样好，先写的在前


def order(poet: Poet, texts: Sequence[str], rows: Sequence[Row]) -> list:
    """各首的次序，最好的在前；rows 是写的时候累计过对数概率的。"""
    counts = [max(1, len(row.tokens) - row.given) for row in rows]
    means = [row.score / count for row, count in zip(rows, counts)]
    middle = statistics.median(means)

    def quality(index: int) -> float:
        gain = means[index] - untitled(poet, rows[index]) / counts[index]
        odd = abs(means[index] - middle)
        score = min(gain, ENOUGH) - ODD * odd - REPEATED * _repeated(texts[index])
        # 双数首时中间的两首离中位数一样远，增益又都封了顶：那时不能由舍入定先后
        return round(score, DIGITS)

    qualities = list(map(quality, range(len(rows))))
    return sorted(range(len(rows)), key=lambda index: -qualities[index])


def _repeated(text: str) -> float:
    return measures.repeats(text) / max(1, measures.line_count(text))


def untitled(poet: Poet, row: Row) -> float:
    """没有题目时，写出来的这些 token 的 ln p 之和。"""
    prompt = chat_format.render(poet.tok, "")
    return float(likelihood.log_probs(poet, prompt, row.tokens, row.given).sum())
