"""几首候选谁在前：题目抬高它的概率多的、用字多变的在前，太长的、行有重复的往后。

只看概率的话，最平庸的总在最前。各项的分量照两位读者挑出的最好、最差定，另换一批核对过：
docs/LOG.md 的“写诗”。
"""

from __future__ import annotations

import math
from typing import Sequence

from poems import chat_format
from writing import likelihood, measures
from writing.poet import Poet
from writing.session import Row

VARIED = 4.0  # 不同的字占 WINDOW 个字的份额，从 0 到 1 抵题目的增益多少 nat（每 token）
WINDOW = 20
LONG = 1.0  # 比 LINES 行长到 e 倍扣多少：小模型写长了就散
LINES = 16
REPEATED = 3.0  # 全是重复的行扣多少
DIGITS = 3  # 只差在这么多位小数以后的算一样好，先写的在前


def order(poet: Poet, texts: Sequence[str], rows: Sequence[Row]) -> list:
    """各首的次序，最好的在前；rows 是写的时候累计过对数概率的。"""
    qualities = [quality(poet, text, row) for text, row in zip(texts, rows)]
    return sorted(range(len(rows)), key=lambda index: -qualities[index])


def quality(poet: Poet, text: str, row: Row) -> float:
    """一首候选有多好，越大越好；只能与同一个题目的比。舍过的：次序不能由舍入误差定。"""
    count, lines = max(1, len(row.tokens) - row.given), max(1, measures.line_count(text))
    score = (row.score - untitled(poet, row)) / count  # 题目的增益
    score += VARIED * measures.variety(text, WINDOW)
    score -= LONG * max(0.0, math.log(lines / LINES))
    return round(score - REPEATED * measures.repeats(text) / lines, DIGITS)


def untitled(poet: Poet, row: Row) -> float:
    """没有题目时，写出来的这些 token 的 ln p 之和。"""
    prompt = chat_format.render(poet.tok, "")
    return float(likelihood.log_probs(poet, prompt, row.tokens, row.given).sum())
