"""编译好的前向：与普通的逐步解码同一个结果；线程、同批的别人都改不了它。"""

from __future__ import annotations

import pytest
import torch

import checkpoint
from gpt import GPT, GPTConfig
from kernels import int8, native
from kernels.products import half_problem
from tests import tiny_model
from writing.decoder import Decoder
from writing.poet import Poet

LENGTHS = (3, 9, 5, 1, 7)


@pytest.fixture(scope="module")
def model():
    return tiny_model.model(301)  # 词表不是 32 的倍数


def stepped(decoder, lengths=LENGTHS, steps=3):
    """长短不一的几行：预填与走几步得到的全部对数几率。"""
    cache, found = decoder.new_cache(len(lengths), 14), []
    for row, length in enumerate(lengths):
        found.append(decoder.prefill(cache, row, list(range(5, 5 + length)))[None])
    for step in range(steps):
        places = [length + step for length in lengths]
        found.append(decoder.step(cache, [40 + step + place for place in places], places))
    return torch.cat(found)


def test_half_weights_equal_the_plain_way(model, library):
    if half_problem(torch.device("cpu")):
        pytest.skip(half_problem(torch.device("cpu")))
    compiled = Decoder(model, half=True, library=library)
    assert compiled.native is not None
    plain = stepped(Decoder(model, half=True))
    assert torch.allclose(stepped(compiled), plain, atol=1e-4, rtol=1e-4)


def test_int8_weights_equal_their_fp32(model, library):
    """激活不舍成 bf16，所以比 torch 的 int8 矩阵乘准。"""
    if int8.fast_problem():
        pytest.skip(int8.fast_problem())
    weights = int8.quantize_weights(checkpoint.weights_of(model))
    compiled = Decoder(checkpoint.rebuild_int8(model.config, {"weights": weights}), library=library)
    assert compiled.native is not None
    restored = tiny_model.model(301)
    restored.load_state_dict(int8.restore_weights(weights))
    assert torch.allclose(stepped(compiled), stepped(Decoder(restored)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("heads, dim, ff", [(1, 64, 40), (4, 96, 136), (3, 24, 8)])
def test_other_shapes(heads, dim, ff, library):
    torch.manual_seed(0)
    model = GPT(GPTConfig(90, 32, dim=dim, n_head=heads, ff=ff, n_block=2)).eval()
    for value in model.parameters():
        torch.nn.init.uniform_(value, -0.5, 0.5)
    compiled = Decoder(model, half=True, library=library)
    assert compiled.native is not None
    assert torch.allclose(stepped(compiled), stepped(Decoder(model)), atol=0.02, rtol=0.02)


def test_threads_and_company_change_nothing(model, library):
    """一个还是两个线程、单独还是同批：逐位相同。"""
    decoder, before = Decoder(model, half=True, library=library), torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(stepped(decoder))
    torch.set_num_threads(before)
    assert torch.equal(*found)
    rows = len(LENGTHS)
    for row, length in enumerate(LENGTHS):
        assert torch.equal(stepped(decoder, (length,)), found[0][row::rows])


def test_a_full_cache(model, library):
    """写到缓存的最后一个位置，不越界。"""
    decoder, cache = Decoder(model, half=True, library=library), None
    for capacity in (7, 8, 9):
        cache = decoder.new_cache(1, capacity)
        ids = list(range(10, 10 + capacity))
        decoder.prefill(cache, 0, ids[:-1])
        last = decoder.step(cache, ids[-1:], [capacity - 1])[0]
        whole = decoder.prefill(decoder.new_cache(1, capacity), 0, ids)
        assert torch.allclose(last, whole, atol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0},
        {"seed": 3, "min_p": 0.1, "steady_marks": True},
        {"seed": 4, "top_k": 20, "repetition_penalty": 1.4},
    ],
)
def test_the_same_poems(given, library):
    if half_problem(torch.device("cpu")):
        pytest.skip(half_problem(torch.device("cpu")))
    tok, texts = tiny_model.tokenizer(), []
    for each in (None, library):
        poet = Poet(tiny_model.model(tok.vocab_size), tok, half=True, library=each)
        found = ["", "", ""]
        for piece in poet.poems(poet.request("春天", max_new_tokens=40, **given), 3):
            found[piece.index] += piece.text
        texts.append(found)
    assert texts[0] == texts[1]


def test_what_it_cannot_do_goes_the_plain_way(model, library, monkeypatch):
    """头宽不合、换了激活、库算错了：不用它，照旧写。"""
    torch.manual_seed(0)
    odd = GPT(GPTConfig(90, 32, dim=24, n_head=2, ff=8, n_block=1)).eval()
    assert Decoder(odd, half=True, library=library).native is None
    assert "relu" not in native.ACTIVATION and native.shape_problem("relu", 32, 64)

    class Wrong:
        @staticmethod
        def forward(*_):
            """什么也不算。"""

    monkeypatch.setattr(torch, "empty", torch.zeros)
    decoder = Decoder(model, library=Wrong)
    assert decoder.native is None
    assert torch.equal(stepped(decoder), stepped(Decoder(model)))
