"""检查点：任何损坏都被发现，写到一半不伤旧文件，重建时分词器与模型必须相符。"""

from __future__ import annotations

import os
import random
import sys
import zipfile

import pytest
import torch

import checkpoint
from support.console import UserError
from tests import tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "best_model.bin"
    state = tiny_model.save(path)
    return path, state


def test_round_trip(saved):
    path, state = saved
    loaded = checkpoint.load(path)
    assert loaded["tokenizer"] == state["tokenizer"]
    assert all(torch.equal(loaded["weights"][k], v) for k, v in state["weights"].items())
    model, tok = checkpoint.rebuild(loaded)
    assert not model.training and tok.vocab_size == model.config.vocab_size


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch 2.1 自己的
def test_file_is_plain_torch(saved):
    """别的程序用 torch.load(weights_only=True) 也能读，zip 工具也认得。"""
    path, state = saved
    assert torch.load(path, weights_only=True)["model_config"] == state["model_config"]
    assert zipfile.ZipFile(path).testzip() is None


def test_every_bit_flip_and_truncation_is_noticed(saved, tmp_path):
    content = saved[0].read_bytes()
    rng = random.Random(0)
    damaged = []
    for _ in range(100):
        flipped = bytearray(content)
        place = rng.randrange(len(content))
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    for place in range(1, 80):  # 结尾的目录与摘要，逐字节
        flipped = bytearray(content)
        flipped[-place] ^= 16
        damaged.append(bytes(flipped))
    damaged += [content[: rng.randrange(len(content))] for _ in range(100)]
    path = tmp_path / "damaged.bin"
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(UserError):
            checkpoint.load(path)


def test_unsealed_file_is_verified_by_its_zip_checksums(saved, tmp_path):
    state = {k: v for k, v in saved[1].items() if k != "sealed"}
    path = tmp_path / "plain.bin"
    torch.save(state, path)
    assert checkpoint.load(path)["model_config"] == state["model_config"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    with pytest.raises(UserError, match="没有找到"):
        checkpoint.load(path)
    torch.save({"a": 1}, path)
    with pytest.raises(UserError, match="不是本项目的检查点"):
        checkpoint.load(path)
    torch.save({**tiny_model.save(tmp_path / "y.bin"), "version": 99}, path)
    with pytest.raises(UserError, match="99"):
        checkpoint.load(path)


def test_pickled_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    path = tmp_path / "evil.bin"
    torch.save({"weights": Evil()}, path)
    with pytest.raises(UserError):
        checkpoint.load(path)


def test_failed_save_keeps_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.bin"
    state = tiny_model.save(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(UserError, match="腾出空间"):
        checkpoint.save(path, state, checkpoint.spare_name(path))
    assert path.read_bytes() == before and not list(tmp_path.glob("*.tmp"))


def test_find_prefers_best_and_names_the_script(tmp_path):
    with pytest.raises(UserError, match=r"train_gpt\.py"):
        checkpoint.find(str(tmp_path))
    tiny_model.save(tmp_path / "checkpoint.bin")
    assert checkpoint.find(str(tmp_path)).name == "checkpoint.bin"
    tiny_model.save(tmp_path / "best_model.bin")
    assert checkpoint.find(str(tmp_path)).name == "best_model.bin"
    with pytest.raises(UserError, match="没有找到模型"):
        checkpoint.find(str(tmp_path), "other.bin")


def test_tokenizer_of_another_size_is_refused(tmp_path):
    state = tiny_model.save(tmp_path / "m.bin")
    state["model_config"] = {**state["model_config"], "vocab_size": 999}
    with pytest.raises(UserError, match="分词器"):
        checkpoint.rebuild(state)


def training_state(folder, update):
    """一个能接着训练的检查点的内容（够 load_newest 认得）。"""
    state = tiny_model.save(folder / "scratch.bin", seed=update)
    (folder / "scratch.bin").unlink()
    return {**state, "position": {"update": update}, "optimizer": {}, "chosen": {}}


def write_three(folder, newest=1, previous=0):
    checkpoint.save(folder / "checkpoint.prev.bin", training_state(folder, previous))
    checkpoint.save(folder / "checkpoint.bin", training_state(folder, newest))
    checkpoint.save(folder / "checkpoint.bin.tmp", training_state(folder, newest + 1))


def test_whole_unfinished_save_is_the_newest(tmp_path, capsys):
    write_three(tmp_path)
    assert checkpoint.load_newest(str(tmp_path))["position"]["update"] == 2
    assert "已改名" in capsys.readouterr().out and not (tmp_path / "checkpoint.bin.tmp").exists()
    assert checkpoint.load(tmp_path / "checkpoint.prev.bin")["position"]["update"] == 1


def test_whole_unfinished_save_does_not_push_out_the_good_spare(tmp_path):
    write_three(tmp_path)
    (tmp_path / "checkpoint.bin").write_bytes(b"damaged")
    assert checkpoint.load_newest(str(tmp_path))["position"]["update"] == 2
    assert checkpoint.load(tmp_path / "checkpoint.prev.bin")["position"]["update"] == 0


def test_half_unfinished_save_is_removed(tmp_path):
    write_three(tmp_path)
    half = (tmp_path / "checkpoint.bin.tmp").read_bytes()[:-100]
    (tmp_path / "checkpoint.bin.tmp").write_bytes(half)
    assert checkpoint.load_newest(str(tmp_path))["position"]["update"] == 1
    assert not (tmp_path / "checkpoint.bin.tmp").exists()


def test_model_under_the_name_of_a_checkpoint(tmp_path):
    """把 best_model.bin 复制成 checkpoint.bin：说清楚；有上一个就用上一个，它改名留着。"""
    tiny_model.save(tmp_path / "checkpoint.bin")
    with pytest.raises(UserError, match=r"best_model\.bin"):
        checkpoint.load_newest(str(tmp_path))
    checkpoint.save(tmp_path / "checkpoint.prev.bin", training_state(tmp_path, 3))
    with pytest.warns(UserWarning, match=r"checkpoint\.old1\.bin"):
        assert checkpoint.load_newest(str(tmp_path))["position"]["update"] == 3
    assert (tmp_path / "checkpoint.old1.bin").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"version": "x"},
        {"weights": None},
        {"weights": {"embed.weight": 5}},
        {"prompt_kinds": 5},
        {"tokenizer": "[" * 100000},
        {"tokenizer": "junk"},
        {"model_config": {}},
        {"model_config": {"vocab_size": 480, "new_key": 1}},
        {"model_config": {"vocab_size": 480, "dim": "64"}},
        {"model_config": {"vocab_size": 480, "n_head": 0}},
        {"quantized": "int8"},
    ],
)
def test_wrong_types_are_a_message(saved, tmp_path, change):
    path = tmp_path / "model.bin"
    checkpoint.save(path, {**saved[1], **change})
    with pytest.raises(UserError):
        checkpoint.rebuild(checkpoint.load(path))


def test_mark_without_int8_weights_is_a_message(saved, monkeypatch):
    monkeypatch.setattr(checkpoint.int8, "fast_problem", lambda: "测试")
    with pytest.raises(UserError, match="没有量化"):
        checkpoint.rebuild({**saved[1], "quantized": "int8"})


def test_folder_for_a_file_names_the_model_in_it(saved):
    with pytest.raises(UserError, match=r"best_model\.bin"):
        checkpoint.find(".", str(saved[0].parent))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows 没有命名管道文件")
def test_only_plain_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.bin")
    (tmp_path / "zero.bin").symlink_to("/dev/zero")
    for name in ("pipe.bin", "zero.bin"):
        with pytest.raises(UserError, match="管道或设备"):
            checkpoint.load(tmp_path / name)


def test_message_of_a_failed_save_is_true(saved, tmp_path):
    with pytest.raises(UserError) as caught:
        checkpoint.save(tmp_path / "gone" / "x.bin", saved[1])
    assert "找不到" in str(caught.value) and "原样" not in str(caught.value)
