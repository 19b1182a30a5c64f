"""诗的格子：体裁、每行字数与平仄，定下一首诗每行每个位置可以放哪些汉字。

平仄按新韵：一二声平，三四声仄，轻声只放在可平可仄的“中”。律句四种，大写的押韵：
一首诗由它们按粘对排成，见 _SENTENCES 与 _ORDERS。
"""

from __future__ import annotations

import functools
from typing import NamedTuple, Sequence

import numpy as np

from support.console import UserError
from writing import rhyme
from writing.vocabulary import Vocabulary

_FORMS = {"五言绝句": (4, 5), "七言绝句": (4, 7), "五言律诗": (8, 5), "七言律诗": (8, 7)}  # 行、字
_SENTENCES = {
    5: {"a": "中仄平平仄", "A": "中仄仄平平", "b": "中平平仄仄", "B": "平平仄仄平"},
    7: {"a": "中平中仄平平仄", "A": "中平中仄仄平平", "b": "中仄中平平仄仄", "B": "中仄平平仄仄平"},
}
_ORDERS = {  # (每行几字, 起) → 四句，律诗重复一遍；首句入韵时第一句换成大写的
    (5, "仄起"): "aBbA",
    (5, "平起"): "bAaB",
    (7, "平起"): "aBbA",
    (7, "仄起"): "bAaB",
}
_USUAL = {  # tones=True 时依次试：正格在前
    5: ("仄起", "平起", "仄起入韵", "平起入韵"),
    7: ("平起入韵", "仄起入韵", "平起", "仄起"),
}
NAMES, TONES = tuple(_FORMS), tuple(_USUAL[5])
_ANY_GROUP = "随首个韵脚"
_FIRST, _LAST = 0x3400, 0x9FFF  # 汉字的码位都在这之间，UTF-8 都是 3 个字节
CHAR_BYTES = 3


class Place(NamedTuple):
    """一个位置：平仄（中 = 不论）、韵部（空 = 不论）、规定的字（空 = 不论）。"""

    tone: str = "中"
    group: str = ""
    char: str = ""

    def problem(self, char: str) -> str:
        """这个字为什么不能放在这里；能放时为空。"""
        if self.char and char != self.char:
            return f"“{char}”不是规定的“{self.char}”"
        if self.tone != "中" and rhyme.tone(char) != self.tone:
            return f"“{char}”是{rhyme.tone(char) or '轻'}声，这里应当是{self.tone}声"
        if self.group and not _rhymes(char, self.group):
            return f"“{char}”不押{self.group}韵"
        return ""


def _rhymes(char: str, group: str) -> bool:
    found = rhyme.group(char)
    return found is not None and group in (found, _ANY_GROUP)


class Form(NamedTuple):
    """一首诗的格子；lines 为 0 时行数不限，每行都像 places[0]。"""

    lines: int
    chars: int
    places: tuple  # 每行一个 (Place, …)

    def line(self, number: int) -> tuple:
        """第 number 行（从 0 数）的位置。"""
        return self.places[number if self.lines else 0]

    def with_group(self, group: str) -> Form:
        """韵部定下来了。"""
        places = tuple(
            tuple(p._replace(group=group) if p.group == _ANY_GROUP else p for p in line)
            for line in self.places
        )
        return self._replace(places=places)

    def open_end(self, number: int) -> bool:
        """第 number 行的韵脚是不是要定下全诗的韵部。"""
        return self.line(number)[-1].group == _ANY_GROUP


# ── 由选项定下格子 ────────────────────────────────────────────────────


def wanted(given: dict) -> bool:
    """given（chat() 的控制项 → 值）里要不要格子。"""
    return bool(given.get("form") or given.get("line_chars") or given.get("tones"))


def complete(given: dict) -> dict:
    """把体裁说的行数与每行字数也写出来，提示词与别的控制就知道了。"""
    if not given.get("form"):
        return given
    lines, chars = _FORMS[given["form"]]
    return {**given, "lines": lines, "line_chars": chars}


def plan(given: dict) -> Form | None:
    """定下格子；没有要就是 None，选项互相矛盾时抛出 UserError，说出理由。"""
    if not wanted(given):
        return None
    _check_sizes(given)
    given = complete(given)
    _check_hanzi(given)
    tones = given.get("tones")
    if not tones:
        return _fit(given, None)
    reasons = []
    for name in _USUAL[given["line_chars"]] if tones is True else (tones,):
        try:
            return _fit(given, name)
        except UserError as error:
            reasons.append(f"{name}：{error}")
    raise UserError("平仄合不上。" + "；".join(reasons))


def _check_sizes(given: dict) -> None:
    form, heads = given.get("form"), given.get("acrostic") or ""
    if given.get("length"):
        raise UserError("字数由行数与每行字数决定，length 不能与 form、line_chars 同用；请去掉它")
    if not form:
        if given.get("tones"):
            raise UserError("tones 要与 form 同用，例如：form='五言绝句', tones=True")
        return
    lines, chars = _FORMS[form]
    if given.get("lines") not in (None, lines):
        raise UserError(f"{form}是 {lines} 行，与 lines={given['lines']} 不符")
    if given.get("line_chars") not in (None, chars):
        raise UserError(f"{form}每行 {chars} 个字，与 line_chars={given['line_chars']} 不符")
    if heads and len(heads) != lines:
        raise UserError(f"{form}是 {lines} 行，藏头却有 {len(heads)} 个字")


def _check_hanzi(given: dict) -> None:
    first, chars = given.get("first_line") or "", given["line_chars"]
    if first and not (len(first) == chars and all(map(rhyme.is_hanzi, first))):
        raise UserError(f"首行“{first}”应当恰好是 {chars} 个汉字，不带标点")
    for head in given.get("acrostic") or "":
        if not rhyme.is_hanzi(head):
            raise UserError(f"规定了每行字数，藏头只能是汉字，“{head}”不是")


def _fit(given: dict, tones: str | None) -> Form:
    """排好格子，首行与藏头都放得进去；放不进去时抛出 UserError。"""
    heads, first = given.get("acrostic") or "", given.get("first_line") or ""
    form = _empty(given, tones)
    for number, head in enumerate(heads):
        reason = form.line(number)[0].problem(head)
        if reason:
            raise UserError(f"藏头第 {number + 1} 行{reason}")
    if heads:
        places = [
            (line[0]._replace(char=head), *line[1:]) for head, line in zip(heads, form.places)
        ]
        form = form._replace(places=tuple(places))
    for place, char in zip(form.line(0), first):
        reason = place.problem(char)
        if reason:
            raise UserError(f"首行{reason}")
    return form.with_group(rhyme.group(first[-1])) if first and form.open_end(0) else form


def _empty(given: dict, tones: str | None) -> Form:
    """只有平仄与韵的格子。"""
    chars = given["line_chars"]
    lines = len(given.get("acrostic") or "") or given.get("lines") or 0
    group = given.get("rhyme") and (rhyme.target(given["rhyme"]) or _ANY_GROUP)
    if given.get("form"):
        group = group or _ANY_GROUP
    if tones:
        table = patterns(given["form"], tones)
        rhymed = [pattern[-1] == "平" for pattern in table]
    else:
        table = ["中" * chars] * max(1, lines)
        rhymed = [not given.get("form") or number % 2 == 1 for number in range(len(table))]
    places = []
    for pattern, ends in zip(table, rhymed):
        *body, last = map(Place, pattern)
        places.append((*body, last._replace(group=group if ends and group else "")))
    return Form(lines, chars, tuple(places))


def patterns(form: str, tones: str) -> list:
    """一种体裁每行的平仄，平声收尾的押韵。"""
    lines, chars = _FORMS[form]
    order = _ORDERS[chars, tones[:2]] * (lines // 4)
    if tones.endswith("入韵"):
        order = order[0].upper() + order[1:]
    return [_SENTENCES[chars][name] for name in order]


# ── 由格子挑 token ────────────────────────────────────────────────────


@functools.lru_cache(maxsize=64)
def _table(tone: str, group: str) -> np.ndarray:
    """码位 → 可不可以放；平仄与韵部的组合只有几十种，各算一次。"""
    place = Place(tone, group)
    table = np.zeros(_LAST + 1, dtype=bool)
    for code in range(_FIRST, _LAST + 1):
        table[code] = rhyme.is_hanzi(chr(code)) and not place.problem(chr(code))
    return table


def _allowed(place: Place, avoid: str = "") -> np.ndarray:
    """码位 → 可不可以放在这里；avoid 里的字不放。"""
    table = _table(place.tone, place.group)
    if place.char:
        table = np.zeros_like(table)
        table[ord(place.char)] = True
    if avoid:
        table = table.copy()
        table[list(map(ord, avoid))] = False
    return table


def _whole(vocabulary: Vocabulary, tables: Sequence[np.ndarray]) -> list:
    """各个字依次放得进这些位置的整字 token。"""
    ids, codes = vocabulary.hanzi()
    fits = np.ones(len(ids), dtype=bool)
    for column in range(codes.shape[1]):
        here = codes[:, column]
        ends = here == 0
        fits &= ends | tables[column][here] if column < len(tables) else ends
    return ids[fits].tolist()


@functools.lru_cache(maxsize=256)
def _endings(place: Place, rest: bytes) -> frozenset:
    """写了 rest 这几个字节，再接哪些字节还拼得出放得进这里的字。"""
    chars = [chr(code).encode("utf-8") for code in np.flatnonzero(_allowed(place)).tolist()]
    tails = [char[len(rest) :] for char in chars if char.startswith(rest)]
    return frozenset(tail[:end] for tail in tails for end in range(1, len(tail) + 1))


def fitting(vocabulary: Vocabulary, places: Sequence[Place], rest: bytes, used: str) -> list:
    """这一行还空着 places，rest 是写了一半的字，used 是用过的韵脚：可以用的 token，不会空。

    有合适的整字就只用整字，没用过的韵脚优先；没有合适的整字时才一个字节一个字节地拼。
    """
    tables = [_allowed(place) for place in places]
    if not rest:
        fresh = _allowed(places[-1], used if places[-1].group else "")
        for last in (fresh, tables[-1]):
            found = _whole(vocabulary, [*tables[:-1], last])
            if found:
                return found
    return vocabulary.spelling(_endings(places[0], rest))


def line_tokens(vocabulary: Vocabulary, places: Sequence[Place]) -> int:
    """写完这些位置至多要几个 token：有整字的一个，要拼的三个。"""
    single = [bool(_whole(vocabulary, [_allowed(place)])) for place in places]
    return sum(1 if whole else CHAR_BYTES for whole in single)
