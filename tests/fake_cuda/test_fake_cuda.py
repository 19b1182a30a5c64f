"""CUDA 的路径在假的显卡上：设备不混用、同步不多、峰值与预测相符、写的与 CPU 一样。"""

from __future__ import annotations

import math

import pytest

from tests import fake_cuda

TRAININGS = {
    "bf16": {"DTYPE": "bf16", "TRAIN_ITER": 6},
    "fp16": {"DTYPE": "fp16", "TRAIN_ITER": 6},
    "fp32": {"DTYPE": "fp32", "TRAIN_ITER": 6},
    "checkpointed": {"DTYPE": "bf16", "GRAD_CHECKPOINT": "on", "TRAIN_ITER": 3},
    "adamw": {"DTYPE": "bf16", "OPTIMIZER": "adamw", "TRAIN_ITER": 3},
}
SIZES = {
    "fp32": {"dtype": "fp32"},
    "bf16": {"dtype": "bf16"},
    "bf16_plain": {"dtype": "bf16", "plain": True},
    "bf16_checkpointed": {"dtype": "bf16", "grad_checkpoint": True},
    "fp16_adamw": {"dtype": "fp16", "optimizer": "adamw"},
}
STEPS = {"one": (1, False, False), "one_graph": (1, False, True), "many_graph": (8, True, True)}


def jobs():
    """一个子进程里要做的全部。"""
    found = {name: ["training", {"name": name, "changes": c}] for name, c in TRAININGS.items()}
    for name, options in SIZES.items():
        found[f"size_{name}"] = ["micro_batch", {"rows": 8, "length": 64, **options}]
    for name, (rows, ragged, static) in STEPS.items():
        found[f"step_{name}"] = ["decoding", {"rows": rows, "ragged": ragged, "static": static}]
    for name in ("out_of_memory", "chats", "engine", "scripts"):
        found[name] = [name, {}]
    return found


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    if fake_cuda.problem():
        pytest.skip(fake_cuda.problem())
    folder = str(tmp_path_factory.mktemp("fake"))
    found = fake_cuda.run("tests.fake_cuda.bodies:everything", folder=folder, jobs=jobs())
    print({name: round(each["seconds"], 1) for name, each in found.items()})
    return found


@pytest.fixture
def done(everything):
    """名字 → 那一件的结果。"""

    def result(name):
        found = everything[name]["result"]
        assert "error" not in found, found["error"]
        return found

    return result


# ── 训练 ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", TRAININGS)
def test_training_mixes_no_devices_and_resumes(done, name):
    run, updates = done(name), TRAININGS[name]["TRAIN_ITER"] // 3
    assert run["mixed"] == []
    assert (run["updates"], run["resumed"]) == (updates, updates + 2)
    assert math.isfinite(run["val_bpc"]) and run["skipped"] <= 2
    assert run["chosen"]["DEVICE"] == "cuda" and run["chosen"]["DTYPE"] == TRAININGS[name]["DTYPE"]


@pytest.mark.parametrize("name", TRAININGS)
def test_an_update_waits_for_the_card_twice(done, name):
    run = done(name)
    update = ("training/gradients.py", "training/stepper.py", "training/optim.py", "gpt.py")
    waits = sum(number for line, number in run["syncs"].items() if line.startswith(update))
    assert 0 < waits <= 2 * run["updates"]


@pytest.mark.parametrize("name", TRAININGS)
def test_training_attention_is_what_flash_accepts(done, name):
    trained = [each for each in done(name)["attention"] if each[2]]
    assert trained and all(shape == "因果" and straight for _, shape, _, straight, _ in trained)


def test_out_of_memory_splits_with_the_same_result(done):
    found = done("out_of_memory")
    assert found["splits"]["room"] == 1 and found["splits"]["tight"] >= 2
    assert found["error_of_weights"] <= 1e-5


# ── 峰值与核 ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [name for name in SIZES if "plain" not in name])
def test_peak_is_what_was_forecast(done, name):
    found = done(f"size_{name}")
    assert found["peak"] == pytest.approx(found["forecast"], rel=0.02)
    assert found["mixed"] == []


def test_fused_kernels_are_fewer_and_move_less(done):
    fused, plain = done("size_bf16"), done("size_bf16_plain")
    assert fused["kernels"] < 0.75 * plain["kernels"]
    assert fused["bytes"] < 0.8 * plain["bytes"]
    assert fused["peak"] < plain["peak"]


# ── 写诗 ──────────────────────────────────────────────────────────────


def test_every_control_writes_what_the_cpu_writes(done):
    found = done("chats")
    assert found["mixed"] == [] and found["same"] == found["count"]
    assert found["graphs"] > 100 and all(any(texts) for texts in found["half"])


def test_engine_thread_ends_every_poem(done):
    found = done("engine")
    assert found["ended"][2] == "cancelled" and None not in found["ended"]
    assert any(found["texts"])


def test_kernels_of_one_decoded_token(done):
    """图一次启动；图以外只剩抽样。"""
    one, graph, many = (done(f"step_{name}") for name in STEPS)
    assert (one["graphs"], graph["graphs"], many["graphs"]) == (0, 1, 1)
    assert graph["kernels"] <= 25 and many["kernels"] <= 40
    assert one["kernels"] > 2 * graph["kernels"]
    for found in (graph, many):
        assert found["to_host"] <= 1 and found["to_card"] <= 12 and found["mixed"] == []


def test_scripts_mix_no_devices(done):
    found = done("scripts")
    assert found["mixed"] == [] and found["updates"] >= 1
    assert found["scored"]["bits_per_char"] > 0
