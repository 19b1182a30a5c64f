"""起个题目：候选来自诗自己，按抬高概率的多少排，题目所在的地方不算。"""

from __future__ import annotations

import pytest
import torch

from poems import chat_format
from support.console import UserError
from tests import tiny_model
from writing import likelihood, titles
from writing.poet import Poet

POEM = "一只鸟在想方向\n它飞过海洋，飞过远方\n天空很长。\n夜色苍茫"


@pytest.fixture(scope="module")
def poet():
    tok = tiny_model.tokenizer()
    return Poet(tiny_model.model(tok.vocab_size), tok)


def test_titles_come_from_the_poem(poet):
    found = titles.suggest(poet, POEM, 4)
    assert found == titles.suggest(poet, POEM, 4) and 1 <= len(found) <= 4
    assert all(title in POEM and 2 <= len(title) <= 8 for title in found)
    assert not any(a != b and a in b for a in found for b in found)


def test_candidates(poet):
    found = titles.candidates(poet, POEM)
    assert "天空" in found and "夜色苍茫" in found and len(set(found)) == len(found)
    assert not any("的" in title or title[-1] == "在" for title in found)
    assert titles.candidates(poet, "a b") == ["ab"]  # 什么词也没有，也起得出


def test_the_order_is_the_gain_per_character(poet, monkeypatch):
    """对照：带题目与不带题目各做一次前向，差按题目的字数平摊。"""
    tried = ["天空", "夜色苍茫", "海洋"]
    monkeypatch.setattr(titles, "candidates", lambda *_: tried)
    tokens = poet.tok.encode(POEM)

    def total(title):
        prompt = chat_format.render(poet.tok, title)
        return float(likelihood.log_probs(poet, prompt, tokens).sum())

    gains = {title: (total(title) - total("")) / len(title) for title in tried}
    assert titles.suggest(poet, POEM) == sorted(tried, key=lambda title: -gains[title])


def test_longer_than_the_context(poet):
    assert titles.suggest(poet, POEM * 20, 2)


def test_likelihood_equals_the_forward(poet):
    tokens, prompt = poet.tok.encode(POEM), chat_format.render(poet.tok, "鸟")
    with torch.no_grad():
        logs = poet.model(torch.tensor([[*prompt, *tokens]]))[0].log_softmax(-1)
    wanted = [float(logs[len(prompt) + k - 1, token]) for k, token in enumerate(tokens)]
    assert likelihood.log_probs(poet, prompt, tokens).tolist() == pytest.approx(wanted, abs=1e-4)
    rest = likelihood.log_probs(poet, prompt, tokens, 5).tolist()
    assert rest == pytest.approx(wanted[5:], abs=1e-4)


@pytest.mark.parametrize("poem", ["", " \n", 3, "\ud800"])
def test_nothing_to_name(poet, poem):
    with pytest.raises(UserError):
        titles.suggest(poet, poem)
