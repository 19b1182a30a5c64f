"""诗的指标：一组诗 → 几个数，各带 95 % 区间。只用 numpy，不知道模型。

区间用自助法：把各首诗有放回地重抽，看这个数怎么变。种子固定，所以同样的诗给出同样的区间。
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Callable, NamedTuple

import numpy as np

from poems import wording

ROUNDS = 1000  # 重抽几次
SHARE = 0.95  # 区间里的份额
AMONG = 16  # 题目要在几个里认出来


class Figure(NamedTuple):
    """一个数和它的 95 % 区间。"""

    value: float
    low: float
    high: float


# ── 自助法 ────────────────────────────────────────────────────────────


def resample(count: int, seed: int = 0) -> np.ndarray:
    """每次重抽里各首诗出现几次：(ROUNDS, count)。"""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=ROUNDS)


def ratio(tops: list, bottoms: list | None = None, seed: int = 0) -> Figure | None:
    """和之比（bottoms 没有给就是平均）；没有诗、分母为 0 时为 None。"""
    tops = np.asarray(tops, dtype=float)
    bottoms = np.ones_like(tops) if bottoms is None else np.asarray(bottoms, dtype=float)
    if not bottoms.sum():
        return None
    times = resample(len(tops), seed)
    below = times @ bottoms
    drawn = (times @ tops)[below > 0] / below[below > 0]
    return _figure(tops.sum() / bottoms.sum(), drawn)


def _figure(value: float, drawn: np.ndarray) -> Figure:
    edge = 50 * (1 - SHARE)
    low, high = np.percentile(drawn, (edge, 100 - edge))
    return Figure(float(value), float(low), float(high))


# ── 一首诗 ────────────────────────────────────────────────────────────


def stanzas(text: str) -> int:
    """几节：节与节之间有空行。"""
    return sum(bool(part.strip()) for part in re.split(r"\n\s*\n", text))


def repeats(text: str) -> int:
    """有几行在这首诗里早就写过。"""
    lines = wording.verse_lines(text)
    return len(lines) - len(set(lines))


def line_count(text: str) -> int:
    """几行，空行不算。"""
    return len(wording.verse_lines(text))


def distinct(text: str, size: int) -> float | None:
    """不同的 size 字片段占全部的比例；太短时为 None。"""
    grams = _grams(text, size)
    return len(set(grams)) / len(grams) if grams else None


def variety(text: str, window: int) -> float:
    """连着的 window 个字里有多大比例不同，各处的平均（移动窗口的类符比，Covington & McFall 2010）。

    与 distinct 不同，诗长不吃亏。只看字母与汉字；不到 window 个字时照实有的算，至少当作半个窗口。
    """
    chars = [char for char in text if char.isalpha()]
    size = max(min(window, len(chars)), window // 2)
    places = range(max(1, len(chars) - window + 1))
    kinds = sum(len(set(chars[place : place + window])) for place in places)
    return kinds / (size * len(places))


def _grams(text: str, size: int) -> list:
    plain = "".join(text.split())
    return [plain[start : start + size] for start in range(len(plain) - size + 1)]


# ── 一组诗 ────────────────────────────────────────────────────────────


def shared_grams(texts: list, size: int = 4) -> list:
    """每首诗的 size 字片段有多大比例在这一组的别的诗里也有；诗越多比例越高，比较时首数要相同。"""
    sets = [set(_grams(text, size)) for text in texts]
    owners = Counter(gram for grams in sets for gram in grams)
    return [sum(owners[gram] > 1 for gram in grams) / len(grams) for grams in sets if grams]


def js_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """两个分布（次数，末维求和）的 Jensen–Shannon 距离，以 2 为底：0 相同，1 毫不相交。"""
    first = first / np.maximum(first.sum(-1, keepdims=True), 1)
    second = second / np.maximum(second.sum(-1, keepdims=True), 1)
    middle = (first + second) / 2
    shared = _divergence(first, middle) / 2 + _divergence(second, middle) / 2
    return np.sqrt(np.maximum(shared, 0))


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Kullback–Leibler 散度，以 2 为底；p > 0 处 q > 0。"""
    return np.where(p > 0, p * np.log2(np.where(p > 0, p, 1) / np.where(q > 0, q, 1)), 0).sum(-1)


def distance(values: list, reference: list, seed: int = 0) -> Figure | None:
    """每首诗的一些数（行数、各行字数……）的分布离 reference 多远；数按四分之一倍程归类。"""
    if not any(values) or not any(reference):
        return None
    mine, theirs = [[_bins(part) for part in group] for group in (values, reference)]
    kinds = sorted({kind for group in (mine, theirs) for part in group for kind in part})
    mine, theirs = _table(mine, kinds), _table(theirs, kinds)  # (首, 类)
    other = theirs.sum(0)
    drawn = js_distance(resample(len(mine), seed) @ mine, other)
    return _figure(js_distance(mine.sum(0), other), drawn)


def _bins(numbers: list) -> Counter:
    """正整数归类：8 以内各是一类，往上每翻一倍分四类。"""
    return Counter(round(4 * np.log2(number)) for number in numbers)


def _table(counts: list, kinds: list) -> np.ndarray:
    return np.array([[part[kind] for kind in kinds] for part in counts], dtype=float)


def shape(texts: list, human: list, seed: int = 0) -> dict:
    """一组诗的样子：名字 → Figure（算不出来时为 None）；human 是拿来比分布的人写的诗。"""
    lines = [wording.verse_lines(text) for text in texts]
    theirs = [wording.verse_lines(text) for text in human]
    counts, chars = list(map(len, lines)), [sum(map(len, part)) for part in lines]

    def spread(measure: Callable[[list, str], list]) -> Figure | None:
        return distance(
            list(map(measure, lines, texts)), list(map(measure, theirs, human)), seed=seed
        )

    found = {f"distinct_{size}": _mean_distinct(texts, size, seed) for size in (1, 2)}
    return {
        **found,
        "repeated_lines": ratio(list(map(repeats, texts)), counts, seed),
        "lines": ratio(counts, seed=seed),
        "line_chars": ratio(chars, counts, seed),
        "js_lines": spread(lambda part, _: [len(part)] if part else []),
        "js_line_chars": spread(lambda part, _: list(map(len, part))),
        "js_stanzas": spread(lambda part, text: [stanzas(text)] if part else []),
        "shared_4grams": ratio(shared_grams(texts), seed=seed),
    }


def _mean_distinct(texts: list, size: int, seed: int) -> Figure | None:
    shares = [distinct(text, size) for text in texts]
    return ratio([share for share in shares if share is not None], seed=seed)


# ── 切不切题 ──────────────────────────────────────────────────────────


def title_ranks(titles: list, texts: list, score: Callable, seed: int = 0) -> list:
    """每首诗自己的题目，在 AMONG 个题目里排第几（1 = 它最能抬高这首诗的概率）。

    score(题目的列表, 文字的列表) -> 各自的 ln p。“没有题目”时的概率对同一首诗是个常数，
    不影响次序，所以不必算。平手时取平均的名次。
    """
    rng = np.random.default_rng(seed)
    pool = sorted(set(titles))
    asked, bodies, sizes = [], [], []
    for title, text in zip(titles, texts):
        others = [other for other in pool if other != title]
        chosen = rng.choice(len(others), size=min(AMONG - 1, len(others)), replace=False)
        asked += [title, *(others[index] for index in chosen)]
        bodies += [text] * (len(chosen) + 1)
        sizes.append(len(chosen) + 1)
    ranks, place = [], 0
    scores = np.asarray(score(asked, bodies), dtype=float)
    for size in sizes:
        own, rest = scores[place], scores[place + 1 : place + size]
        ranks.append(1 + float((rest > own).sum()) + float((rest == own).sum()) / 2)
        place += size
    return ranks


def mean_reciprocal(ranks: list, seed: int = 0) -> Figure | None:
    """平均倒数名次：1 = 次次第一；乱猜 16 个里的一个约 0.21。"""
    return ratio([1 / rank for rank in ranks], seed=seed)
