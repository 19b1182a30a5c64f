"""改这一行：一首诗只换一行，别的一字不动。

题目与前面各行是开头，写几种到行末为止，挑后面几行最接得上的：看后面几行（最后一行看收尾）跟着它
出现的平均 ln p，它自己的不看：各种都是照模型的概率写的，再按概率挑就只剩最平淡的。与原来那行或
别的行相同的排在最后。
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from poems import options, wording
from support.console import UserError
from writing import likelihood, rhyme
from writing.controls import LINE_TOKENS
from writing.poet import Poet
from writing.request import Request

CANDIDATES = 8
FOLLOWING = 3  # 只看后面这么多行：再往后的，哪个候选都差不多，只会冲淡差别


class Place(NamedTuple):
    """要改的一行在诗里的位置。"""

    before: str
    line: str
    after: str
    number: int  # 第几行，从 1 数，空行不算
    lines: list  # 全诗不空的行

    @property
    def gap(self) -> str:
        """行后面的换行；最后一行没有。"""
        return self.after[: len(self.after) - len(self.after.lstrip())]

    @property
    def following(self) -> str:
        """后面几行，连同前面的换行。"""
        parts = re.split(r"(?<=\n)(?=[^\n])", self.after.rstrip())
        return "".join(parts[: FOLLOWING + 1])


def rewrite(
    poet: Poet,
    question: str | None,
    poem: str,
    number: int,
    n: int = CANDIDATES,
    **given: object,
) -> str:
    """诗 poem 的第 number 行（从 1 数，空行不算）换成新写的一行，返回整首诗。

    given：写这首诗时的选项；藏头、押韵、格子照旧。行数以诗为准。有问题时抛出 UserError。
    """
    n = options.check("n", n)
    place = find(poem, number)
    request = _request(poet, question, place, given)
    found = dict.fromkeys(_drafts(poet, request, place, n))  # 一样的只留一个，次序不变
    best = max(found, key=lambda draft: _rank(poet, request, place, draft))
    return place.before + best + place.after


def find(poem: str, number: int) -> Place:
    """第 number 行在哪里；没有这一行时抛出 UserError。"""
    poem = options.check_poem(poem)
    rows = list(re.finditer(r"[^\s\n](?:[^\n]*[^\s\n])?", poem))
    if not rows:
        raise UserError("这首诗是空的，没有可以改的行")
    whole = isinstance(number, int) and not isinstance(number, bool)
    if not whole or not 1 <= number <= len(rows):
        raise UserError(f"没有第 {number} 行：这首诗有 {len(rows)} 行，从 1 数起，空行不算")
    row = rows[number - 1]
    lines = [row.group() for row in rows]
    return Place(poem[: row.start()], row.group(), poem[row.end() :], number, lines)


# ── 写几种 ────────────────────────────────────────────────────────────


def _request(poet: Poet, question: str | None, place: Place, given: dict) -> Request:
    """题目、前面各行与照旧的控制。"""
    given, count = dict(given), len(place.lines)
    first = given.get("first_line")
    if place.number == 1:
        given["first_line"] = None
    if not question:
        given["lines"] = given.get("lines") or min(count, options.MAX_LINES)
    request = poet.request(question or None, **given)
    prefix = poet.tok.encode(place.before)
    if len(request.prompt) + len(prefix) >= poet.config.max_seq_len:
        limit = poet.config.max_seq_len
        raise UserError(f"第 {place.number} 行太靠后：这个模型的上下文只有 {limit} 个 token")
    longest = LINE_TOKENS * (count - place.number + 1)
    chosen = dataclasses.replace(request.options, max_new_tokens=longest, min_new_tokens=0)
    controls = _controls({**request.controls, "first_line": first}, place)
    seen = [*request.seen, *prefix]
    return dataclasses.replace(request, prefix=prefix, seen=seen, options=chosen, controls=controls)


def _controls(given: dict, place: Place) -> dict:
    """照旧的控制：行数与藏头以诗为准，不再管字数；韵随别的行。"""
    kept = {name: value for name, value in given.items() if name != "length" and value}
    count = len(place.lines)
    if kept.get("form") and kept["lines"] != count:
        raise UserError(f"{kept['form']}是 {kept['lines']} 行，这首诗有 {count} 行")
    kept["lines"] = count
    if kept.get("acrostic"):
        kept["acrostic"] = "".join(line[0] for line in place.lines)
    form, rhymed = kept.get("form"), kept.get("rhyme")
    if rhymed is True or (form and not rhymed):  # 押韵，而没有指定哪个韵
        kept["rhyme"] = _group(place, evens=bool(form)) or rhymed
    return kept


def _group(place: Place, evens: bool) -> str | None:
    """别的行押的韵；evens：只看双数行（绝句、律诗）。"""
    others = [n for n in range(1, len(place.lines) + 1) if n != place.number]
    rhymed = [place.lines[n - 1] for n in others if not evens or n % 2 == 0]
    return next(filter(None, map(rhyme.line_group, rhymed)), None)


def _drafts(poet: Poet, request: Request, place: Place, n: int) -> list:
    """同一批写 n 种，各到行末为止。"""
    seed, size = request.seed(), len(request.prompt) + len(request.prefix)
    rows = [poet.row(request, seed + index) for index in range(n)]
    for row in rows:
        row.given = 0  # 前面各行也是写出来的，重复惩罚要算
    session = poet.session(n, size + request.options.max_new_tokens)
    session.start(rows)
    while session.rows:
        for row in [row for row in session.rows if row.verse.done >= place.number]:
            session.drop(row)
        session.step()
    lines = [wording.verse_lines(row.take())[place.number - 1 :] for row in rows]
    return [line[0] if line else place.line for line in lines]


# ── 挑一种 ────────────────────────────────────────────────────────────


def _rank(poet: Poet, request: Request, place: Place, draft: str) -> tuple:
    """越大越好：不与已有的行相同的在前，再看概率。"""
    return draft not in place.lines, _fit(poet, request, place, draft)


def _fit(poet: Poet, request: Request, place: Place, draft: str) -> float:
    """后面几行跟着这一行出现的平均 ln p；它就是最后一行时，是收尾的 ln p。"""
    tok, start = poet.tok, place.before + draft
    ids = tok.encode(start + place.following)
    own = len(tok.encode(start + place.gap))
    if not place.following:
        ids = [*ids, tok.end_id]
    logs = likelihood.log_probs(poet, request.prompt, ids, own)
    return float(logs.mean()) if len(logs) else 0.0
