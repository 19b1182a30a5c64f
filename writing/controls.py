"""诗的控制：在抽样时约束行数、字数、藏头、押韵与格子；一种控制一个类。

每一步抽样前问 before()：这一步只许哪些 token、不许哪些；接上一个 token 后问 after()：诗是否到此
为止、要不要退回几个 token 另放几个、前多少个 token 不会再改。控制只读 Verse，改动由 Row 去做。
新的控制：写一个类，放进 KINDS，再在 poems/options.py 的表里添一行。
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence

import torch

from poems.options import MAX_LINES
from support.console import UserError
from writing import forms, rhyme, sample
from writing.verse import Verse
from writing.vocabulary import Vocabulary

LINE_TOKENS = 48  # 受约束的一行至多这么多 token
MIN_LINE = 6  # 一行至少要留的 token 数：一个字至多 4 个，换行 1 个
MIN_RHYME = 1e-8  # 押韵的候选合起来至少要有这么多概率，否则这一行就不押


class Limits(NamedTuple):
    """下一个 token 的限制；allow 不为空时只看它。"""

    allow: Sequence[int] | torch.Tensor | None = None
    ban: Sequence[int] = ()


class Decision(NamedTuple):
    """接上一个 token 之后怎么办。"""

    stop: bool = False  # 诗到此为止
    rewind: int | None = None  # 退回到只剩这么多 token，再依次放上 queue
    queue: Sequence[int] = ()
    settled: int | None = None  # 前多少个 token 不会再改；None = 全部


FREE, ON = Limits(), Decision()


class Control:
    """一种控制；什么都不管的样子。"""

    alone = False  # 独自管着整首诗，别的控制都不用

    @classmethod
    def wanted(cls, vocabulary: Vocabulary, given: dict, temperature: float) -> Control | None:
        """given（chat() 的控制项 → 值）里要了这种控制就建一个，没有要就是 None。"""
        return None

    @classmethod
    def check(cls, given: dict) -> None:
        """given 里有矛盾时抛出 UserError。"""

    def before(self, verse: Verse, remaining: int, logits: torch.Tensor) -> Limits:
        """抽样前：还能写 remaining 个 token，logits (V,) 是只经过惩罚与禁止的对数几率。"""
        return FREE

    def after(self, verse: Verse, draw: Callable[[], float]) -> Decision:
        """verse 刚接上一个 token；要随机时用 draw()。"""
        return ON


class Opening(Control):
    """不许交白卷：写出看得见的字之前不收尾也不换行，最后一个 token 必须让人看见点什么。"""

    @classmethod
    def wanted(cls, vocabulary: Vocabulary, given: dict, temperature: float) -> Control | None:
        return cls()

    def before(self, verse: Verse, remaining: int, logits: torch.Tensor) -> Limits:
        if verse.begun:
            return FREE
        if remaining <= 1:
            return Limits(allow=verse.vocabulary.showing(bytes(verse.line)))
        return Limits(ban=[*verse.vocabulary.stops, *verse.vocabulary.newlines()])


def line_count(given: dict) -> int:
    """规定了几行；没有规定时为 0。"""
    return len(given.get("acrostic") or "") or given.get("lines") or 0


class LineCount(Control):
    """恰好 lines 行；剩下的 token 平均分给各行，写长了就收。"""

    def __init__(self, lines: int) -> None:
        self.lines = lines
        self.start = -1  # 哪一行（从第几个 token 开始）
        self.width = 0  # 它至多几个 token

    @classmethod
    def wanted(cls, vocabulary: Vocabulary, given: dict, temperature: float) -> Control | None:
        lines = line_count(given)
        return cls(lines) if lines else None

    def before(self, verse: Verse, remaining: int, logits: torch.Tensor) -> Limits:
        left, blank = self.lines - verse.done, verse.blank
        if self.start != verse.start:
            self.start = verse.start
            self.width = min(LINE_TOKENS, max(MIN_LINE, remaining // left))
        if len(verse.tokens) - verse.start + 1 >= self.width and not blank:
            end = verse.vocabulary.tok.end_id if left == 1 else verse.vocabulary.line_feed()
            return Limits(allow=[end])
        banned = verse.vocabulary.newlines() if blank else []
        may_stop = left == 1 and not blank
        return Limits(ban=banned if may_stop else [*banned, *verse.vocabulary.stops])

    def after(self, verse: Verse, draw: Callable[[], float]) -> Decision:
        return Decision(stop=verse.done >= self.lines)


class Length(Control):
    """大约 length 字：少于八成不许收尾，超过九成在行末收尾，超过十三成就停。"""

    def __init__(self, length: int) -> None:
        self.length = length

    @classmethod
    def wanted(cls, vocabulary: Vocabulary, given: dict, temperature: float) -> Control | None:
        length = 0 if line_count(given) else given.get("length")
        return cls(length) if length else None

    def before(self, verse: Verse, remaining: int, logits: torch.Tensor) -> Limits:
        count = verse.count()
        if count >= 1.3 * self.length:
            return Limits(allow=[verse.vocabulary.tok.end_id])
        banned = verse.vocabulary.newlines() if verse.blank else []
        may_stop = count >= 0.8 * self.length
        return Limits(ban=banned if may_stop else [*banned, *verse.vocabulary.stops])

    def after(self, verse: Verse, draw: Callable[[], float]) -> Decision:
        return Decision(stop=verse.chars >= 0.9 * self.length)


class Acrostic(Control):
    """每行的第一个字；行数由 LineCount 管。"""

    def __init__(self, heads: str) -> None:
        self.heads = [head.encode("utf-8") for head in heads]

    @classmethod
    def wanted(cls, vocabulary: Vocabulary, given: dict, temperature: float) -> Control | None:
        return cls(given["acrostic"]) if given.get("acrostic") else None

    @classmethod
    def check(cls, given: dict) -> None:
        heads, first, most = given.get("acrostic"), given.get("first_line"), MAX_LINES
        if heads is None:
            return
        if not 1 <= len(heads) <= most or any(char.isspace() for char in heads):
            raise UserError(f"acrostic={heads!r} 应当是 1 到 {most} 个字，不含空白")
        if given.get("lines") not in (None, len(heads)):
            raise UserError(f"藏头有 {len(heads)} 个字，就是 {len(heads)} 行，与 lines 不符")
        if first and first[0] != heads[0]:
            raise UserError(f"首行以“{first[0]}”开头，与藏头的第一个字“{heads[0]}”不符")

    def before(self, verse: Verse, remaining: int, logits: torch.Tensor) -> Limits:
        if verse.done >= len(self.heads):
            return FREE
        rest = self.heads[verse.done][len(verse.line) :]  # 行首的字还差的字节
        return Limits(allow=verse.vocabulary.heads(rest)) if rest else FREE


class Rhyme(Control):
    """押韵：到行末才知道要不要改，所以把行末的字退回重抽；写完的行才算定下来。"""

    def __init__(
        self, vocabulary: Vocabulary, group: str | None, temperature: float, keep_first: bool
    ) -> None:
        """group 见 rhyme.target，None = 随第一行；keep_first：行首的字不能换。"""
        self.vocabulary, self.group, self.temperature = vocabulary, group, temperature
        self.keep_first = keep_first
        self.start = 0  # 这一行从第几个 token 开始
        self.kept = []  # 这一行每个 token 的对数几率，不是抽来的为 None
        self.used = set()  # 押过的韵脚

    @classmethod
    def wanted(cls, vocabulary: Vocabulary, given: dict, temperature: float) -> Control | None:
        if not given.get("rhyme"):
            return None
        group = rhyme.target(given["rhyme"])
        return cls(vocabulary, group, temperature, keep_first=bool(given.get("acrostic")))

    @classmethod
    def check(cls, given: dict) -> None:
        if given.get("rhyme"):
            rhyme.target(given["rhyme"])

    def before(self, verse: Verse, remaining: int, logits: torch.Tensor) -> Limits:
        self.kept.append(logits.clone())
        return FREE

    def after(self, verse: Verse, draw: Callable[[], float]) -> Decision:
        missing = len(verse.tokens) - self.start - len(self.kept)
        self.kept += [None] * missing
        if not verse.ended:
            return Decision(settled=self.start)
        place = self._last_word(verse.tokens)
        new = None if place is None else self._better(verse.tokens, place, draw)
        if new is not None:
            self.kept = self.kept[: place - self.start]
            queue = [new, *verse.tokens[place + 1 :]]
            return Decision(rewind=place, queue=queue, settled=self.start)
        if verse.start != self.start:
            self.start, self.kept = verse.start, []
        return Decision(settled=self.start)

    def _text(self, token: int) -> str:
        return self.vocabulary.tok.token_bytes(token).decode("utf-8", "replace")

    def _last_word(self, tokens: list) -> int | None:
        """这一行里最后一个以汉字结尾的 token 的位置，其后只有标点。"""
        first = self.start + self.keep_first
        for place in range(len(tokens) - 1, first - 1, -1):
            text = self._text(tokens[place])
            if text[-1:] and rhyme.is_hanzi(text[-1]):
                return place
            if any(char.isalnum() or char == "\ufffd" for char in text):
                return None
        return None

    def _better(self, tokens: list, place: int, draw: Callable[[], float]) -> int | None:
        """行末的字不押韵时，换成哪个 token；不必或不能换时为 None。"""
        text = self._text(tokens[place])
        name = rhyme.line_group(text)
        if self.group is None:
            self.group = name
        logits = self.kept[place - self.start]
        new = None
        if name != self.group and logits is not None:
            new = self._draw(logits, draw)
        if new is None:
            self.used.add(text[-1:])
        return new

    def _draw(self, logits: torch.Tensor, draw: Callable[[], float]) -> int | None:
        """从押韵的候选里重抽；都太不像话时为 None。"""
        fitting = self.vocabulary.rhyming(self.group).to(logits.device)
        if not len(fitting):
            return None
        weights, order = logits.softmax(-1)[fitting].topk(min(32, len(fitting)))
        if float(weights.sum()) < MIN_RHYME:
            return None
        ends = [self._text(token)[-1] for token in fitting[order].tolist()]
        fresh = torch.tensor([end not in self.used for end in ends], device=logits.device)
        if float((weights * fresh).sum()) >= MIN_RHYME:  # 尽量不用押过的字
            weights = weights * fresh
        uniform = torch.tensor([draw()], device=logits.device)
        options = {"temperature": self.temperature, "top_k": 8}
        return int(fitting[order][sample.pick(weights.log()[None], uniform, **options)])


class Grid(Control):
    """格子：每行恰好几个汉字，连同平仄、押韵与藏头，一个字一个字按 forms.Form 填。"""

    alone = True

    def __init__(self, vocabulary: Vocabulary, form: forms.Form) -> None:
        self.vocabulary, self.form = vocabulary, form
        self.used = ""  # 用过的韵脚

    @classmethod
    def wanted(cls, vocabulary: Vocabulary, given: dict, temperature: float) -> Control | None:
        form = forms.plan(given)
        return cls(vocabulary, form) if form is not None else None

    @classmethod
    def check(cls, given: dict) -> None:
        forms.plan(given)

    def before(self, verse: Verse, remaining: int, logits: torch.Tensor) -> Limits:
        places = self.form.line(verse.done)
        filled, part = divmod(len(verse.line), forms.CHAR_BYTES)
        if filled == self.form.chars:
            return Limits(allow=self._after_line(remaining))
        rest = bytes(verse.line[-part:]) if part else b""
        return Limits(allow=forms.fitting(self.vocabulary, places[filled:], rest, self.used))

    def _after_line(self, remaining: int) -> list:
        """一行满了：换行；行数不限时也可以收尾，写不下整整一行时必须收尾。"""
        end, feed = self.vocabulary.tok.end_id, self.vocabulary.line_feed()
        if self.form.lines:
            return [feed]
        least = forms.line_tokens(self.vocabulary, self.form.line(0))
        return [feed, end] if remaining > least else [end]

    def after(self, verse: Verse, draw: Callable[[], float]) -> Decision:
        if len(verse.line) < self.form.chars * forms.CHAR_BYTES or verse.ended:
            return ON
        number, end = verse.done, verse.line.decode("utf-8")[-1]
        if self.form.open_end(number):
            self.form = self.form.with_group(rhyme.group(end))
        if self.form.line(number)[-1].group:
            self.used += end
        return Decision(stop=number + 1 == self.form.lines)


def room(vocabulary: Vocabulary, given: dict) -> int:
    """规定的首行以外，至少要留多少 token 才一定写得下。"""
    form = forms.plan(given)
    if form is None:
        return MIN_LINE * line_count(given)
    left = form.places[1 if form.lines and given.get("first_line") else 0 :]
    return sum(forms.line_tokens(vocabulary, line) + 1 for line in left) - bool(left)


# 次序：押韵要看没有受别的控制限制过的对数几率；藏头的限制先于行数与字数
KINDS = (Rhyme, Acrostic, LineCount, Length, Opening, Grid)


class Controls(Control):
    """一首诗的全部控制：先说只许哪些的说了算，不许的合起来；谁要退回就先退回。"""

    def __init__(self, vocabulary: Vocabulary, given: dict, temperature: float) -> None:
        """given：chat() 的控制项 → 值。"""
        found = [kind.wanted(vocabulary, given, temperature) for kind in KINDS]
        parts = [part for part in found if part is not None]
        self.parts = [part for part in parts if part.alone] or parts

    def before(self, verse: Verse, remaining: int, logits: torch.Tensor) -> Limits:
        banned = []
        for part in self.parts:
            limits = part.before(verse, remaining, logits)
            if limits.allow is not None:
                return limits
            banned += limits.ban
        return Limits(ban=banned)

    def after(self, verse: Verse, draw: Callable[[], float]) -> Decision:
        stop, settled = False, len(verse.tokens)
        for part in self.parts:
            decision = part.after(verse, draw)
            if decision.rewind is not None:
                return decision
            stop = stop or decision.stop
            if decision.settled is not None:
                settled = min(settled, decision.settled)
        return Decision(stop=stop, settled=settled)
