"""固定内存上的一步：与平常的一步同一个结果；长短不一、中途有人离开、行数凑整都一样。"""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch

from tests import tiny_model
from writing.decoder import Decoder
from writing.graph import Step
from writing.poet import Poet


@pytest.fixture(scope="module")
def model():
    return tiny_model.model(tiny_model.tokenizer().vocab_size)


@pytest.mark.parametrize("lengths", [(7,), (4, 4), (3, 9, 5)])
def test_static_step_equals_the_plain_one(model, lengths):
    logits = []
    for static in (False, True):
        decoder = Decoder(model, static=static)
        cache = decoder.new_cache(4, 20)
        for row, length in enumerate(lengths):
            decoder.prefill(cache, row, list(range(5, 5 + length)))
        places = list(lengths)
        for token in (11, 12):
            found = decoder.step(cache, [token] * len(lengths), places)
            places = [place + 1 for place in places]
        logits.append(found)
    assert torch.allclose(*logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_static_poems_are_the_same_poems(model, count):
    texts = []
    for static in (False, True):
        poet = Poet(model, tiny_model.tokenizer())
        poet.decoder.static = static
        request = poet.request("春天", seed=3, max_new_tokens=30)
        found = [""] * count
        for piece in poet.poems(request, count):
            found[piece.index] += piece.text
        texts.append(found)
    assert texts[0] == texts[1]


def test_rows_are_a_power_of_two_at_most_the_cache(model):
    decoder = Decoder(model, static=True)
    cache = decoder.new_cache(6, 20)
    assert cache.capacity % 16 == 0
    for row in range(6):
        decoder.prefill(cache, row, [5, 6])
    for rows in (1, 2, 3, 5, 6, 4):
        assert decoder.step(cache, [7] * rows, [2] * rows).shape[0] == rows
    assert sorted(cache.steps) == [1, 2, 4, 6]


def test_what_cannot_be_recorded_runs_as_usual(monkeypatch):
    """录图出错以后照常执行，不再试。"""
    step = Step(lambda tokens, places: (tokens + places)[:, None], 2, torch.device("cpu"))
    step._can_record = True
    tried = []

    def broken():
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    class Broken:
        def __init__(self, *_, **__):
            broken()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", Broken)
    for first in (3, 4, 5):
        assert step([first], [1]).tolist() == [[first + 1]]
    assert tried == [1]


def test_nothing_is_collected_while_recording(monkeypatch):
    """录的时候收走了旧的图，CUDA 会说不许；录完照旧。"""
    seen = []

    def compute(tokens, places):
        seen.append(gc.isenabled())
        return (tokens + places)[:, None]

    step = Step(compute, 1, torch.device("cpu"))
    step._can_record = True
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: type("Graph", (), {"replay": int})())
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    for _ in range(3):
        step([1], [2])
    assert seen == [True, False] and gc.isenabled()
