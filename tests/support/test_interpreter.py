"""没有装依赖的 Python：脚本说一句话，指出该用哪一个 Python，不是一串回溯。"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import interpreter

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [
    path.name
    for path in sorted(ROOT.glob("*.py"))
    if "interpreter.begin(" in path.read_text(encoding="utf-8")
]


def test_every_script_begins_with_it():
    """门口的脚本都是；自己备环境的 quickstart、专门查依赖的 diagnose、测速的 benchmark 不是。"""
    runs = {
        path.name
        for path in ROOT.glob("*.py")
        if re.search(r"^    (console\.run|launch\w*\.\w+)\(", path.read_text("utf-8"), re.M)
    }
    assert runs - {"quickstart.py", "diagnose.py", "benchmark.py"} == {*SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_the_packages(script):
    """-S：不看 site-packages，等于刚装好的 Python。"""
    run = subprocess.run(
        [sys.executable, "-S", str(ROOT / script), "--WORK_DIR=exp"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    shown = run.stdout.decode("utf-8", "replace")
    assert run.returncode == 1 and "Traceback" not in shown
    assert "numpy" in shown and (f"{script} --WORK_DIR=exp" in shown or "quickstart.py" in shown)


def refusal(capsys):
    with pytest.raises(SystemExit) as stopped:
        interpreter.begin(["numpy", "no_such_package"])
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_the_environment_of_quickstart_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(interpreter, "VENV", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/x/infere.py", "--WORK_DIR=quickstart_out"])
    assert "pip install -r" in refusal(capsys)
    python = interpreter.venv_python(tmp_path)
    python.parent.mkdir()
    python.touch()
    shown = refusal(capsys)
    assert f"{python} infere.py --WORK_DIR=quickstart_out" in shown.replace('"', "")
    assert "no_such_package" in shown and "numpy" not in shown
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert "pip install -r" in refusal(capsys)


def test_how_the_interpreter_is_typed(monkeypatch, tmp_path):
    monkeypatch.setattr(interpreter, "ROOT", tmp_path / "my poems")
    inside = tmp_path / "my poems" / ".venv" / "bin" / "python"
    assert interpreter.typed(inside) == str(Path(".venv", "bin", "python"))
    assert interpreter.typed(tmp_path / "a b" / "python") == f'"{tmp_path / "a b" / "python"}"'
