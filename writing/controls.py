"""诗的控制：在抽样时约束行数、字数、藏头与押韵。

Control 跟着一行走：shape() 在抽样前改对数几率，accept() 在抽样后看 token，决定是否收尾；
押韵在行末才知道要不要改，所以把行末那个字退回重抽，退回之前的文字先不给人看。
"""

from __future__ import annotations

import torch

from writing import rhyme as rhymes
from writing import sample

LINE_TOKENS = 48  # 受约束的一行至多这么多 token
MIN_LINE = 6  # 一行至少要留的 token 数：一个字至多 4 个，换行 1 个
MIN_RHYME = 1e-8  # 押韵的候选合起来至少要有这么多概率，否则这一行就不押


class Vocabulary:
    """词表里与控制有关的事实，按需计算，一个模型一份。"""

    def __init__(self, tok) -> None:
        self.tok = tok
        self.stops = (tok.end_id, tok.pad_id)
        self._marks = {}
        self._bytes = None
        self._newlines = self._line_feed = None
        self._starts, self._groups = {}, {}

    def is_mark(self, token: int) -> bool:
        """只有标点、符号与空白的 token（重复惩罚略过它们）；不成整字的不算。"""
        if token not in self._marks:
            self._marks[token] = sample.is_mark(self.tok.token_bytes(token))
        return self._marks[token]

    def bytes(self) -> list:
        """编号 → 字节。"""
        if self._bytes is None:
            self._bytes = [self.tok.token_bytes(token) for token in range(self.tok.vocab_size)]
        return self._bytes

    def newlines(self) -> list:
        """带换行的 token。"""
        if self._newlines is None:
            table = enumerate(self.bytes())
            self._newlines = [token for token, data in table if b"\n" in data or b"\r" in data]
        return self._newlines

    def line_feed(self) -> int:
        """恰好是一个换行的 token。"""
        if self._line_feed is None:
            self._line_feed = self.bytes().index(b"\n")
        return self._line_feed

    def heads(self, rest: bytes) -> torch.Tensor:
        """行首还差 rest 这些字节时可以用的 token：以它开头的，或是它的一段开头。"""
        if rest not in self._starts:
            found = [
                token
                for token, data in enumerate(self.bytes())
                if data and (data.startswith(rest) or rest.startswith(data))
            ]
            self._starts[rest] = torch.tensor(found)
        return self._starts[rest]

    def rhyming(self, name: str) -> torch.Tensor:
        """以韵部 name 的汉字结尾的 token。"""
        if not self._groups:
            found = {}
            for token, data in enumerate(self.bytes()):
                text = data.decode("utf-8", "replace")
                if text and "\n" not in text and "\ufffd" not in text:
                    found.setdefault(rhymes.group(text[-1]), []).append(token)
            self._groups = {key: torch.tensor(value) for key, value in found.items() if key}
        return self._groups.get(name, torch.tensor([], dtype=torch.long))


class Control:
    """一首诗的约束与进度；没有任何控制项时不要建它。"""

    def __init__(self, vocabulary: Vocabulary, lines=None, length=None, heads="", rhyme=None):
        """lines 行数；length 字数（约）；heads 每行的第一个字；rhyme 见 rhyme.target。"""
        self.vocabulary = vocabulary
        self.heads = [head.encode("utf-8") for head in heads]
        self.lines = len(heads) or lines
        self.length = None if self.lines else length
        self.rhyming = bool(rhyme)
        self.group = rhymes.target(rhyme) if rhyme else None
        self.done = 0  # 写完的行数
        self.chars = 0  # 写完的行的字数
        self.line = b""  # 正在写的行
        self.start = 0  # 它从第几个 token 开始
        self.width = 0  # 它至多几个 token；0 = 还没有定
        self.kept = []  # 它每一步的对数几率（押韵要退回时用）
        self.settled = 0  # 前多少个 token 不会再改
        self.used = set()  # 押过的韵脚

    # 抽样之前

    def shape(self, logits: torch.Tensor, row) -> torch.Tensor:
        """按约束改一行的对数几率 (V,)。"""
        if self.rhyming:
            self.kept.append(logits.clone())
        rest = self._head_rest()
        if rest:
            return sample.allow_only(logits, self.vocabulary.heads(rest).to(logits.device))
        forced = self._forced(row)
        if forced is not None:
            return sample.allow_only(logits, torch.tensor(forced, device=logits.device))
        blank = not _visible(self.line)
        if blank and (self.lines or self.length):
            sample.ban(logits, self.vocabulary.newlines())
        if not self._may_stop(blank):
            sample.ban(logits, self.vocabulary.stops)
        return logits

    def _head_rest(self):
        """行首的字还差哪些字节。"""
        if self.done >= len(self.heads):
            return b""
        return self.heads[self.done][len(self.line) :]

    def _forced(self, row):
        """这一行太长了，或字数已超出很多：只许收尾。"""
        stops = [self.vocabulary.tok.end_id]
        if self.lines:
            left = self.lines - self.done
            self.width = self.width or min(LINE_TOKENS, max(MIN_LINE, row.remaining // left))
            if len(row.tokens) - self.start + 1 >= self.width and _visible(self.line):
                return stops if left == 1 else [self.vocabulary.line_feed()]
        elif self.length and self._count() >= 1.3 * self.length:
            return stops
        return None

    def _may_stop(self, blank):
        if self.lines:
            return self.done + 1 >= self.lines and not blank
        return not self.length or self._count() >= 0.8 * self.length

    def _count(self):
        return self.chars + _chars(self.line)

    # 抽样之后

    def accept(self, token: int, row) -> str | None:
        """row.tokens 刚加上 token。

        返回 stop：诗到此为止；rewound：退回了行末的字，改好的在 row.queue 里；None：接着写。
        """
        data = self.vocabulary.tok.token_bytes(token)
        while self.rhyming and len(self.kept) < len(row.tokens) - self.start:
            self.kept.append(None)  # 不是抽来的 token
        ending = token in self.vocabulary.stops or b"\n" in data
        if ending and self.rhyming and self._rewrite(row):
            return "rewound"
        self.line += data
        if token in self.vocabulary.stops:
            self.settled = len(row.tokens)
            return "stop"
        if b"\n" not in data:
            if not self.rhyming:
                self.settled = len(row.tokens)
            return None
        return self._end_line(row)

    def _end_line(self, row):
        whole, _, rest = self.line.rpartition(b"\n")
        finished = [line for line in whole.split(b"\n") if _visible(line)]
        self.done += len(finished)
        self.chars += sum(map(_chars, finished))
        self.line, self.start, self.kept, self.width = rest, len(row.tokens), [], 0
        self.settled = len(row.tokens)
        if self.lines:
            return "stop" if self.done >= self.lines else None
        return "stop" if self.length and self.chars >= 0.9 * self.length else None

    # 押韵

    def _rewrite(self, row):
        """行末不押韵就换掉最后一个字；换了返回 True。"""
        place = self._last_word(row)
        if place is None:
            return False
        name = rhymes.line_group(self._text(row, place))
        if self.group is None:
            self.group = name
        new = None
        if name != self.group and self.kept[place - self.start] is not None:
            new = self._rhyming_token(row, place)
        if new is None:
            self.used.add(self._text(row, place)[-1:])
            return False
        tail = row.tokens[place + 1 :]
        del row.tokens[place:]
        self.kept = self.kept[: place - self.start]
        self.line = b"".join(map(self.vocabulary.tok.token_bytes, row.tokens[self.start :]))
        row.queue = [new, *tail]
        return True

    def _text(self, row, place):
        return self.vocabulary.tok.token_bytes(row.tokens[place]).decode("utf-8", "replace")

    def _last_word(self, row):
        """这一行里最后一个以汉字结尾的 token 的位置，其后只有标点；行首的字不能换。"""
        first = self.start + (1 if self.heads else 0)
        for place in range(len(row.tokens) - 1, first - 1, -1):
            text = self._text(row, place)
            if text[-1:] and rhymes.is_hanzi(text[-1]):
                return place
            if any(char.isalnum() or char == "\ufffd" for char in text):
                return None
        return None

    def _rhyming_token(self, row, place):
        """在行末的字那一步，从押韵的候选里重抽；都太不像话时为 None。"""
        logits = self.kept[place - self.start]
        fitting = self.vocabulary.rhyming(self.group).to(logits.device)
        if not len(fitting):
            return None
        weights, order = logits.softmax(-1)[fitting].topk(min(32, len(fitting)))
        if float(weights.sum()) < MIN_RHYME:
            return None
        ends = [self.vocabulary.bytes()[int(token)].decode("utf-8")[-1] for token in fitting[order]]
        fresh = torch.tensor([end not in self.used for end in ends], device=logits.device)
        if float((weights * fresh).sum()) >= MIN_RHYME:  # 尽量不用押过的字
            weights = weights * fresh
        uniform = torch.tensor([row.uniforms.next()], device=logits.device)
        chosen = sample.pick(
            weights.log()[None], uniform, temperature=row.options.temperature, top_k=8
        )
        return int(fitting[order][chosen])


def _visible(line: bytes) -> str:
    """一行里看得见的字；残缺的字节不算。"""
    return "".join(line.decode("utf-8", "ignore").split())


def _chars(line: bytes) -> int:
    return len(_visible(line))
