"""检查点：任何损坏都被发现，写到一半不伤旧文件，重建时分词器与模型必须相符。"""

from __future__ import annotations

import random
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
        checkpoint.save(path, state, keep_previous=True)
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
