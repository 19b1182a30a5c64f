"""显卡喂不饱时说的话：能照着运行，一次更新的 token 不变；不必说的不说。"""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

import config
from gpt import GPTConfig
from support import presets
from training import reporter, underfed
from training.settings import Settings

SHAPE = GPTConfig(20000, 512, dim=256, n_head=8, ff=1024, n_block=6)


def settings(**changes):
    resolved = {"DROPOUT": 0.1, "WEIGHT_DECAY": 0.1, "GROW_AT": 0.0, "SAMPLED_SOFTMAX": 2000}
    return Settings.pick({**config.values(), **resolved, **changes})


def asked(text):
    return {name: int(value) for name, value in re.findall(r"--(\w+)=(\d+)", text)}


def test_the_command_reads_as_much():
    s = settings()
    said = underfed.advice(s, SHAPE, "bf16", mfu=0.014)
    new = {name: presets.PRESETS["card"].values[name] for name in ("BATCH_SIZE", "ACCUM_STEPS")}
    assert "--PRESET=card" in said and "1%" in said and "GB" in said
    assert new["BATCH_SIZE"] * new["ACCUM_STEPS"] == s.batch_size * s.accum_steps


@pytest.mark.parametrize("accum", [2, 9, 12, 20, 24, 32])
@pytest.mark.parametrize("world", [1, 2])
def test_any_plan_reads_as_much(accum, world):
    s = settings(ACCUM_STEPS=accum, TRAIN_ITER=2880)
    new = asked(underfed.advice(s, SHAPE, "bf16", 0.01, world))
    assert bool(new) == (accum // world > 1)
    if new:
        assert new["BATCH_SIZE"] * new["ACCUM_STEPS"] == s.batch_size * accum
        assert new["TRAIN_ITER"] * new["BATCH_SIZE"] == s.train_iter * s.batch_size
        assert new["ACCUM_STEPS"] >= world


def test_every_process_keeps_a_micro_batch():
    said = underfed.advice(settings(), SHAPE, "bf16", 0.01, world=4)
    assert asked(said) == {"BATCH_SIZE": 16, "ACCUM_STEPS": 4, "TRAIN_ITER": 25000}
    assert underfed.advice(settings(), SHAPE, "bf16", 0.01, world=8) == ""


@pytest.mark.parametrize(
    ("mfu", "changes"),
    [
        (0.2, {}),
        (0.01, {"ACCUM_STEPS": 1}),
        (0.01, {"TRAIN_ITER": 50001}),  # 分不匀
    ],
)
def test_nothing_to_say(mfu, changes):
    assert underfed.advice(settings(**changes), SHAPE, "bf16", mfu) == ""


@pytest.mark.parametrize(("device", "expected"), [("cuda", True), ("cpu", False)])
def test_said_once_with_the_forecast(monkeypatch, device, expected):
    said = []
    here = SimpleNamespace(update=0, seconds=0.0, tokens=0)
    run = SimpleNamespace(
        position=here,
        settings=settings(),
        machine=SimpleNamespace(device=SimpleNamespace(type=device), dtype_name="bf16"),
        model=SimpleNamespace(config=SHAPE),
        gradients=SimpleNamespace(flops_per_token=lambda: 70_000_000, teacher=None, split=1),
        ranks=SimpleNamespace(world_size=1),
        voice=SimpleNamespace(say=said.append),
    )
    monkeypatch.setattr(reporter.growth, "left", lambda _: 100)
    monkeypatch.setattr(reporter.validation, "left", lambda _: 0)
    spoken = reporter.Reporter(run)
    spoken.peak, spoken._began = 700e12, -1e9
    here.update, here.seconds, here.tokens = 300, 60.0, 12_000_000
    spoken.foretell()
    spoken.foretell()
    assert [("--PRESET=card" in text) for text in said] == [False, True][: 1 + expected]
