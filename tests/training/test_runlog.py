"""记录：各列怎样算出；添了列的新程序接着写旧文件。"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_run import values
from training import runlog
from training.position import Position
from training.settings import Settings

SETTINGS = Settings.pick(values(Path("anywhere"), LEARNING_RATE=0.003))


def step(update):
    here = Position(update, tokens=100 * update, seconds=0.5 * update)
    return runlog.Step(SETTINGS, here, 4.25, norm=1.0, lr_scale=0.5, tokens=100, seconds=0.5)


def test_row():
    assert runlog.row(step(12)) == {
        "iter": 35,
        "update": 12,
        "loss": "4.250000",
        "val_bpc": "",
        "lr": "0.0015",
        "tokens": 1200,
        "tokens_per_s": "200.0",
        "seconds": "6.00",
    }
    assert ",".join(runlog.COLUMNS) == "iter,update,loss,val_bpc,lr,tokens,tokens_per_s,seconds"


def test_a_new_column_is_empty_in_old_rows(tmp_path, monkeypatch):
    path = tmp_path / "train_log.csv"
    log = runlog.TrainLog(path, 0)
    log.add(runlog.row(step(1)))
    monkeypatch.setattr(runlog, "COLUMNS", (*runlog.COLUMNS, "norm"))
    log = runlog.TrainLog(path, 1)
    log.add({**runlog.row(step(2)), "norm": "1.5"})
    assert [row["norm"] for row in runlog.read(path)] == ["", "1.5"]
    monkeypatch.undo()  # 旧程序接着写新文件：它不认得的列丢掉
    runlog.TrainLog(path, 2)
    assert [row["update"] for row in runlog.read(path)] == ["1", "2"]
    assert "norm" not in path.read_text(encoding="utf-8")


def test_scores_of_old_poems_stay(tmp_path):
    path = tmp_path / "train_log.csv"
    log = runlog.TrainLog(path, 0, old_poems=True)
    log.add({**runlog.row(step(1)), runlog.OLD_BPC: "6.5"})
    runlog.TrainLog(path, 1)  # 续训时没有再给 REPLAY_DATA
    assert [row[runlog.OLD_BPC] for row in runlog.read(path)] == ["6.5"]


def test_half_written_last_row_does_not_count(tmp_path):
    path = tmp_path / "train_log.csv"
    log = runlog.TrainLog(path, 0)
    log.add(runlog.row(step(1)))
    with open(path, "a", encoding="utf-8") as file:
        file.write("6,2,4.1\n9,3,4.")
    assert [row["update"] for row in runlog.read(path)] == ["1"]


def test_rows_that_did_not_fit_are_written_later(tmp_path, monkeypatch):
    path = tmp_path / "train_log.csv"
    log = runlog.TrainLog(path, 0)
    log.add(runlog.row(step(1)))
    path.rename(tmp_path / "away.csv")
    path.mkdir()
    with pytest.raises(OSError):
        log.add(runlog.row(step(2)))
    path.rmdir()
    (tmp_path / "away.csv").rename(path)
    log.add(runlog.row(step(3)))
    assert [row["update"] for row in runlog.read(path)] == ["1", "2", "3"]


@pytest.mark.parametrize("damage", [b"3,x,1.0,,,,,\n", b"3,1,\xff,,,,,\n", b"3,1,1,,,,,,,9\n"])
def test_damaged_log_is_a_value_error(tmp_path, damage):
    path = tmp_path / "train_log.csv"
    runlog.TrainLog(path, 0).add(runlog.row(step(1)))
    with open(path, "ab") as file:
        file.write(damage)
    with pytest.raises(ValueError):
        runlog.TrainLog(path, 9)
