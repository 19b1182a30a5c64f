"""词表里与写诗有关的事实，按需计算，一个模型一份。"""

from __future__ import annotations

import numpy as np
import torch

from tokenizer import HFTokenizer
from writing import rhyme


class Vocabulary:
    """哪些 token 是标点、带换行、以某个字开头、押某个韵。"""

    def __init__(self, tok: HFTokenizer) -> None:
        self.tok = tok
        self.stops = (tok.end_id, tok.pad_id)
        self.special = frozenset(tok.special_ids.values())
        self._marks = {}
        self._bytes = self._mark_ids = None
        self._newlines = self._line_feed = None
        self._starts, self._groups, self._closing = {}, {}, {}
        self._hanzi = None

    def is_mark(self, token: int) -> bool:
        """只有标点、符号与空白的 token（重复惩罚略过它们）；不成整字的不算。"""
        if token not in self._marks:
            self._marks[token] = is_mark(self.tok.token_bytes(token))
        return self._marks[token]

    def marks(self) -> tuple:
        """只有标点、符号与空白的 token（换行与收尾也在内），和结束符是其中第几个。"""
        if self._mark_ids is None:
            found = [token for token in range(self.tok.vocab_size) if self.is_mark(token)]
            self._mark_ids = torch.tensor(found), found.index(self.tok.end_id)
        return self._mark_ids

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

    def heads(self, rest: bytes) -> list:
        """行首还差 rest 这些字节时可以用的 token：以它开头的，或是它的一段开头。"""
        if rest not in self._starts:
            self._starts[rest] = [
                token
                for token, data in enumerate(self.bytes())
                if data and (data.startswith(rest) or rest.startswith(data))
            ]
        return self._starts[rest]

    def showing(self, line: bytes) -> torch.Tensor:
        """接在 line 后面就有看得见的字的 token。"""
        if line not in self._closing:
            table = enumerate(self.bytes())
            found = [token for token, data in table if data and visible(line + data)]
            self._closing[line] = torch.tensor(found, dtype=torch.long)
        return self._closing[line]

    def rhyming(self, name: str) -> torch.Tensor:
        """以韵部 name 的汉字结尾的 token。"""
        if not self._groups:
            found = {}
            for token, data in enumerate(self.bytes()):
                text = data.decode("utf-8", "replace")
                if text and "\n" not in text and "\ufffd" not in text:
                    found.setdefault(rhyme.group(text[-1]), []).append(token)
            self._groups = {key: torch.tensor(value) for key, value in found.items() if key}
        return self._groups.get(name, torch.tensor([], dtype=torch.long))

    def hanzi(self) -> tuple:
        """只由整个汉字组成的 token：编号 (N,)、各个字的码位 (N, K)，短的补 0。"""
        if self._hanzi is None:
            found = {}
            for token, data in enumerate(self.bytes()):
                text = data.decode("utf-8", "replace")
                if text and all(map(rhyme.is_hanzi, text)):
                    found[token] = text
            longest = max(map(len, found.values()), default=1)
            codes = np.zeros((len(found), longest), dtype=np.int64)
            for row, text in zip(codes, found.values()):
                row[: len(text)] = list(map(ord, text))
            self._hanzi = np.array(list(found), dtype=np.int64), codes
        return self._hanzi

    def spelling(self, starts: frozenset) -> list:
        """字节恰好是 starts 里的一个的 token。"""
        return [token for token, data in enumerate(self.bytes()) if data in starts]


def is_mark(data: bytes) -> bool:
    """一个 token 的字节是不是只有标点、符号与空白；不成整字的不算。"""
    text = data.decode("utf-8", "replace")
    return not any(char.isalnum() or char == "\ufffd" for char in text)


def visible(line: bytes) -> str:
    """一行里看得见的字；残缺的字节、空白与 U+FFFD（不给人看）都不算。"""
    return "".join(line.decode("utf-8", "ignore").replace("\ufffd", "").split())
