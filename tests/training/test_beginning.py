"""从已有的模型开始：权重与形状照它，优化器从头；续训照常；不能用的说清楚，什么都不改动。"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import checkpoint
import quantize
from kernels import int8
from support import artefacts
from support.console import UserError
from support.defaults import DEFAULTS
from tests.small_run import build_data, quick, stop_before, values, work_dir
from training import beginning, loop, prepare, runlog, tuning
from training.distributed import Ranks

OTHER_SHAPE = {"GPT_DIM": 64, "GPT_HEAD": 4, "GPT_FF": 96, "GPT_BLOCKS": 1}  # 文件里的是 SMALL 的


@pytest.fixture(autouse=True, scope="module")
def quick_start():
    with quick("诗"):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_data(tmp_path_factory.mktemp("data"), count=30)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """别人训练好的：三种模型文件都有的 WORK_DIR。"""
    folder = work_dir(tmp_path_factory.mktemp("runs") / "old", data)
    loop.train(values(folder, TRAIN_ITER=6))
    quantize.quantize_file(folder / "best_model.bin", folder / artefacts.MODEL_INT8)
    return folder


def started(folder, **options):
    return prepare.open_run(values(folder, **options), Ranks())


def assert_weights(model, expected):
    found = checkpoint.weights_of(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["", "best_model.bin", "checkpoint.bin", "model_int8.bin"])
def test_weights_and_shape_come_from_the_file(name, tmp_path, data, trained):
    folder = work_dir(tmp_path / "new", data)
    run = started(folder, FROM=str(trained / name), INIT="data", **OTHER_SHAPE)
    expected = checkpoint.load(trained / (name or "best_model.bin"))["weights"]
    if name == artefacts.MODEL_INT8:
        expected = int8.restore_weights(expected)
    assert_weights(run.model, expected)
    assert run.position.update == 0 and not run.resumed
    assert any("GPT_DIM 64 → 32" in remark for remark in run.remarks)


def test_exported_folder_is_a_beginning(tmp_path, data, trained):
    pytest.importorskip("safetensors")
    from export import sampling_from_config
    from writing import hugging_face

    (tmp_path / "hf").mkdir()
    state = checkpoint.load(trained / "best_model.bin")
    hugging_face.write(tmp_path / "hf", state, sampling_from_config())
    run = started(work_dir(tmp_path / "new", data), FROM=str(tmp_path / "hf"))
    assert_weights(run.model, state["weights"])


def test_resumed_run_is_the_same_run(tmp_path, data, trained, monkeypatch, capsys):
    """FROM 只读一次：续训时它不在了、没有再写、形状照默认的，都是同一次训练。"""
    old = tmp_path / "old.bin"
    shutil.copy(trained / "best_model.bin", old)
    options = {"FROM": str(old), "TRAIN_ITER": 12, "REPLAY_DATA": str(data), "REPLAY_SHARE": 0.3}
    whole, broken = (work_dir(tmp_path / name, data) for name in ("whole", "broken"))
    loop.train(values(whole, **options))
    stop_before(monkeypatch, 2)
    assert loop.train(values(broken, **options))["stopped"]
    old.unlink()
    capsys.readouterr()
    result = loop.train(values(broken, **{**options, "FROM": "", **OTHER_SHAPE}))
    one, other = (checkpoint.load(folder / "checkpoint.bin") for folder in (whole, broken))
    assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
    assert one["best"] == other["best"] and result["old_bpc"] == one["position"]["old_best"]
    assert other["config"]["FROM"] == str(old) and other["config"]["GPT_DIM"] == 32
    text = capsys.readouterr().out
    assert "旧诗的验证：训练以前" in text and "最佳时" in text
    rows = runlog.read(broken / "train_log.csv")
    assert [bool(row[runlog.OLD_BPC]) for row in rows] == [bool(row["val_bpc"]) for row in rows]


def test_a_run_that_is_no_better_than_its_beginning_says_so(tmp_path, data, trained, capsys):
    options = {"FROM": str(trained), "TRAIN_ITER": 2}
    folder = work_dir(tmp_path / "worse", data)
    loop.train(values(folder, **options, LEARNING_RATE=0.3, MUON_LR=0.3))
    text = capsys.readouterr().out
    before = checkpoint.load(folder / "checkpoint.bin")["position"]["from_bpc"]
    assert f"起点的模型在验证诗上：{before:.3f} 比特/字" in text
    assert f"没有比起点的模型（{before:.3f}）好" in text
    loop.train(values(work_dir(tmp_path / "zero", data), TRAIN_ITER=2))
    assert "起点的模型" not in capsys.readouterr().out


def test_from_beside_a_checkpoint_is_not_read(tmp_path, data, trained, capsys):
    folder = work_dir(tmp_path / "new", data)
    shutil.copy(trained / "checkpoint.bin", folder)
    result = loop.train(values(folder, TRAIN_ITER=6, FROM="没有这个文件"))
    assert result["updates"] == 2 and "没有再读" in capsys.readouterr().out


def test_old_poems_are_mixed_in(tmp_path, data, trained):
    folder = tmp_path / "new"
    folder.mkdir()
    build_data(folder, count=12)
    options = {"REPLAY_DATA": str(trained), "REPLAY_SHARE": 0.5}
    with pytest.raises(UserError, match="分词器不同"):
        started(folder, **options)
    shutil.copy(data, folder / "dataset.bin")
    corpus = started(folder, **options).corpus
    fresh, per_epoch = len(corpus.lengths), corpus.plan.per_epoch
    for epoch in range(2):
        numbers = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        chosen = np.concatenate([corpus.documents(number) for number in numbers])
        assert sorted(chosen[chosen < fresh]) == list(range(fresh))
        assert len(chosen) == 2 * fresh == len(set(chosen.tolist()))
        size = corpus.size(numbers)
        batches = [corpus.batch(number) for number in numbers]
        assert size.tokens == sum(batch.tokens for batch in batches)
        assert size.trained == sum(batch.trained for batch in batches)


# ── 不能用的 ──────────────────────────────────────────────────────────


def refused(folder, match, **options):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=match) as caught:
        loop.train(values(folder, **options))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    return str(caught.value)


def test_bad_sources_are_refused(tmp_path, data, trained):
    folder = work_dir(tmp_path / "new", data)
    (tmp_path / "empty").mkdir()
    whole = (trained / "best_model.bin").read_bytes()
    (tmp_path / "broken.bin").write_bytes(whole[: len(whole) // 2])
    state = checkpoint.load(trained / "best_model.bin")
    state["model_config"]["n_block"] = 3
    checkpoint.save(tmp_path / "shape.bin", state)
    for name, match in (
        ("nothing.bin", "没有找到"),
        ("empty", "没有模型"),
        ("broken.bin", "不完整或已损坏"),
        ("shape.bin", "形状对不上"),
    ):
        text = refused(folder, match, FROM=str(tmp_path / name))
        assert "什么都没有改动" in text and "Hugging Face" in text


def test_dataset_of_another_tokenizer_is_refused(tmp_path, trained):
    folder = tmp_path / "new"
    folder.mkdir()
    build_data(folder, count=12)
    source = str(trained / "best_model.bin")
    text = refused(folder, "分词器", FROM=source)
    assert f"train_dataset_one.py --FROM={source}" in text


def test_missing_old_poems_are_refused(tmp_path, data):
    folder = work_dir(tmp_path / "new", data)
    refused(folder, "REPLAY_DATA=nowhere", REPLAY_DATA="nowhere", REPLAY_SHARE=0.1)


def test_another_share_is_not_the_same_run(tmp_path, data, trained):
    folder = work_dir(tmp_path / "new", data)
    options = {"REPLAY_DATA": str(trained), "TRAIN_ITER": 3}
    loop.train(values(folder, **options))
    refused(folder, "REPLAY_SHARE", **options, REPLAY_SHARE=0.2)


def test_lasting_settings():
    config = {"FROM": "a.bin", **dict.fromkeys(beginning.SHAPE, 8), "TRAIN_ITER": 3, "SEED": 1}
    config["CHAR_LR"] = 0.001
    kept = beginning.lasting({"config": config})
    assert kept.keys() == {"FROM", *beginning.SHAPE, "TRAIN_ITER", "CHAR_LR"}
    early = beginning.lasting({"config": {"GPT_DIM": 8}})  # 早先的检查点
    assert early == {"FROM": "", "CHAR_LR": 0.0}


# ── 自动定下的配置 ────────────────────────────────────────────────────


def shipped(**options):
    """自动定下的各项都还是 config.py 原来的值，除了 options。"""
    return {**{name: DEFAULTS[name] for name in tuning.recipe(1, 1)}, **options}


def test_settings_follow_the_number_of_own_poems(tmp_path, data, trained):
    folder = work_dir(tmp_path / "new", data)
    run = started(folder, FROM=str(trained), **shipped())
    tokens = int(run.corpus.data.lengths("train").sum())
    expected = tuning.recipe(tokens, run.settings.max_seq_len)
    assert {name: run.values[name] for name in expected} == expected
    assert run.settings.learning_rate < DEFAULTS["LEARNING_RATE"]
    passes = run.settings.train_iter / run.corpus.plan.per_epoch
    assert 2 < passes < 6
    assert any("TRAIN_ITER=" in remark for remark in run.remarks)


def test_what_a_person_sets_is_left_alone_and_a_resumed_run_goes_on(tmp_path, data, trained):
    folder = work_dir(tmp_path / "new", data)
    options = shipped(TRAIN_ITER=2, MUON_LR=0.004)
    loop.train(values(folder, FROM=str(trained), **options))
    again = started(folder, **shipped(TRAIN_ITER=4))
    assert again.resumed and again.settings.train_iter == 4  # 现在给的
    assert again.settings.muon_lr == 0.004 and again.settings.batch_size == tuning.SMALL_BATCH


def test_from_zero_nothing_is_adjusted(tmp_path, data):
    run = started(work_dir(tmp_path / "new", data), **shipped())
    assert run.settings.train_iter == DEFAULTS["TRAIN_ITER"]


def test_more_poems_fewer_passes():
    counts = [tuning.passes(tokens) for tokens in (5_000, 200_000, 800_000, 2_000_000, 10**9)]
    assert counts == sorted(counts, reverse=True) and counts[-1] == tuning.LEAST_PASSES
    tiny, huge = tuning.recipe(1, 512), tuning.recipe(10**8, 512)
    assert tiny["TRAIN_ITER"] >= 8 and tiny["BATCH_SIZE"] < huge["BATCH_SIZE"]
    assert huge["SAVE_EVERY"] == DEFAULTS["SAVE_EVERY"]
