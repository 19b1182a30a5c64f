"""在使用者的机器上编译：有就用，没有就在后台编；编不了照旧，不再试。"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kernels import compiler
from support.console import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def place(tmp_path, monkeypatch):
    """能编译的机器，空的缓存文件夹。"""
    monkeypatch.setenv("POEM_CACHE", str(tmp_path / "kernels"))
    if compiler.problem():
        pytest.skip(compiler.problem())
    return tmp_path / "kernels"


def wait():
    for thread in threading.enumerate():
        if thread.name == "compiler":
            thread.join()


def test_auto_builds_behind_and_uses_it_next_time(place, capsys):
    unfinished = place / "making-left"
    unfinished.mkdir(parents=True)
    os.utime(unfinished, (0, 0))
    assert compiler.pick("auto") is None
    wait()
    assert "后台编译" in capsys.readouterr().err
    assert compiler.pick("auto").forward and compiler.library_path().parent == place
    assert [path.name for path in place.iterdir()] == [compiler.library_path().name]
    assert compiler.pick("off") is None and capsys.readouterr().err == ""


@pytest.fixture
def failing(place, tmp_path, monkeypatch):
    """编译器总说不行。"""
    script = tmp_path / "bad-compiler"
    script.write_text("#!/bin/sh\necho 'error: 不认识 -mavx2'\nexit 1\n", encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    return script


def test_a_failure_is_said_kept_and_not_repeated(failing, capsys):
    assert compiler.pick("auto") is None
    wait()
    assert "没有编成" in capsys.readouterr().err
    note = compiler.library_path().with_suffix(".txt")
    assert "不认识 -mavx2" in note.read_text(encoding="utf-8")
    assert str(note) in compiler.problem()
    assert compiler.pick("auto") is None and capsys.readouterr().err == ""


def test_one_poem_and_out_still_builds_it(place):
    """写一首就退出的程序，也把核编完。"""
    code = "from kernels import compiler; assert compiler.pick('auto') is None"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert compiler.library_path().exists()


def test_waiting_for_it(failing, capsys):
    """测速时等它编完。"""
    assert compiler.pick("auto", wait=True) is None
    assert "没有编成" in capsys.readouterr().err
    assert compiler.library_path().with_suffix(".txt").exists()


def test_on_says_why_and_tries_again(failing, monkeypatch):
    for _ in range(2):
        with pytest.raises(UserError, match=r"没有编成.*COMPILE=auto"):
            compiler.pick("on")
    monkeypatch.delenv("CXX")
    assert compiler.pick("on") is not None


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_no_compiler(place, tmp_path, monkeypatch, choice, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "没有 C++ 编译器" in compiler.problem()
    if choice == "on":
        with pytest.raises(UserError, match="没有 C\\+\\+ 编译器"):
            compiler.pick(choice)
    else:
        assert compiler.pick(choice) is None and capsys.readouterr().err == ""


@pytest.mark.parametrize("machine, capability", [("arm64", "DEFAULT"), ("x86_64", "DEFAULT")])
def test_other_processors(place, monkeypatch, machine, capability):
    monkeypatch.setattr(compiler.platform, "machine", lambda: machine)
    monkeypatch.setattr(
        compiler.torch.backends.cpu, "get_cpu_capability", lambda: capability, raising=False
    )
    assert compiler.problem() and compiler.pick("auto") is None


def test_windows(place, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert "Windows" in compiler.problem()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("POEM_CACHE", str(tmp_path / "file"))
    assert compiler.pick("auto") is None and capsys.readouterr().err == ""


def test_a_library_that_does_not_load(place):
    place.mkdir()
    compiler.library_path().write_bytes("别的机器编的".encode())
    assert compiler.pick("auto") is None
