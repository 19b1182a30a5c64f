"""候选的次序：没有题目时的概率对照直接前向；题目的增益、同伴与重复行怎样影响次序。"""

from __future__ import annotations

import pytest
import torch

from poems import chat_format
from tests import tiny_model
from writing import ranking
from writing.poet import Poet


@pytest.fixture(scope="module")
def poet():
    tok = tiny_model.tokenizer()
    return Poet(tiny_model.model(tok.vocab_size), tok)


class Done:
    """写完的一首：分数与 token。"""

    def __init__(self, score, tokens, given=0):
        self.score, self.tokens, self.given = score, tokens, given


def test_untitled(poet):
    tokens, prompt = [30, 41, 52, 63], chat_format.render(poet.tok, "")
    with torch.no_grad():
        logs = poet.model(torch.tensor([[*prompt, *tokens]]))[0].log_softmax(-1)
    places = range(len(prompt) + 1, len(prompt) + 4)
    expected = sum(float(logs[place - 1, tokens[place - len(prompt)]]) for place in places)
    assert ranking.untitled(poet, Done(0, tokens, given=1)) == pytest.approx(expected, rel=1e-4)
    assert ranking.untitled(poet, Done(0, tokens * 100)) < 0  # 比上下文还长


def verse(count, kinds=1000):
    """count 行诗，各字依次取自 kinds 种。"""
    chars = [chr(0x4E00 + place % kinds) for place in range(6 * count)]
    return "\n".join("".join(chars[first : first + 6]) for first in range(0, len(chars), 6))


def test_order(poet, monkeypatch):
    """每次只差一样，好的在前。"""
    monkeypatch.setattr(ranking, "untitled", lambda _, row: row.untitled)

    def order(*poems):
        rows = [Done(score, [5] * 10) for _, score, _ in poems]
        for row, (*_, untitled) in zip(rows, poems):
            row.untitled = untitled
        return ranking.order(poet, [text for text, *_ in poems], rows)

    usual = (verse(6), -30, -32)
    assert order((verse(6), -30, -31), (verse(6), -30, -35)) == [1, 0]  # 题目抬高它得多的
    assert order((verse(6), -20, -22), usual) == [0, 1]  # 抬高得一样，先写的：好不好写不算
    assert order((verse(6, kinds=7), -30, -32), usual) == [1, 0]  # 用字多变的
    assert order(("花", -30, -32), usual) == [1, 0]  # 只有一个字不算多变
    assert order((verse(40), -30, -32), usual, (verse(16), -30, -32)) == [1, 2, 0]  # 不太长的
    assert order(("\n".join([verse(4)] * 2), -30, -32), usual) == [1, 0]  # 行不重复的


def test_rounding_does_not_decide(poet, monkeypatch):
    """只差舍入误差的，先写的在前。"""
    monkeypatch.setattr(ranking, "untitled", lambda *_: -40)
    for noise in (0.0, 1e-6, -1e-6):
        rows = [Done(-30 + sign * noise, [5] * 10) for sign in (0, 1, -1, 2)]
        assert ranking.order(poet, list("花雪月风"), rows) == [0, 1, 2, 3]


def test_chat_ranks_real_candidates(poet, monkeypatch):
    import infere

    monkeypatch.setattr(Poet, "load", lambda *_: poet)
    found = infere.chat("春天", n=3, seed=4, max_new_tokens=20)
    alone = {infere.chat("春天", seed=seed, max_new_tokens=20) for seed in (4, 5, 6)}
    assert len(found) == 3 and set(found) == alone
