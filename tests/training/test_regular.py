"""正则化的 auto：照规则取，说出来，写了数的照数；续训照检查点；过拟合说得出、有办法。"""

from __future__ import annotations

import pytest

import checkpoint
import config
from tests.small_run import build_data, quick, values, work_dir
from training import loop, overfit, regular, validation

AUTO = {"DROPOUT": "auto", "WEIGHT_DECAY": "auto"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_data(tmp_path_factory.mktemp("data"), count=30)


@pytest.fixture(autouse=True, scope="module")
def quick_start():
    with quick():
        yield


def used(folder):
    """检查点里：模型的 dropout、配置里的两个数。"""
    saved = checkpoint.load(folder / "checkpoint.bin")
    config_ = saved["config"]
    return saved["model_config"]["dropout"], config_["DROPOUT"], config_["WEIGHT_DECAY"]


def plan(passes=16.0, updates=480, lr=0.01):
    return regular.Plan(passes, updates, lr, density=0.9)


def test_rule_follows_the_passes_and_the_length():
    few, many = regular.rule(plan(1.0)), regular.rule(plan(16.0))
    assert few["DROPOUT"] == 0.0 and many["DROPOUT"] > 0.0
    assert set(few) == set(many) == set(regular.NAMES)
    assert regular.rule(plan(16.0)._replace(density=0.03))["DROPOUT"] == 0.0
    assert few["GROW_AT"] > 0.0 and many["GROW_AT"] == 0.0
    assert few["SAMPLED_SOFTMAX"] == 0
    assert regular.rule(plan()._replace(tokens=10**7))["SAMPLED_SOFTMAX"] > 0
    short, long = (regular.rule(plan(updates=n))["WEIGHT_DECAY"] for n in (480, 6250))
    assert short == pytest.approx(0.46) and long == pytest.approx(0.036)
    assert regular.rule(plan(updates=1))["WEIGHT_DECAY"] == regular.MOST
    assert regular.rule(plan(updates=1 << 40))["WEIGHT_DECAY"] == regular.LEAST


def test_numbers_win_one_by_one():
    given = {
        "DROPOUT": 0.3,
        "WEIGHT_DECAY": "auto",
        "GROW_AT": 0.0,
        "SAMPLED_SOFTMAX": 0,
        "SEED": 1,
    }
    settled = regular.settle(given, plan(), {})
    assert settled.values["DROPOUT"] == 0.3 and settled.values["SEED"] == 1
    assert settled.values["WEIGHT_DECAY"] == regular.rule(plan())["WEIGHT_DECAY"]
    assert "DROPOUT" not in settled.remarks[0] and "WEIGHT_DECAY" in settled.remarks[0]
    assert regular.settle({**given, "WEIGHT_DECAY": 0.2}, plan(), {}).remarks == []


def test_a_run_says_what_auto_chose_and_why(tmp_path, data, capsys):
    short, long = work_dir(tmp_path / "a", data), work_dir(tmp_path / "b", data)
    loop.train(values(short, **AUTO, TRAIN_ITER=3, ACCUM_STEPS=1))
    said = capsys.readouterr().out
    assert "DROPOUT=0" in said and "auto" in said and "遍" in said
    loop.train(values(long, **AUTO, TRAIN_ITER=90, ACCUM_STEPS=9))
    assert f"DROPOUT={regular.DROPOUT}" in capsys.readouterr().out
    assert used(short)[:2] == (0.0, 0.0) and used(long)[0] == regular.DROPOUT


def test_resuming_keeps_what_was_trained_with(tmp_path, data, capsys):
    """延长以后遍数变了也照旧；早先写着 0.1 的检查点仍是 0.1，不说改了什么。"""
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, **AUTO, TRAIN_ITER=3, ACCUM_STEPS=1))
    loop.train(values(folder, **AUTO, TRAIN_ITER=60, ACCUM_STEPS=1))
    assert used(folder)[:2] == (0.0, 0.0)
    old = work_dir(tmp_path / "old", data)
    loop.train(values(old, DROPOUT=0.25, WEIGHT_DECAY=0.3, TRAIN_ITER=3, ACCUM_STEPS=1))
    capsys.readouterr()
    loop.train(values(old, **AUTO, TRAIN_ITER=6, ACCUM_STEPS=1))
    assert used(old) == (0.25, 0.25, 0.3)
    assert "DROPOUT" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["auto", "0.1", "0"])
def test_config_takes_auto_or_a_number(monkeypatch, text):
    monkeypatch.setattr(config, "_given", set())
    monkeypatch.setattr(config, "DROPOUT", 0.2)
    config.load("", [f"--DROPOUT={text}"])
    assert text == ("auto" if config.DROPOUT == "auto" else f"{config.DROPOUT:g}")


def test_neither_auto_nor_a_number_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        config.load("", ["--WEIGHT_DECAY=some"])
    assert "WEIGHT_DECAY" in capsys.readouterr().err


# ── 过拟合 ────────────────────────────────────────────────────────────


def test_overfitting_begins_after_several_worse_validations():
    assert overfit.began(6.0, 6.2, 3)
    assert not overfit.began(6.0, 6.2, 2) and not overfit.began(6.0, 6.03, 9)
    assert not overfit.began(6.0, float("nan"), 9)


def test_an_overfitting_run_says_so_with_the_mend(tmp_path, data, monkeypatch, capsys):
    scores = iter([7.0, 6.5, 6.6, 6.7, 6.8, 6.9, 7.0, 7.1])
    monkeypatch.setattr(validation, "bits_per_char", lambda run: next(scores))
    folder = work_dir(tmp_path / "run", data)
    options = {"TRAIN_ITER": 8, "ACCUM_STEPS": 1, "EVAL_EVERY": 1, "SAVE_EVERY": 8}
    loop.train(values(folder, **options, SAMPLE_EVERY=8))
    said = capsys.readouterr()
    assert said.out.count("过拟合：验证在第 2 次迭代最好（6.500）") == 2  # 途中一次，结尾一次
    assert "--TRAIN_ITER=2" in said.out and "--DROPOUT=0.2" in said.out
    assert "过拟合" in said.err  # 进度条


def test_a_healthy_run_says_nothing(tmp_path, data, monkeypatch, capsys):
    scores = iter([7.0, 6.5, 6.6, 6.4, 6.3])
    monkeypatch.setattr(validation, "bits_per_char", lambda run: next(scores))
    folder = work_dir(tmp_path / "run", data)
    options = {"TRAIN_ITER": 5, "ACCUM_STEPS": 1, "EVAL_EVERY": 1, "SAVE_EVERY": 5}
    loop.train(values(folder, **options, SAMPLE_EVERY=5))
    said = capsys.readouterr()
    assert "过拟合" not in said.out + said.err
