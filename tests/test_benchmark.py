"""测速：结果齐全、数值合理（不比快慢）。"""

from __future__ import annotations

import os
import sys

import pytest
import torch

import benchmark
import config
from kernels import compiler
from writing import rivals


@pytest.fixture
def small(monkeypatch):
    shape = {"VOCAB_SIZE": 300, "GPT_DIM": 32, "GPT_HEAD": 2, "GPT_FF": 64, "GPT_BLOCKS": 1}
    for name, value in {**shape, "DEVICE": "cpu", "DTYPE": "fp32"}.items():
        monkeypatch.setattr(config, name, value)
    monkeypatch.setattr(benchmark, "REPEATS", 1)
    monkeypatch.setattr(benchmark, "NEW_TOKENS", 6)


def test_generate(small, capsys):
    theirs = pytest.importorskip("transformers", reason="没有安装 transformers")
    assert theirs
    result = benchmark.generate()
    for name in ("tokens_per_s_batch1", "tokens_per_s_batch8", "first_token_ms_batch1"):
        assert result[name] > 0 and result[f"transformers_{name}"] > 0
        ratio = result[name] / result[f"transformers_{name}"]
        assert result[f"ratio_{name}"] == pytest.approx(ratio, abs=0.01)
    assert result["bandwidth_share"] > 0 and "本项目" in capsys.readouterr().out


def test_generate_uses_the_compiled_kernel(small, monkeypatch, library, capsys):
    monkeypatch.setattr(config, "DTYPE", "auto")
    monkeypatch.setattr(compiler, "pick", lambda choice, wait: library if wait else None)
    for package in ("transformers", "llama_cpp"):
        monkeypatch.setitem(sys.modules, package, None)
    result = benchmark.generate()
    assert result["compiled"] is True and result["tokens_per_s_batch8"] > 0
    assert result["plain_first_token_ms_batch1"] > 0 and "不编译" in capsys.readouterr().out


def test_generate_beside_llama_cpp(small, capsys):
    for package in ("llama_cpp", "gguf"):
        pytest.importorskip(package, reason=f"没有安装 {package}")
    result = benchmark.generate()
    shown = capsys.readouterr()
    for name in ("tokens_per_s_batch1", "tokens_per_s_batch8", "first_token_ms_batch8"):
        ratio = result[name] / result[f"llama_f16_{name}"]
        assert result[f"ratio_llama_{name}"] == pytest.approx(ratio, abs=0.01)
        assert result[f"llama_q8_{name}"] > 0
    assert "llama.cpp F16" in shown.out and shown.err == ""


def test_rivals_that_are_not_installed_are_said(small, monkeypatch, capsys):
    for package in ("transformers", "llama_cpp"):
        monkeypatch.setitem(sys.modules, package, None)
    result = benchmark.generate()
    assert not any(name.startswith(("transformers", "llama", "ratio")) for name in result)
    assert "没有安装 llama-cpp-python" in capsys.readouterr().err


def test_llama_cpp_writes_the_same_tokens(small):
    """并排的是同一个模型：贪心时逐个 token 相同，几首同写也是。"""
    for package in ("llama_cpp", "gguf"):
        pytest.importorskip(package, reason=f"没有安装 {package}")
    model, prompt = benchmark.random_model(torch.device("cpu")), [*range(100, 120)]
    greedy = {**config.sampling(), "temperature": 0.0, "min_p": 0, "presence_penalty": 0.0}
    expected = [*prompt]
    with torch.no_grad():
        for _ in range(12):
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    run, seen = rivals.llama_runner(model, prompt, greedy, 2, "F32"), []
    theirs = run.__self__.llama.llama_sampler_sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run.__self__.llama,
            "llama_sampler_sample",
            lambda *given: seen.append(theirs(*given)) or seen[-1],
        )
        run(2, 12)
    assert seen[::2] == seen[1::2] == expected[20:]


def test_what_a_child_process_took():
    hungry = "x = b'1' * (200 << 20); print('子进程说的不显示')"
    spent = benchmark.spend([sys.executable, "-c", hungry])
    assert not spent.failed and spent.seconds > 0
    if hasattr(os, "wait4"):
        assert 200 < spent.peak_mb < 20_000 and spent.cpu_seconds > 0
    assert benchmark.spend([sys.executable, "-c", "raise SystemExit(3)"]).failed
