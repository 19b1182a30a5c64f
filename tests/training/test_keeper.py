"""训练外围的事出错：记录、示例诗、图少了也照样训练；离开循环时先存下最后一次完整的更新。"""

from __future__ import annotations

import errno
import shutil
import signal

import pytest

import checkpoint
import dataset
from support import hardware
from support.console import UserError
from tests.small_run import quick, values, work_dir
from training import keeper, loop, runlog, samples, stop, validation
from training.stepper import Stepper

OPTIONS = {"TRAIN_ITER": 18, "EVAL_EVERY": 9, "SAVE_EVERY": 9, "SAMPLE_EVERY": 9}


@pytest.fixture(autouse=True)
def quick_start():
    with quick():
        yield


def updates_in(folder):
    return checkpoint.load(folder / "checkpoint.bin")["position"]["update"]


def fail_at(monkeypatch, update, error):
    real = loop.one_update

    def one_update(run, *parts):
        if run.position.update == update:
            raise error
        return real(run, *parts)

    monkeypatch.setattr(loop, "one_update", one_update)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device", "x")


@pytest.mark.parametrize(
    "owner, name",
    [
        (runlog.TrainLog, "add"),
        (runlog, "add_sample"),
        (runlog, "write_info"),
        (runlog, "draw"),
        (samples, "poem"),
        (keeper.runlog, "TrainLog"),
    ],
)
def test_ornaments_never_stop_the_training(tmp_path, data, monkeypatch, capsys, owner, name):
    folder = work_dir(tmp_path / "run", data)
    monkeypatch.setattr(owner, name, full_disk)
    assert loop.train(values(folder, **OPTIONS))["updates"] == 6
    text = capsys.readouterr().out
    assert text.count("没有写成，训练继续") == 1 and "磁盘满了" in text
    assert updates_in(folder) == 6


@pytest.mark.parametrize("name", ["train_log.csv", "samples.txt", "run_info.json"])
@pytest.mark.parametrize(
    "content", [b"iter,update\n\xff\xfe\n", b"iter,update\n3,x\n", b"[" * 9999]
)
def test_damaged_records_are_set_aside(tmp_path, data, capsys, name, content):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, **OPTIONS))
    (folder / name).write_bytes(content)
    assert loop.train(values(folder, **{**OPTIONS, "TRAIN_ITER": 24}))["updates"] == 8
    aside = folder / f"{name.split('.')[0]}.old1.{name.split('.')[1]}"
    if "已损坏" in capsys.readouterr().out:
        assert aside.read_bytes() == content


@pytest.mark.parametrize("error", [MemoryError(), UserError("不行"), KeyError("程序的错")])
def test_whatever_leaves_the_loop_saves_first(tmp_path, data, monkeypatch, capsys, error):
    folder = work_dir(tmp_path / "run", data)
    fail_at(monkeypatch, 5, error)
    with pytest.raises(type(error)) as caught:
        loop.train(values(folder, **OPTIONS, DROPOUT=0.1))
    assert caught.value is error and updates_in(folder) == 5
    assert "第 5 次更新以前的都已存进" in capsys.readouterr().out


def test_the_way_on_from_a_fresh_start_leaves_out_the_option(tmp_path, data, monkeypatch, capsys):
    fail_at(monkeypatch, 5, MemoryError())
    with pytest.raises(MemoryError):
        loop.train(values(work_dir(tmp_path / "run", data), **OPTIONS, RESUME="off"))
    assert "不带 --RESUME=off（有它就从头再来）就接着训练" in capsys.readouterr().out


def test_half_a_step_is_not_saved(tmp_path, data, monkeypatch):
    folder = work_dir(tmp_path / "run", data)
    real, steps = Stepper.step, []

    def counted(stepper, *given):
        found = real(stepper, *given)
        steps.append(1)
        if len(steps) == 5:
            raise MemoryError
        return found

    monkeypatch.setattr(Stepper, "step", counted)
    with pytest.raises(MemoryError):
        loop.train(values(folder, **OPTIONS))
    assert updates_in(folder) == 3  # 上一次照常的保存


def test_failing_rescue_does_not_hide_the_error(tmp_path, data, monkeypatch, capsys):
    folder = work_dir(tmp_path / "run", data)
    fail_at(monkeypatch, 5, KeyError("程序的错"))
    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(KeyError):
        loop.train(values(folder, **OPTIONS))
    assert "也没能存下" in capsys.readouterr().out and not (folder / "checkpoint.bin").exists()


def test_removed_folder_is_said_and_made_again(tmp_path, data, monkeypatch, capsys):
    folder = work_dir(tmp_path / "run", data)
    real = loop.one_update

    def one_update(run, *parts):
        if run.position.update == 4:
            shutil.rmtree(folder, ignore_errors=True)
        return real(run, *parts)

    monkeypatch.setattr(loop, "one_update", one_update)
    assert loop.train(values(folder, **OPTIONS))["updates"] == 6
    assert "不见了" in capsys.readouterr().out and updates_in(folder) == 6


def test_old_models_keep_their_names_until_there_are_new_ones(tmp_path, data, monkeypatch):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, **OPTIONS))
    names = ("checkpoint.bin", "checkpoint.prev.bin", "best_model.bin")
    old = {name: (folder / name).read_bytes() for name in names}
    fail_at(monkeypatch, 0, KeyError("一开始就错"))
    again = values(folder, **OPTIONS, RESUME="off", SEED=7)
    with pytest.raises(KeyError):
        loop.train(again)
    assert {name: (folder / name).read_bytes() for name in names} == old
    monkeypatch.undo()
    monkeypatch.setattr(hardware, "measure_peak", lambda *_: 1e11)
    monkeypatch.setattr(validation, "bits_per_char", lambda run: 5.0)
    loop.train(again)
    aside = [f"{name[:-4]}.old1.bin" for name in names]
    assert [(folder / name).read_bytes() for name in aside] == list(old.values())
    assert checkpoint.load(folder / "checkpoint.prev.bin")["config"]["SEED"] == 7


def test_damaged_newest_is_not_kept_as_the_spare(tmp_path, data, monkeypatch):
    """最新的检查点坏了：下一次保存不能让它顶掉完好的上一个。"""
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, **OPTIONS))
    newest = bytearray((folder / "checkpoint.bin").read_bytes())
    newest[len(newest) // 2] ^= 4
    (folder / "checkpoint.bin").write_bytes(bytes(newest))
    with pytest.warns(UserWarning, match="改用上一个"):
        loop.train(values(folder, **{**OPTIONS, "TRAIN_ITER": 24}))
    assert (folder / "checkpoint.old1.bin").read_bytes() == bytes(newest)
    checkpoint.load(folder / "checkpoint.prev.bin")
    assert updates_in(folder) == 8


def test_ctrl_c_held_down_still_leaves_the_last_whole_update(tmp_path, data, monkeypatch, capsys):
    """按住不放：三次接连而来，保存的前后又各来一次。"""
    real, save = loop.one_update, checkpoint.save

    def one_update(run, *parts):
        for _ in range(3 if run.position.update == 4 else 0):
            signal.raise_signal(signal.SIGINT)
        return real(run, *parts)

    def saving(*given):
        signal.raise_signal(signal.SIGINT)
        save(*given)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop, "one_update", one_update)
    folder = work_dir(tmp_path / "run", data)
    monkeypatch.setattr(keeper.checkpoint, "save", saving)
    monkeypatch.setattr(stop.time, "monotonic", lambda: 100.0)
    result = loop.train(values(folder, **{**OPTIONS, "SAVE_EVERY": 900, "EVAL_EVERY": 900}))
    assert (result["stopped"], updates_in(folder)) == (signal.SIGINT, 4)
    assert "Traceback" not in capsys.readouterr().err


def flip_a_token(path):
    with dataset.load(path) as data:
        start = path.stat().st_size - data.header["bytes"]
        place = start + data.header["arrays"]["chars"]["offset"]
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def test_flipped_bit_in_the_data_stops_before_the_first_save(tmp_path, data):
    folder = work_dir(tmp_path / "run", data)
    flip_a_token(folder / "dataset.bin")
    with pytest.raises(UserError, match=r"dataset\.bin 已损坏.*chars"):
        loop.train(values(folder, **OPTIONS))
    assert not (folder / "checkpoint.bin").exists() and not (folder / "best_model.bin").exists()


def test_flipped_bit_in_the_old_poems_stops_before_the_first_save(tmp_path, data):
    folder, old = work_dir(tmp_path / "run", data), work_dir(tmp_path / "old", data)
    flip_a_token(old / "dataset.bin")
    given = {"REPLAY_DATA": str(old), "REPLAY_SHARE": 0.2}
    with pytest.raises(UserError, match=r"REPLAY_DATA 的旧诗 已损坏.*chars"):
        loop.train(values(folder, **OPTIONS, **given))
    assert not (folder / "checkpoint.bin").exists()
