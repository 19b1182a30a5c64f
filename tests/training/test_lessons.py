"""先练老师再练学生：与自己一次一次练是一样的，停在哪里都接得上，谁的文件也不动。"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from support.console import UserError
from tests.small_run import build_data, quick, stop_before, values, weights, work_dir
from training import loop
from training.keeper import Records

SHORT = {"TRAIN_ITER": 18, "SEED": 5}  # 6 次更新


@pytest.fixture(autouse=True, scope="module")
def quick_start():
    with quick(poem="诗"):
        yield


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(theirs[name], weight) for name, weight in ours.items())


@pytest.fixture(scope="module")
def taught(tmp_path_factory, data) -> Path:
    """TEACHER=2 一口气练完的目录。"""
    folder = work_dir(tmp_path_factory.mktemp("lessons") / "run", data)
    loop.train(values(folder, TEACHER="2", **SHORT))
    return folder


def test_two_teachers_and_their_student_are_three_plain_runs(tmp_path, data, taught):
    folders = [work_dir(tmp_path / name, data) for name in ("one", "two", "student")]
    for folder, seed in zip(folders, (6, 7)):
        loop.train(values(folder, **{**SHORT, "SEED": seed}))
        number = folders.index(folder) + 1
        assert same(folder, taught / f"teacher{number}")
    given = ",".join(map(str, folders[:2]))
    loop.train(values(folders[2], TEACHER=given, **SHORT))
    assert same(folders[2], taught)
    assert not same(folders[0], folders[1])


def test_each_lesson_is_announced(tmp_path, data, capsys):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, TEACHER="1", **SHORT))
    said = capsys.readouterr().out
    places = [said.index(word) for word in ("【老师 1/1】", "【学生】", "老师：")]
    assert places == sorted(places)
    assert said.count("下一步") == 1 and said.index("【学生】") < said.index("下一步")
    shutil.rmtree(folder / "teacher1")  # 学生练完了，不再要老师
    loop.train(values(folder, TEACHER="1", **SHORT))
    assert capsys.readouterr().out.count("这次训练已经完成") == 1
    assert not (folder / "teacher1").exists()


@pytest.mark.parametrize("moments", [(2,), (0, 4), (5, 5, 3)])
def test_stopped_anywhere_the_same_command_goes_on(tmp_path, data, taught, monkeypatch, moments):
    """几次 Ctrl-C，落在哪个老师或学生身上都一样。"""
    folder = work_dir(tmp_path / "run", data)
    stop_before(monkeypatch, *moments)
    results = [loop.train(values(folder, TEACHER="2", **SHORT)) for _ in range(len(moments) + 1)]
    assert [bool(result["stopped"]) for result in results] == [True] * len(moments) + [False]
    assert same(taught, folder)


def test_a_new_dataset_reaches_the_teachers_and_nothing_is_lost(tmp_path, data):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, TEACHER="1", **SHORT))
    before = weights(folder / "teacher1")
    other = tmp_path / "other"
    other.mkdir()
    os.replace(build_data(other, count=40), folder / "dataset.bin")
    longer = {**SHORT, "TRAIN_ITER": 24}  # 还没有练完
    with pytest.raises(UserError, match=r"另一份 dataset\.bin"):
        loop.train(values(folder, TEACHER="1", **longer))
    assert (folder / "teacher1" / "dataset.bin").read_bytes() == data.read_bytes()
    loop.train(values(folder, TEACHER="1", RESUME="off", **longer))
    assert (folder / "teacher1" / "dataset.old1.bin").read_bytes() == data.read_bytes()
    kept = weights(folder / "teacher1", "checkpoint.old1.bin")
    assert all(torch.equal(kept[name], weight) for name, weight in before.items())


def test_a_plain_run_there_is_not_taken_for_the_student(tmp_path, data, taught, capsys):
    """照过拟合的提示来：先说清楚，什么都不练；--RESUME=off 才练老师与学生，旧的留着。"""
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, **SHORT))
    before = weights(folder)
    with pytest.raises(UserError, match="--RESUME=off"):
        loop.train(values(folder, TEACHER="2", **SHORT))
    assert not (folder / "teacher1").exists()
    loop.train(values(folder, TEACHER="2", RESUME="off", **SHORT))
    assert same(taught, folder)
    kept = weights(folder, "checkpoint.old1.bin")
    assert all(torch.equal(kept[name], weight) for name, weight in before.items())
    assert "checkpoint.old1.bin" in capsys.readouterr().out
    with pytest.raises(UserError, match="这 3 个老师"):
        loop.train(values(folder, TEACHER="3", **SHORT))


def test_begun_anew_and_stopped_it_goes_on_without_resume_off(
    tmp_path, data, taught, monkeypatch, capsys
):
    """以前的老师与学生都在；从头来的停在一个老师身上，不带 --RESUME=off 就从那里接着。"""
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, TEACHER="2", **{**SHORT, "SEED": 77}))
    stop_before(monkeypatch, 3)
    stopped = loop.train(values(folder, TEACHER="2", RESUME="off", **SHORT))["stopped"]
    said = capsys.readouterr().out
    assert stopped and "重新运行，不带 --RESUME=off" in said and "同一条命令" not in said
    loop.train(values(folder, TEACHER="2", **SHORT))
    assert "续训：从第 3 次更新接着来" in capsys.readouterr().out
    assert same(taught, folder)


def test_a_signal_while_a_teacher_winds_up_is_heeded(tmp_path, data, taught, monkeypatch):
    folder = work_dir(tmp_path / "run", data)
    wind_up = Records.finish

    def signalled(keeper):
        wind_up(keeper)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "finish", signalled)
        assert loop.train(values(folder, TEACHER="2", **SHORT))["stopped"] == signal.SIGINT
    assert not (folder / "teacher2").exists()
    loop.train(values(folder, TEACHER="2", **SHORT))
    assert same(taught, folder)


def test_a_linked_dataset_reaches_the_teachers(tmp_path, data, taught):
    """WORK_DIR 的 dataset.bin 是个相对的链接。"""
    shutil.copy(data, tmp_path / "shared.bin")
    folder = tmp_path / "run"
    folder.mkdir()
    try:
        (folder / "dataset.bin").symlink_to(Path("..") / "shared.bin")
    except OSError:
        pytest.skip("这里不能建链接")
    loop.train(values(folder, TEACHER="2", **SHORT))
    assert same(taught, folder)


def test_a_comma_in_the_folder_is_refused_before_anything(tmp_path, data):
    folder = work_dir(tmp_path / "a,b", data)
    with pytest.raises(UserError, match="逗号"):
        loop.train(values(folder, TEACHER="1", **SHORT))
    assert not (folder / "teacher1").exists()


def test_without_hard_links_the_dataset_is_copied(tmp_path, data, taught, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("没有硬链接")

    folder = work_dir(tmp_path / "run", data)
    monkeypatch.setattr(os, "link", refuse)
    loop.train(values(folder, TEACHER="2", **SHORT))
    assert (folder / "teacher1" / "dataset.bin").read_bytes() == data.read_bytes()
    assert same(taught, folder)


def test_inputs_beside_the_dataset_are_found_by_the_teachers_too(tmp_path, data, taught):
    """FROM、REPLAY_DATA 写成相对 WORK_DIR 的路径。"""
    folder = work_dir(tmp_path / "run", data)
    shutil.copy(taught / "best_model.bin", folder / "base.bin")
    shutil.copy(data, folder / "old.bin")
    mixed = {"FROM": "base.bin", "REPLAY_DATA": "old.bin", "REPLAY_SHARE": 0.2}
    assert loop.train(values(folder, TEACHER="1", **SHORT, **mixed))["updates"] == 6


def test_zero_teachers_is_no_teacher(tmp_path, data, capsys):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, TEACHER="0", **SHORT))
    assert "老师" not in capsys.readouterr().out
    assert not list(folder.glob("teacher*"))


def test_without_a_dataset_no_teacher_begins(tmp_path):
    with pytest.raises(UserError, match="没有找到数据集"):
        loop.train(values(tmp_path / "empty", TEACHER="2", **SHORT))
