"""测速：结果齐全、数值合理（不比快慢）。"""

from __future__ import annotations

import pytest

import benchmark
import config


def test_generate(monkeypatch, capsys):
    shape = {"VOCAB_SIZE": 300, "GPT_DIM": 32, "GPT_HEAD": 2, "GPT_FF": 64, "GPT_BLOCKS": 1}
    for name, value in {**shape, "DEVICE": "cpu", "DTYPE": "fp32"}.items():
        monkeypatch.setattr(config, name, value)
    monkeypatch.setattr(benchmark, "REPEATS", 1)
    monkeypatch.setattr(benchmark, "NEW_TOKENS", 6)
    theirs = pytest.importorskip("transformers", reason="没有安装 transformers")
    assert theirs
    result = benchmark.generate()
    for name in ("tokens_per_s_batch1", "tokens_per_s_batch8", "first_token_ms_batch1"):
        assert result[name] > 0 and result[f"transformers_{name}"] > 0
        ratio = result[name] / result[f"transformers_{name}"]
        assert result[f"ratio_{name}"] == pytest.approx(ratio, abs=0.01)
    assert result["bandwidth_share"] > 0 and "本项目" in capsys.readouterr().out
