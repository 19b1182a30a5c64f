"""显存预测：与 MemTracker、与真的训练一致；外推与公式都可信；绝不抛出异常。"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

import gpt
from training import memory

SMALL = gpt.GPTConfig(2000, 256, dim=128, n_head=4, ff=512, n_block=3, dropout=0.1)


def update_of(config=SMALL, rows=8, length=256, **options) -> memory.Update:
    return memory.Update(config, rows, length, rows * length, **options)


needs_fake = pytest.mark.skipif(
    not hasattr(torch, "_subclasses"), reason="这个 torch 没有 FakeTensorMode"
)


@needs_fake
@pytest.mark.parametrize(
    "options",
    [{"dtype": "bf16", "device": "cuda"}, {"grad_checkpoint": True}],
    ids=["bf16", "checkpoint"],
)
def test_more_blocks_extrapolate_exactly(options):
    update = update_of(replace(SMALL, n_block=4), **options)
    assert memory.simulate(update) == pytest.approx(
        max(memory._simulate_blocks(update, 4)), rel=1e-3
    )


@needs_fake
@pytest.mark.parametrize(
    ("dtype", "device", "optimizer", "grad_checkpoint"),
    [
        ("fp32", "cpu", "muon", False),
        ("fp32", "cpu", "adamw", True),
        ("bf16", "cuda", "adamw", False),
        ("bf16", "cuda", "muon", True),
    ],
)
def test_formula_is_close_to_simulation(dtype, device, optimizer, grad_checkpoint):
    config = gpt.GPTConfig(8000, 512, dim=256, n_head=8, ff=1024, n_block=4, dropout=0.1)
    update = update_of(
        config,
        length=512,
        optimizer=optimizer,
        grad_checkpoint=grad_checkpoint,
        dtype=dtype,
        device=device,
    )
    # torch 2.1 的算子多留几份临时张量，差到 24%
    assert memory.formula(update) == pytest.approx(memory.simulate(update), rel=0.25)


def test_simulation_agrees_with_mem_tracker():
    tracker_module = pytest.importorskip("torch.distributed._tools.mem_tracker")
    from torch._subclasses.fake_tensor import FakeTensorMode

    from training import optim

    update = update_of(replace(SMALL, n_block=2))
    with FakeTensorMode():
        model = gpt.GPT(update.config)
        optimizers = optim.build(model, "muon", 1e-3, 1e-3, 0.1)
        tracker = tracker_module.MemTracker()
        tracker.track_external(model, *optimizers.members.values())
        with tracker:
            for first in (True, False, False):  # 第一次之后梯度与优化器状态都在
                memory._one_micro_batch(model, update, half=False)
                if first:
                    optimizers.step(1.0)
                tracker.reset_mod_stats()
        peaks = tracker.get_tracker_snapshot("peak")
    tracked = sum(snapshot["Total"] for snapshot in peaks.values())
    assert memory.simulate(update) == pytest.approx(tracked, rel=0.05)


@needs_fake
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="按 /proc 量进程的内存")
def test_prediction_matches_a_real_run():
    update = update_of()
    predicted = memory.predict_peak(update.config, update.rows, update.length)
    assert predicted == pytest.approx(memory.measure(update), rel=0.2)


def test_readme_model_fits_eight_gigabytes():
    config = gpt.GPTConfig(20000, 512, dim=256, n_head=8, ff=1024, n_block=6, dropout=0.1)
    for dtype in ("bf16", "fp32"):
        assert memory.fits(memory.predict_peak(config, 8, 512, dtype=dtype, device="cuda"))


def test_hundred_million_parameters_fit_eight_gigabytes():
    config = gpt.GPTConfig(20000, 512, dim=768, n_head=12, ff=2048, n_block=12, dropout=0.1)
    with torch.device("meta"):
        assert gpt.GPT(config).matrix_parameters() > 99e6
    peak = memory.predict_peak(config, 8, 512, dtype="bf16", device="cuda", grad_checkpoint=True)
    assert memory.fits(peak)
    assert memory.needed(peak) < 4 * memory.GIB  # 宽裕


def test_falls_back_to_the_formula(monkeypatch):
    def broken(update):
        raise AttributeError("这个版本没有")

    monkeypatch.setattr(memory, "simulate", broken)
    assert memory.predict_peak(SMALL, 8, 256) == memory.formula(update_of())


def test_more_of_anything_needs_more():
    base = memory.formula(update_of())
    assert memory.formula(update_of(rows=16)) > base
    assert memory.formula(update_of(replace(SMALL, n_block=6))) > base
    assert memory.formula(update_of(optimizer="adamw")) > base
    assert memory.formula(update_of(grad_checkpoint=True)) < base


def test_simulation_leaves_random_state_and_grad_mode_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    memory.predict_peak(SMALL, 2, 32)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()
    assert torch.zeros(1).sum().item() == 0.0  # 假张量模式已经退出


def test_pretty_and_fits():
    assert memory.pretty(300 << 20) == "300 MB"
    assert memory.pretty(1.5 * memory.GIB) == "1.5 GB"
    assert memory.fits(6 * memory.GIB, 8)
    assert not memory.fits(7 * memory.GIB, 8)  # 留给上下文与碎片
    assert memory.fits(7 * memory.GIB, 12)
