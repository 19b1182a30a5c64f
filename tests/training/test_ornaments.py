"""接着写的记录：不是普通文件的改名留着，不等、不读到内存用完，训练照常。"""

from __future__ import annotations

import os

import pytest

from training import runlog
from training.ornaments import Ornaments


def make_pipe(path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("这个系统没有管道文件")
    os.mkfifo(path)


def make_endless(path):
    if not os.path.exists("/dev/zero"):
        pytest.skip("这个系统没有 /dev/zero")
    os.symlink("/dev/zero", path)


@pytest.mark.parametrize("make", [make_pipe, make_endless, os.mkdir])
@pytest.mark.parametrize("name", ["samples.txt", "train_log.csv"])
def test_a_record_that_is_no_plain_file_is_put_aside(tmp_path, make, name):
    said = []
    ornaments = Ornaments(tmp_path, said.append)
    make(tmp_path / name)
    if name == "samples.txt":
        ornaments.reopen(name, lambda path: runlog.trim_samples(path, 3))
        runlog.add_sample(tmp_path / name, 4, "雨", "一行\n")
    else:
        log = ornaments.reopen(name, lambda path: runlog.TrainLog(path, 3))
        log.add(dict.fromkeys(runlog.COLUMNS, "1"))
    assert (tmp_path / name).is_file() and (tmp_path / name).stat().st_size
    assert len(list(tmp_path.iterdir())) == 2 and "不是普通文件" in said[0]
