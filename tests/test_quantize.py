"""量化过的模型：同一套代码读取、与 fp32 的输出接近。"""

from __future__ import annotations

import pytest
import torch

import checkpoint
import infere
import quantize
from kernels import int8
from support.artefacts import MODEL_INT8
from support.console import UserError
from tests import tiny_model
from writing import engine
from writing.decoder import Decoder


@pytest.fixture
def files(tmp_path):
    tiny_model.save(tmp_path / "best_model.bin")
    quantize.quantize_file(tmp_path / "best_model.bin", tmp_path / MODEL_INT8)
    return tmp_path


@pytest.mark.parametrize("fast", [True, False])
def test_logits_stay_close(files, fast, monkeypatch):
    if fast and int8.fast_problem():
        pytest.skip(int8.fast_problem())
    if not fast:
        monkeypatch.setattr(int8, "fast_problem", lambda: "测试")
    state = checkpoint.load(files / MODEL_INT8)
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
    model, _ = checkpoint.rebuild(checkpoint.load(files / MODEL_INT8))
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
    path = files / MODEL_INT8
    text = infere.chat("春天", checkpoint=path, seed=1, max_new_tokens=30)
    assert text == infere.chat("春天", checkpoint=path, seed=1, max_new_tokens=30)
    assert engine.Poet.load(str(path), ".").prompt_kinds


def test_twice_is_refused(files):
    with pytest.raises(UserError, match="已经量化"):
        quantize.quantize_file(files / MODEL_INT8, files / "again.bin")


def test_only_what_inference_needs_is_kept(files):
    """续训用的（位置、优化器……）不进 int8 文件。"""
    state = checkpoint.load(files / MODEL_INT8)
    assert set(state) <= set(checkpoint.Model.__annotations__)
    assert state["quantized"] == int8.MARK
