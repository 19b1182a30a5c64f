"""同一个字的词一起学：词表里多字的词多半少见，“月光”学到的，“月色”“光阴”也沾得着。

每个词的嵌入看作它自己的一份加上里面各个字的一份（fastText，Bojanowski et al. 2017），各走各的
AdamW；权重里只有两者之和，所以检查点、写诗、导出都不知道有这回事。
字母：V 是词数，F 是字数，P 是“某词里有某字”的对数，C 是宽。
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from kernels.lookup import sum_rows
from tokenizer import BPETokenizer, HFTokenizer


class Spelling(NamedTuple):
    """哪个词里有哪个字；只数多字的词里出现的字，一个字的词也算有它自己。"""

    chars: torch.Tensor  # (P,) 依次是各个词里的字
    of_word: torch.Tensor  # (V,) 每个词从 chars 的第几个起
    words: torch.Tensor  # (P,) 依次是有各个字的词
    of_char: torch.Tensor  # (F,) 每个字从 words 的第几个起

    @classmethod
    def of(cls, chars: torch.Tensor, words: torch.Tensor, v: int, f: int) -> Spelling:
        """chars (P,) 依次是 words (P,) 里的字，words 由小到大；共 v 个词、f 个字。"""
        order = torch.argsort(chars, stable=True)
        return cls(chars, _starts(words, v), words[order], _starts(chars, f))

    def to(self, device: torch.device) -> Spelling:
        """搬到 device。"""
        return Spelling(*(each.to(device) for each in self))


def spelling(tokenizer: BPETokenizer | HFTokenizer) -> Spelling | None:
    """由词表看出；没有多字的词时为 None。"""
    texts = [_text(tokenizer, token) for token in range(tokenizer.vocab_size)]
    numbers = {}
    for text in texts:
        for char in text if len(text) > 1 else "":
            numbers.setdefault(char, len(numbers))
    spelt = [[numbers[char] for char in text if char in numbers] for text in texts]
    if not numbers:
        return None
    chars = torch.tensor([char for each in spelt for char in each])
    lengths = torch.tensor([len(each) for each in spelt])
    words = torch.arange(len(spelt)).repeat_interleave(lengths)
    return Spelling.of(chars, words, len(spelt), len(numbers))


def _text(tokenizer: BPETokenizer | HFTokenizer, token: int) -> str:
    """这个 token 的文字；特殊符号、不是整个字的是空的。"""
    try:
        return tokenizer.token_bytes(token).decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _starts(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """由小到大排好时，0 … count − 1 各从第几个起。"""
    counts = torch.bincount(numbers, minlength=count)
    return counts.cumsum(0) - counts


class CharAdamW(torch.optim.AdamW):
    """词嵌入里各个字的一份；它没有自己的权重，走了多远就加到每个有这个字的词上。"""

    def __init__(self, weight: torch.Tensor, spelling: Spelling, **options: object) -> None:
        """weight (V, C)：词嵌入；options 同 AdamW。"""
        self.weight, self.spelling = weight, spelling.to(weight.device)
        self.moved = torch.nn.Parameter(weight.new_zeros(len(spelling.of_char), weight.size(1)))
        super().__init__([self.moved], weight_decay=0.0, **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        if self.weight.grad is None:
            return
        chars, of_word, words, of_char = self.spelling
        self.moved.zero_()  # 不衰减，走多远与在哪里无关：从零走，得到的就是这一步
        self.moved.grad = sum_rows(self.weight.grad, words, of_char)  # (V, C) -> (F, C)
        super().step()
        self.moved.grad = None
        self.weight += sum_rows(self.moved, chars, of_word)  # (F, C) -> (V, C)
