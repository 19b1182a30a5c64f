"""老师：学生真的向它学，续训是同一次训练，不合用的说清楚。"""

from __future__ import annotations

import pytest
import torch

import checkpoint
import config
import dataset
from support.console import UserError
from tests.small_run import build_data, quick, same_when_interrupted, values, work_dir
from training import loop, prepare
from training.distributed import Ranks

WORD = 300


@pytest.fixture(autouse=True, scope="module")
def quick_start():
    with quick(poem="诗"):
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data):
    """哪里都认定下一个 token 是 WORD 的老师。"""
    folder = work_dir(tmp_path_factory.mktemp("teacher") / "run", data)
    loop.train(values(folder, SEED=7, TRAIN_ITER=3))
    state = checkpoint.load(folder / "checkpoint.bin")
    state["weights"] = {name: torch.zeros_like(w) for name, w in state["weights"].items()}
    state["weights"]["embed.weight"] += 0.1
    state["weights"]["embed.weight"][WORD] = 1.0
    state["weights"]["norm.weight"] += 1.0
    checkpoint.save(folder / "checkpoint.bin", state)
    (folder / "best_model.bin").unlink()
    return folder


def test_a_student_follows_its_teacher(tmp_path, data, teacher, capsys):
    def belief(name, **changes):
        folder = work_dir(tmp_path / name, data)
        loop.train(values(folder, TRAIN_ITER=75, LEARNING_RATE=0.01, **changes))
        student, _ = checkpoint.rebuild(checkpoint.load(folder / "checkpoint.bin"))
        with dataset.load(folder / "dataset.bin") as opened, torch.no_grad():
            ids = torch.from_numpy(opened.document(0)[0].astype("int64"))
            return float(student(ids[None]).softmax(-1)[..., WORD].mean())

    assert belief("alone") < 0.05
    assert "老师：" not in capsys.readouterr().out
    assert belief("taught", TEACHER=str(teacher)) > 0.2
    assert "老师：" in capsys.readouterr().out


def test_an_interrupted_student_is_the_same_student(tmp_path, data, teacher, monkeypatch):
    assert same_when_interrupted(monkeypatch, tmp_path, data, TEACHER=str(teacher))


def test_a_teacher_that_cannot_teach_is_refused(tmp_path, data, teacher):
    folder = work_dir(tmp_path / "run", data)
    other = tmp_path / "other"
    other.mkdir()
    build_data(other, count=30, vocab=400)
    loop.train(values(other, TRAIN_ITER=3))

    def refused(words, **changes):
        with pytest.raises(UserError, match=words) as caught:
            prepare.open_run(values(folder, **changes), Ranks())
        assert "什么都没有改动" in str(caught.value)

    refused(r"TEACHER=.*不能用", TEACHER=str(tmp_path / "nowhere"))
    refused("分词器", TEACHER=str(other))
    refused("MAX_SEQ_LEN=128", TEACHER=str(teacher), MAX_SEQ_LEN=128)
    assert [path.name for path in folder.iterdir()] == ["dataset.bin"]


def test_no_teacher_by_default():
    assert config.TEACHER == ""
