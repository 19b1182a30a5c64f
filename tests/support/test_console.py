"""脚本的入口：每种出错方式都是一句话；标准流缺了、断了都不连累正事。"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import console, files, streams
from support.console import UserError

ROOT = Path(__file__).resolve().parents[2]
POSIX = pytest.mark.skipif(os.name != "posix", reason="要 POSIX 的 shell")


def script(body: str, tail: str = "", must_finish: bool = False) -> subprocess.CompletedProcess:
    """把 body 当脚本的 main 在 shell 里运行；tail 是重定向或管道。"""
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    code = "import errno, os, sys\nfrom support import console\n"
    code += f"def main():\n{lines}console.run(main, must_finish={must_finish})\n"
    command = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {tail}', sys.executable, code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")


def raised(error: str) -> subprocess.CompletedProcess:
    return script(f"raise {error}")


# ── 系统错误 ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "磁盘满了"),
        (errno.EROFS, "只读"),
        (errno.EACCES, "没有权限"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EISDIR, "是文件夹"),
        (errno.ENAMETOOLONG, "文件名太长"),
    ],
)
def test_system_errors_are_explained(number, words):
    text = console.explain(OSError(number, os.strerror(number), "w/dataset.bin"))
    assert words in text and "w/dataset.bin" in text
    assert ("腾出空间" in text) == (number == errno.ENOSPC)


def test_unknown_system_errors_keep_the_reason():
    assert console.explain(OSError("怪事")) == "系统出错：怪事"
    assert "磁盘满了，写不下文件。" in console.explain(OSError(errno.ENOSPC, "No space"))
    renamed = OSError(errno.EACCES, "Permission denied", "a.tmp", None, "a.bin")
    assert "读写 a.bin。" in console.explain(renamed)


def test_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("旧", encoding="utf-8")
    with pytest.raises(OSError, match="No space") as caught, files.atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert f"写不下 {path}。" in console.explain(caught.value)
    assert path.read_text(encoding="utf-8") == "旧" and len(list(tmp_path.iterdir())) == 1


@POSIX
@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        ("OSError(errno.ENOSPC, 'x', 'a.bin')", 1, "出错了：磁盘满了，写不下 a.bin。"),
        ("PermissionError(errno.EACCES, 'x', 'a.bin')", 1, "出错了：没有权限"),
        ("console.UserError('请改一改')", 1, "出错了：请改一改"),
        ("KeyboardInterrupt", 130, "已中断"),
    ],
)
def test_every_error_is_one_message(error, code, words):
    done = raised(error)
    assert done.returncode == code
    assert words in done.stderr and "Traceback" not in done.stderr


@POSIX
def test_bugs_keep_their_traceback():
    assert "ZeroDivisionError" in raised("ZeroDivisionError").stderr


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root 不受权限约束")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises((UserError, PermissionError)), files.atomic_write(tmp_path / "a"):
        pass


# ── 标准流 ────────────────────────────────────────────────────────────

CHATTER = "for i in range(20000):\n    print('第', i, '行')"


@POSIX
def test_a_reader_that_leaves_ends_the_script_quietly():
    done = script(CHATTER, "| head -1")
    assert (done.returncode, done.stdout, done.stderr) == (141, "第 0 行\n", "")


@POSIX
def test_help_into_head_is_quiet():
    command = f'set -o pipefail; "{sys.executable}" data_clean.py --help | head -1'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True)
    assert done.stderr == b"" and done.stdout.count(b"\n") == 1


@POSIX
@pytest.mark.parametrize("tail", ["| head -1", ">/dev/full", ">&-", "2>&1 | head -1"])
def test_what_must_finish_finishes_without_its_output(tail, tmp_path):
    mark = tmp_path / "done"
    body = f"{CHATTER}\nprint('警告', file=sys.stderr)\nopen({str(mark)!r}, 'w').close()"
    done = script(body, tail, must_finish=True)
    assert done.returncode == 0 and mark.exists()
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@POSIX
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="没有 /dev/full")
def test_full_output_is_one_message():
    done = script(CHATTER, ">/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("出错了：磁盘满了") and done.stderr.count("\n") == 1


@POSIX
@pytest.mark.parametrize("tail", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_missing_streams(tail):
    body = "print('诗')\nprint('诗', file=sys.stderr)\nsys.stdin.read()"
    body += "\nconsole.progress(3, '读').close()"
    assert script(f"{body}\nreturn 7", tail).returncode == 7


@POSIX
def test_failure_without_any_output_keeps_its_code():
    assert script("raise console.UserError('说不出去')", ">&- 2>&-").returncode == 1


def test_progress_without_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with console.progress(3, "读") as bar:
        bar.update(3)


# ── 笔记本 ────────────────────────────────────────────────────────────


def test_progress_in_a_notebook_cell_moves_often(monkeypatch):
    """ipykernel 的流不是终端，却有人在看；训练给它套上 Lasting 之后也认得。"""
    import io

    cell = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    for stream, seconds in ((cell, 0.2), (streams.Lasting(cell), 0.2), (io.StringIO(), 10)):
        monkeypatch.setattr(sys, "stderr", stream)
        with console.progress(3, "训练") as bar:
            assert bar.mininterval == seconds


def test_lasting_streams_are_not_wrapped_twice(monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    for _ in range(2):
        streams.keep_on_without_output()
    assert not isinstance(sys.stdout.stream, streams.Lasting)


# ── Ctrl-C ────────────────────────────────────────────────────────────

IMPORTING = """
import builtins, os, runpy, signal, sys
real = builtins.__import__
def imported(name, *rest):
    if name == "torch":
        builtins.__import__ = real
        signal.raise_signal(signal.SIGINT)
    return real(name, *rest)
builtins.__import__ = imported
script = sys.argv.pop(1)
sys.argv[0] = script
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize(
    "name", ["evaluate.py", "export.py", "quantize.py", "train_dataset_one.py"]
)
def test_interrupt_while_importing_is_one_line(name, tmp_path):
    command = [sys.executable, "-c", IMPORTING, str(ROOT / name)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr.strip()) == (130, "已中断。")


@POSIX
def test_interrupts_while_leaving_are_quiet():
    body = "import atexit, signal\n"
    body += "atexit.register(lambda: signal.raise_signal(signal.SIGINT))\nraise KeyboardInterrupt"
    done = script(body)
    assert (done.returncode, done.stderr.strip()) == (130, "已中断。")
