"""一首诗写到哪里了：从 token 看出行。"""

from __future__ import annotations

from writing.vocabulary import Vocabulary, visible


class Verse:
    """已有的 token（含规定的开头）与它们写成的行；控制项只读它。"""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.tokens = []
        self.begun = False  # 有看得见的字了
        self.done = 0  # 写完的行数，空行不算
        self.chars = 0  # 写完的行的字数
        self.line = bytearray()  # 正在写的行
        self.start = 0  # 它从第几个 token 开始

    @property
    def ended(self) -> bool:
        """最后一个 token 是不是收了一行，或收了整首诗。"""
        return self.start == len(self.tokens) or self.tokens[-1] in self.vocabulary.stops

    @property
    def blank(self) -> bool:
        """正在写的行还没有看得见的字。"""
        return not visible(self.line)

    def count(self) -> int:
        """一共多少字。"""
        return self.chars + len(visible(self.line))

    def add(self, token: int) -> None:
        """接上一个 token。"""
        self.tokens.append(token)
        self.line += self.vocabulary.tok.token_bytes(token)
        self.begun = self.begun or not self.blank
        if b"\n" in self.line:
            self._end_line()

    def rewind(self, length: int) -> None:
        """退回到只有前 length 个 token 的时候。"""
        kept = self.tokens[:length]
        self.tokens, self.line = [], bytearray()
        self.begun, self.done, self.chars, self.start = False, 0, 0, 0
        for token in kept:
            self.add(token)

    def _end_line(self) -> None:
        whole, _, self.line = self.line.rpartition(b"\n")
        finished = [size for size in map(len, map(visible, whole.split(b"\n"))) if size]
        self.done += len(finished)
        self.chars += sum(finished)
        self.start = len(self.tokens)
