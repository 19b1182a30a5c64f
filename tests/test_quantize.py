"""int8 量化：误差的界、文件大小、同一套代码读取、与 fp32 的输出接近。"""

from __future__ import annotations

import pytest
import torch

import checkpoint
import infere
import quantize
from kernels import int8
from support.console import UserError
from tests import tiny_model
from writing import engine
from writing.decoder import Decoder


def test_error_is_at_most_half_a_step():
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    weight[3] = 0
    weight[5] *= 1e-6
    codes, scale = int8.quantize(weight)
    assert codes.dtype == torch.int8 and scale.shape == (40,)
    error = (int8.restore(codes, scale) - weight).abs()
    assert (error <= 0.51 * scale.float()[:, None]).all()
    assert (codes[3] == 0).all() and codes.abs().max() <= 127


def test_weights_survive_the_round_trip():
    weights = checkpoint.weights_of(tiny_model.model(300))
    small = int8.quantize_weights(weights)
    assert set(int8.restore_weights(small)) == set(weights)
    assert "embed.codes" in small and "embed.weight" not in small
    assert small["norm.weight"] is weights["norm.weight"]


@pytest.fixture
def files(tmp_path):
    tiny_model.save(tmp_path / "best_model.bin")
    quantize.quantize_file(tmp_path / "best_model.bin", tmp_path / quantize.NAME)
    return tmp_path


@pytest.mark.parametrize("fast", [True, False])
def test_logits_stay_close(files, fast, monkeypatch):
    if fast and int8.fast_problem():
        pytest.skip(int8.fast_problem())
    if not fast:
        monkeypatch.setattr(int8, "fast_problem", lambda: "测试")
    state = checkpoint.load(files / quantize.NAME)
    model, _ = checkpoint.rebuild(state)
    exact, _ = checkpoint.rebuild(checkpoint.load(files / "best_model.bin"))
    restored = tiny_model.model(exact.config.vocab_size)
    restored.load_state_dict(int8.restore_weights(state["weights"]))
    ids = torch.randint(3, 300, (1, 12))
    with torch.no_grad():
        assert torch.allclose(model(ids), restored(ids), atol=0.15, rtol=0.05)
        wide = ids.expand(4, -1)
        assert torch.allclose(model(wide), restored(wide), atol=1e-4)
        chance = exact(ids).softmax(-1)
        assert (model(ids).softmax(-1) - chance).abs().sum(-1).mean() < 0.2


def test_decoding_equals_its_own_full_forward(files):
    model, _ = checkpoint.rebuild(checkpoint.load(files / quantize.NAME))
    ids = torch.randint(3, 300, (14,)).tolist()
    decoder = Decoder(model)
    cache = decoder.new_cache(1)
    decoder.prefill(cache, 0, ids[:8])
    with torch.no_grad():
        for place in range(8, 14):
            logits = decoder.step(cache, [ids[place]], [place])
            full = model(torch.tensor([ids[: place + 1]]))[0, -1]
            assert torch.allclose(logits[0], full, atol=0.3, rtol=0.1)


def test_chat_takes_the_quantised_model(files):
    path = files / quantize.NAME
    text = infere.chat("春天", checkpoint=path, seed=1, max_new_tokens=30)
    assert text == infere.chat("春天", checkpoint=path, seed=1, max_new_tokens=30)
    assert engine.Poet.load(str(path), ".").prompt_kinds


def test_size(tmp_path):
    """README 大小的模型：连同分词器不超过 fp32 的 27%。"""
    weights = {"embed.weight": torch.zeros(2000, 256), "a.qkv.weight": torch.zeros(768, 256)}
    small = int8.quantize_weights(weights)
    size = sum(value.numel() * value.element_size() for value in small.values())
    assert size < 0.26 * sum(value.numel() * 4 for value in weights.values())


def test_twice_is_refused(files):
    with pytest.raises(UserError, match="已经量化"):
        quantize.quantize_file(files / quantize.NAME, files / "again.bin")
