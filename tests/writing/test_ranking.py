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


def test_order(poet, monkeypatch):
    monkeypatch.setattr(ranking, "untitled", lambda _, row: row.untitled)
    rows = [Done(score, [5] * 10) for score in (-30, -20, -30, -30)]
    for row, value in zip(rows, (-30.5, -19, -45, -31)):
        row.untitled = value
    texts = ["花", "雪", "月\n月", "风"]
    # 增益 0.05、−0.1、封顶的 0.15、0.1；第二首离同伴一个 nat（−0.6），第三首一半的行重复（−1.35）
    assert ranking.order(poet, texts, rows) == [3, 0, 1, 2]


def test_rounding_does_not_decide(poet, monkeypatch):
    """双数首：中间两首离中位数一样远、增益都封了顶，先写的在前。"""
    monkeypatch.setattr(ranking, "untitled", lambda _, row: row.score - 10)
    for noise in (0.0, 1e-6, -1e-6):
        rows = [Done(score, [5] * 10) for score in (-20, -30 + noise, -31 - noise, -50)]
        assert ranking.order(poet, list("花雪月风"), rows)[:2] == [1, 2]


def test_chat_ranks_real_candidates(poet, monkeypatch):
    import infere

    monkeypatch.setattr(Poet, "load", lambda *_: poet)
    found = infere.chat("春天", n=3, seed=4, max_new_tokens=20)
    alone = {infere.chat("春天", seed=seed, max_new_tokens=20) for seed in (4, 5, 6)}
    assert len(found) == 3 and set(found) == alone
