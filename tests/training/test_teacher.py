"""老师：学生真的向它学，续训是同一次训练，不合用的说清楚。"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import checkpoint
import config
import dataset
from kernels.cross_entropy import default_chunks
from support.console import UserError
from tests.small_run import build_data, quick, same_when_interrupted, values, work_dir
from training import loop, prepare
from training.distributed import Ranks
from training.teacher import Teacher

WORD, OTHER = 300, 301


@pytest.fixture(autouse=True, scope="module")
def quick_start():
    with quick(poem="诗"):
        yield


def certain_of(word: int, folder: Path, data: Path) -> Path:
    """哪里都认定下一个 token 是 word 的老师。"""
    work_dir(folder, data)
    loop.train(values(folder, SEED=7, TRAIN_ITER=3))
    state = checkpoint.load(folder / "checkpoint.bin")
    state["weights"] = {name: torch.zeros_like(w) for name, w in state["weights"].items()}
    state["weights"]["embed.weight"] += 0.1
    state["weights"]["embed.weight"][word] = 1.0
    state["weights"]["norm.weight"] += 1.0
    checkpoint.save(folder / "checkpoint.bin", state)
    (folder / "best_model.bin").unlink()
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data):
    return certain_of(WORD, tmp_path_factory.mktemp("teacher") / "run", data)


@pytest.fixture(scope="module")
def second(tmp_path_factory, data):
    return certain_of(OTHER, tmp_path_factory.mktemp("second") / "run", data)


def beliefs(folder: Path, data: Path, **changes) -> tuple:
    """练出的学生平均给 WORD、OTHER 多大的概率。"""
    work_dir(folder, data)
    loop.train(values(folder, TRAIN_ITER=75, LEARNING_RATE=0.01, **changes))
    student, _ = checkpoint.rebuild(checkpoint.load(folder / "checkpoint.bin"))
    with dataset.load(folder / "dataset.bin") as opened, torch.no_grad():
        ids = torch.from_numpy(opened.document(0)[0].astype("int64"))
        means = student(ids[None]).softmax(-1).flatten(0, 1).mean(0)  # (T, V) -> (V,)
        return float(means[WORD]), float(means[OTHER])


def test_a_student_follows_its_teacher(tmp_path, data, teacher, capsys):
    assert beliefs(tmp_path / "alone", data)[0] < 0.05
    assert "老师：" not in capsys.readouterr().out
    assert beliefs(tmp_path / "taught", data, TEACHER=str(teacher))[0] > 0.2
    assert "老师：" in capsys.readouterr().out


def test_a_student_follows_all_its_teachers(tmp_path, data, teacher, second, capsys):
    both = beliefs(tmp_path / "taught", data, TEACHER=f"{teacher}, {second}")
    assert min(both) > 0.1
    assert f"老师：{teacher}, {second}" in capsys.readouterr().out


def test_several_teachers_say_the_geometric_mean(data, tmp_path):
    """老师一起的看法，就是各自的概率相乘开方再归一。"""
    folder = work_dir(tmp_path / "run", data)
    models = [prepare.open_run(values(folder, SEED=seed), Ranks()).model for seed in (1, 2, 3)]
    for model in models:
        for param in model.parameters():  # 才造好的模型，各处的概率都差不多
            torch.nn.init.normal_(param, std=0.5)
    inputs = torch.arange(3, 43).view(2, 20)
    where = torch.tensor([0, 7, 19, 20, 39])
    soft = Teacher(models).soft(inputs, where)
    said = (soft.hidden @ soft.weight.t()).softmax(-1)
    each = [model(inputs).softmax(-1).flatten(0, 1)[where] for model in models]
    mean = torch.stack(each).log().mean(0).exp()
    torch.testing.assert_close(said, mean / mean.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_the_room_of_teachers_is_what_they_hold(data, tmp_path):
    """预测的内存不少于它们手里的张量，也不多出一块概率以外的。"""
    folder = work_dir(tmp_path / "run", data)
    teachers = Teacher([prepare.open_run(values(folder), Ranks()).model for _ in range(2)])
    tables = [model.embed.weight for model in teachers.models]
    held = [param for model in teachers.models for param in model.parameters()] + tables
    soft = default_chunks("cpu").rows * len(tables[0]) * 4
    assert teachers.bytes() == pytest.approx(sum(t.nbytes for t in held) + soft, rel=0.01)


def test_an_interrupted_student_is_the_same_student(tmp_path, data, teacher, second, monkeypatch):
    assert same_when_interrupted(monkeypatch, tmp_path, data, TEACHER=f"{teacher},{second}")


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
    refused("train_gpt.py", TEACHER="2")
    refused("分词器", TEACHER=f"{teacher},{other}")
    refused("MAX_SEQ_LEN=128", TEACHER=str(teacher), MAX_SEQ_LEN=128)
    assert [path.name for path in folder.iterdir()] == ["dataset.bin"]


def test_no_teacher_by_default():
    assert config.TEACHER == ""
