"""续训：哪些必须相同，哪些照新的来，谁的检查点算数。"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import checkpoint
from support.console import UserError
from tests.small_run import build_data, values
from training import loop, resume
from training.corpus import Corpus
from training.distributed import Ranks
from training.settings import FIXED, Settings


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder, count=20)
    return Corpus.open(folder, Settings.pick(values(folder)))


def saved(corpus, folder, **config):
    data = corpus.data
    return {
        "config": values(folder, **config),
        "tokenizer": data.tokenizer_json,
        "dataset": data.fingerprint,
    }


def test_same_run_is_not_refused(corpus, tmp_path):
    state = saved(corpus, tmp_path, LEARNING_RATE=0.5)
    del state["config"]["INIT"]  # 早先的检查点没有后来添的配置
    resume.refuse_changes(state, values(tmp_path), corpus)


@pytest.mark.parametrize("name", FIXED)
def test_each_fixed_setting_is_refused(corpus, tmp_path, name):
    now = values(tmp_path)
    state = saved(corpus, tmp_path, **{name.upper(): "不同"})
    with pytest.raises(UserError, match=name.upper()) as caught:
        resume.refuse_changes(state, now, corpus)
    assert "--RESUME=off" in str(caught.value) and str(now[name.upper()]) in str(caught.value)


def test_other_dataset_is_refused(corpus, tmp_path):
    state = {**saved(corpus, tmp_path), "dataset": "别的"}
    with pytest.raises(UserError, match="不是同一份") as caught:
        resume.refuse_changes(state, values(tmp_path), corpus)
    model = (tmp_path / "best_model.bin").as_posix()
    assert f"--FROM={model} --RESUME=off" in str(caught.value)  # 接着学
    assert "从零开始：加 --RESUME=off" in str(caught.value)


def test_a_model_to_share_carries_no_key(tmp_path):
    build_data(tmp_path, count=20)
    loop.train(values(tmp_path, TRAIN_ITER=2, ACCUM_STEPS=1, API_KEY="sk-nobody-may-see"))
    for name in ("checkpoint.bin", "best_model.bin"):
        assert "API_KEY" not in checkpoint.load(tmp_path / name)["config"]
    again = values(tmp_path, TRAIN_ITER=3, ACCUM_STEPS=1, API_KEY="sk-other")
    assert loop.train(again)["updates"] == 3


def test_changes_are_named(tmp_path):
    old = values(tmp_path, TRAIN_ITER=6)
    assert resume.changes(old, values(tmp_path)) == ["TRAIN_ITER：6 → 35"]
    assert resume.changes(old, {**old, "WORK_DIR": "elsewhere", "RESUME": "off"}) == []


def test_auto_keeps_the_choice_of_the_checkpoint(tmp_path):
    now = values(tmp_path, DTYPE="auto", COMPILE="auto", DEVICE="cpu")
    chosen = {"DEVICE": "cpu", "DTYPE": "bf16", "COMPILE": "on"}
    settings = resume.reuse_choices(now, chosen)
    assert (settings.device, settings.dtype, settings.compile) == ("cpu", "bf16", "auto")
    assert resume.reuse_choices({**now, "DTYPE": "fp32"}, chosen).dtype == "fp32"


def test_newest_checkpoint_wins_and_its_owner_writes():
    def found(update):
        return {
            "update": update,
            "chosen": {"DTYPE": f"at{update}"},
            "kept": {"FROM": ""},
            "regular": {},
        }

    ranks = Ranks()
    everyone = SimpleNamespace(all_gather=lambda _: [None, found(4), found(9), found(9)], writer=0)
    newest = resume.newest(None, everyone)
    assert (newest.source, everyone.writer) == (2, 2) and newest.chosen == {"DTYPE": "at9"}
    assert resume.newest(None, ranks) is None and ranks.is_main


def test_resume_off_looks_at_no_checkpoint(tmp_path):
    (tmp_path / "checkpoint.bin").write_bytes(b"not a checkpoint")
    assert resume.find(values(tmp_path, RESUME="off")) is None
    with pytest.raises(UserError):
        resume.find(values(tmp_path))


def test_a_forgotten_preset_is_named(corpus, tmp_path):
    """续训忘了写 PRESET：列出不同的几项之外，说出多半是为什么。"""
    state = saved(corpus, tmp_path, PRESET="laptop", ACCUM_STEPS=1)
    with pytest.raises(UserError, match="--PRESET=laptop"):
        resume.refuse_changes(state, values(tmp_path), corpus)
