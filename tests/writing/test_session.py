"""一批正在写的诗：不交白卷；一首出错只结束它自己；温度近于零就是取最大。"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import config
import infere
from tests import tiny_model
from writing import controls, session
from writing.engine import Engine
from writing.poet import Poet
from writing.verse import Verse
from writing.vocabulary import visible


@pytest.fixture
def poet(monkeypatch):
    tok = tiny_model.tokenizer()
    made = Poet(tiny_model.model(tok.vocab_size), tok)
    monkeypatch.setattr(Poet, "load", lambda *_: made)
    return made


def text_of(poet, question="春天", **given):
    request = poet.request(question, **{**config.sampling(), "max_new_tokens": 40, **given})
    return "".join(piece.text for piece in poet.poems(request))


def prefer(poet, monkeypatch, tokens):
    """让模型几乎只想写这些 token。"""
    for name in ("prefill", "step"):
        plain = getattr(poet.decoder, name)

        def pushed(*arguments, plain=plain):
            logits = plain(*arguments).clone()
            logits[..., tokens] += 100
            return logits

        monkeypatch.setattr(poet.decoder, name, pushed)


# ── 不交白卷 ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 0},
        {"temperature": 0, "no_repeat_ngram": 1},
        {"temperature": 10, "top_k": 0},
        {"max_new_tokens": 1},
        {"max_new_tokens": 2, "temperature": 0},
        {"lines": 1},
        {"length": 4},
        {"context": "slide", "max_new_tokens": 3},
        {"n": 3, "max_new_tokens": 2},
    ],
)
@pytest.mark.parametrize("wish", ["stops", "newlines", "spaces", "halves"])
def test_never_empty(poet, monkeypatch, given, wish):
    table = poet.vocabulary.bytes()
    wishes = {
        "stops": list(poet.vocabulary.stops),
        "newlines": poet.vocabulary.newlines(),
        "spaces": [table.index(b" ")],
        "halves": [table.index(b"\xe4")],  # 一个字的第一个字节
    }
    prefer(poet, monkeypatch, wishes[wish])
    given = {"seed": 1, "max_new_tokens": 12, **given}
    found = infere.chat("春天", **given)
    assert all(found if isinstance(found, list) else [found])


def test_never_empty_through_the_engine(poet, monkeypatch):
    prefer(poet, monkeypatch, list(poet.vocabulary.stops))
    machine = Engine(poet, max_rows=2)
    handles = [machine.submit("春天", max_new_tokens=count, seed=count) for count in (1, 2, 9)]
    assert all("".join(handle) for handle in handles)
    assert handles[2].finish_reason == "stop"
    machine.close()


def test_the_opening_changes_nothing_after_the_first_character(poet):
    """写出看得见的字以后，收尾与换行都由模型。"""
    opening, verse = controls.Opening(), Verse(poet.vocabulary)
    logits = torch.zeros(poet.tok.vocab_size)
    assert poet.tok.end_id in opening.before(verse, 5, logits).ban
    verse.add(poet.tok.encode("春")[0])
    assert opening.before(verse, 1, logits) == controls.FREE


# ── 走到哪里了 ────────────────────────────────────────────────────────


def test_verse_rewinds_to_what_it_was(poet):
    tokens = [*poet.tok.encode("春天来了\n\n花开在山坡上\n夏"), poet.tok.end_id]
    for length in range(len(tokens)):
        verse, fresh = Verse(poet.vocabulary), Verse(poet.vocabulary)
        for token in tokens:
            verse.add(token)
        for token in tokens[:length]:
            fresh.add(token)
        verse.rewind(length)
        assert vars(verse) == vars(fresh)
    for token in tokens[length:]:
        verse.add(token)
    assert (verse.done, verse.chars, verse.line, verse.ended) == (2, 10, "夏".encode(), True)


def test_visible():
    assert visible(" 春\t天\u3000。\n".encode()) == "春天。"
    assert visible("春".encode()[:2]) == visible("\ufffd \n".encode()) == ""


# ── 一首的事归一首 ────────────────────────────────────────────────────

WANTED = [{"seed": 1}, {"seed": 2, "lines": 3}, {"seed": 3, "temperature": 1.3}]


class Broken(controls.Control):
    """写到第 5 个 token 就坏。"""

    @classmethod
    def wanted(cls, vocabulary, given, temperature):
        return cls() if given.get("author") == "坏" else None

    def before(self, verse, remaining, logits):
        if len(verse.tokens) >= 5:
            raise RuntimeError("这一首坏了")
        return controls.FREE


def written_beside(poet, **bad):
    """(别的诗的文字, 坏的那首的错误)：和一首坏的同批写。"""
    machine = Engine(poet, max_rows=4)
    common = {**config.sampling(), "max_new_tokens": 40}
    handles = [machine.submit("春天", **{**common, **given}) for given in WANTED]
    broken = machine.submit("春天", **{**common, "min_new_tokens": 20, "seed": 9, **bad})
    with pytest.raises(RuntimeError) as raised:
        "".join(broken)
    assert broken.finish_reason == "cancelled"
    texts = ["".join(handle) for handle in handles]
    assert "".join(machine.submit("春天", **{**common, "seed": 1})) == texts[0]
    machine.close()
    return texts, str(raised.value)


def test_a_row_that_fails_while_sampling_ends_alone(poet, monkeypatch):
    alone = [text_of(poet, **given) for given in WANTED]
    monkeypatch.setattr(controls, "KINDS", (*controls.KINDS, Broken))
    assert written_beside(poet, author="坏") == (alone, "这一首坏了")
    with pytest.raises(RuntimeError, match="这一首坏了"):
        text_of(poet, author="坏", min_new_tokens=20)


def test_a_row_that_fails_at_the_start_ends_alone(poet, monkeypatch):
    alone = [text_of(poet, **given) for given in WANTED]
    plain, bad = poet.decoder.prefill, poet.request("春天", author="坏").prompt

    def prefill(cache, row, ids):
        if ids == bad:
            raise RuntimeError("预填坏了")
        return plain(cache, row, ids)

    monkeypatch.setattr(poet.decoder, "prefill", prefill)
    assert written_beside(poet, author="坏") == (alone, "预填坏了")


def test_a_row_that_cannot_be_made_ends_alone(poet, monkeypatch):
    alone = [text_of(poet, **given) for given in WANTED]
    plain = session.Row.__init__

    def init(self, vocabulary, request, *rest):
        if request.controls.get("author"):
            raise RuntimeError("建不了")
        plain(self, vocabulary, request, *rest)

    monkeypatch.setattr(session.Row, "__init__", init)
    assert written_beside(poet, author="坏") == (alone, "建不了")


def test_a_fault_in_the_shared_forward_ends_all_and_the_engine_goes_on(poet, monkeypatch):
    expected, plain, calls = text_of(poet, seed=1), poet.decoder.step, []

    def step(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("前向坏了")
        return plain(*arguments)

    monkeypatch.setattr(poet.decoder, "step", step)
    machine = Engine(poet, max_rows=4)
    common = {**config.sampling(), "max_new_tokens": 40, "min_new_tokens": 30, "seed": 1}
    handle = machine.submit("春天", **common)
    with pytest.raises(RuntimeError, match="前向坏了"):
        "".join(handle)
    common["min_new_tokens"] = 0
    assert "".join(machine.submit("春天", **common)) == expected
    machine.close()


def test_write_all_equals_one_by_one(poet):
    given = [{**config.sampling(), "max_new_tokens": 30, "seed": seed} for seed in range(5)]
    wanted = [poet.request("春天", **each) for each in given]
    done = []
    found = poet.write_all(wanted, together=2, on_done=done.append)
    assert done == [2, 2, 1]
    assert [each.text for each in found] == [text_of(poet, **each) for each in given]
    assert {each.finish_reason for each in found} <= {"stop", "length"}


# ── 数 ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-40, 1e-9, 9e-5])
def test_a_tiny_temperature_is_greedy(poet, temperature):
    assert text_of(poet, temperature=temperature, seed=5) == text_of(poet, temperature=0)


def test_numpy_numbers_are_numbers(poet):
    given = {"temperature": np.float32(0.5), "max_new_tokens": np.int64(20), "top_k": np.int16(9)}
    found = infere.chat("春天", seed=np.int64(3), n=np.int8(1), **given)
    assert found == infere.chat("春天", seed=3, temperature=0.5, max_new_tokens=20, top_k=9)
