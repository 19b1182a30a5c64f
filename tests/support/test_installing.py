"""安装的一行进度：由假的 pip 说出真的 pip 会说的话，不联网。"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from support import bootstrap, console, installing
from support.console import UserError

SAYS = """Looking in indexes: https://example.org/simple
Collecting torch<2.14,>=2.1 (from -r requirements.txt (line 3))
  Downloading https://example.org/whl/torch-2.5.1%2Bcpu-cp311-cp311-linux_x86_64.whl (174.7 MB)
Progress 1048576 of 4194304
Progress 4194304 of 4194304
Collecting tqdm
  Using cached tqdm-4.67.1-py3-none-any.whl.metadata (57 kB)
Building wheel for llama-cpp-python (pyproject.toml): started
Installing collected packages: tqdm, torch
Successfully installed torch-2.5.1+cpu tqdm-4.67.1
"""
FAKE = """import os, sys
if sys.argv[1:] == ["--version"]:
    print("pip " + os.environ["FAKE_VERSION"] + " from somewhere")
else:
    print("参数", *sys.argv[1:])
    sys.stdout.write(os.environ["FAKE_SAYS"])
    sys.exit(int(os.environ["FAKE_CODE"]))
"""


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """run(话, 退出码, 版本) → (成了没有, 记录的内容)。"""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(says=SAYS, code=0, version="24.2", arguments=("torch",)):
        values = {"SAYS": says, "CODE": code, "VERSION": version}
        for name, value in values.items():
            monkeypatch.setenv(f"FAKE_{name}", str(value))
        log = tmp_path / ".venv" / "install.log"
        done = installing.pip(Path(sys.executable), arguments, log)
        return done, log.read_text(encoding="utf-8")

    return run


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_screen_has_one_line_and_the_log_everything(pip, capsys):
    done, log = pip()
    assert done and capsys.readouterr().out.startswith("装好了 2 个包，")
    assert "Collecting torch<2.14" in log and "Successfully installed" in log
    assert "Progress" not in log and log.count("$ ") == 1 and "退出码 0" in log


def test_terminal_line_is_rewritten_in_place(pip, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    pip()
    *moving, last = screen.getvalue().split("\r")
    assert last.startswith("装好了 2 个包") and last.count("\n") == 1
    assert all("\n" not in text and console.width(text) < 40 for text in moving)
    assert any("安装依赖：" in text for text in moving)


def test_failure_says_why_and_later_tries_add_to_the_log(pip, capsys):
    done, _ = pip("Collecting torch\nERROR: No matching distribution found for torch\n", 1)
    assert not done
    assert capsys.readouterr().out == "ERROR: No matching distribution found for torch\n"
    assert pip()[1].count("$ ") == 2


def test_numbers_are_asked_for_where_pip_knows_them(pip):
    assert "--progress-bar raw" in pip(version="24.1")[1]
    assert "--progress-bar off" in pip(version="23.2.1")[1]
    assert "--progress-bar off" in pip(version="?")[1]


def test_what_pip_is_doing():
    seen, progress = [], installing.Progress()
    for line in SAYS.splitlines():
        progress.read(line)
        seen.append(f"{progress.doing} {progress.share}".rstrip())
    assert seen == [
        "开始",
        "查找 torch",
        "下载 torch-2.5.1 (174.7 MB)",
        "下载 torch-2.5.1 (174.7 MB) 25%",
        "下载 torch-2.5.1 (174.7 MB) 100%",
        "查找 tqdm",
        "下载 tqdm-4.67.1 (57 kB)",
        "编译 llama-cpp-python，可能要很久",
        "解开文件",
        "解开文件",
    ]


def test_failed_environment_names_the_log(pip, tmp_path, monkeypatch):
    """整条路：建环境 → pip 不成 → 消息里有记录在哪里。"""
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "_missing_here", list)
    monkeypatch.setattr(bootstrap, "venv_python", lambda folder: Path(sys.executable))
    monkeypatch.setattr(bootstrap, "torch_index", lambda: None)
    monkeypatch.setattr(bootstrap.time, "sleep", lambda seconds: None)
    pip("ERROR: 没有网络\n", 1)
    with pytest.raises(UserError, match="依赖没有装上") as caught:
        bootstrap.ensure_environment(["tqdm"], ["tqdm"])
    log = tmp_path / ".venv" / "install.log"
    assert str(log) in str(caught.value) and log.read_text(encoding="utf-8").count("$ ") >= 3
