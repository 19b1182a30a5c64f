"""训练途中的示例诗：抽样同对话时的，改过的配置优先，不动模型的训练状态。"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import config
from poems import options
from tests import tiny_model
from training import samples


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, options.AUTO),
        ({"TEMPERATURE": 0.5}, {**options.AUTO, "temperature": 0.5}),
        ({"SAMPLER": "readme"}, {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.4}),
    ],
)
def test_sampled_as_in_the_chat(monkeypatch, changes, expected):
    tok = tiny_model.tokenizer()
    model = tiny_model.model(tok.vocab_size)
    model.train()
    asked = []
    real = samples.Poet.request

    def request(poet, question, **chosen):
        asked.append(chosen)
        return real(poet, question, **{**chosen, "max_new_tokens": 8})

    monkeypatch.setattr(samples.Poet, "request", request)
    values = {**config.values(), **changes}
    run = SimpleNamespace(model=model, corpus=SimpleNamespace(tokenizer=tok), values=values)
    text = samples.poem(run, samples.QUESTION, seed=3)
    assert text == samples.poem(run, samples.QUESTION, seed=3)
    assert expected.items() <= asked[0].items() and asked[0]["seed"] == 3
    assert model.training
