"""WORK_DIR 的锁：第二个写的被拒绝，死了的主人不挡路，半成品清掉。"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import lock
from support.console import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
OWNER = """
import sys
sys.path.insert(0, sys.argv[1])
from support import lock
with lock.writing(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """另一个正在写 tmp_path 的进程。"""
    command = [sys.executable, "-c", OWNER, str(ROOT), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().strip() == b"held"
        yield process
        process.kill()


def test_second_writer_is_refused_and_takes_over_from_the_dead(tmp_path, owner):
    with pytest.raises(UserError, match=f"进程 {owner.pid}") as caught, lock.writing(tmp_path):
        pass
    assert "--WORK_DIR" in str(caught.value)
    owner.kill()
    owner.wait()
    assert (tmp_path / "writing.lock").exists()
    with lock.writing(tmp_path):
        found = json.loads((tmp_path / "writing.lock").read_text(encoding="utf-8"))
        assert found["pid"] == os.getpid() and {"host", "started", "script"} <= set(found)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_the_killed_are_swept(tmp_path):
    gone = ("train_log.csv.tmp", "model_int8.bin.tmp", "all_poems.json.tmp")
    stays = ("checkpoint.bin.tmp", "mine.tmp", "all_poems.json")
    for name in gone + stays:
        (tmp_path / name).write_text("x", encoding="utf-8")
    (tmp_path / "export_hf.123.tmp").mkdir()
    with lock.writing(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stays)


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "writing.lock").mkdir()
    with pytest.raises(UserError, match="文件夹"), lock.writing(tmp_path):
        pass
