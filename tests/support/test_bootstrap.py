"""运行环境的准备：重用、失败的消息、依赖摘要、PyTorch 索引的选择。pip 由假的代替，不联网。"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import bootstrap
from support.console import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """假的虚拟环境与 pip：记录每次的参数；fail 里的词出现在参数里就失败。"""
    calls = []

    class Pip:
        installed, fail = calls, ""

    def install(python, arguments):
        calls.append(" ".join(arguments))
        return not (Pip.fail and Pip.fail in calls[-1])

    def create(folder):
        folder.mkdir()

    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "_missing_here", lambda modules: list(modules))
    monkeypatch.setattr(bootstrap, "_runs", lambda python: bootstrap.VENV.exists())
    monkeypatch.setattr(bootstrap, "_create", create)
    monkeypatch.setattr(bootstrap, "_pip", install)
    monkeypatch.setattr(bootstrap, "torch_index", lambda: None)
    monkeypatch.setattr(bootstrap.time, "sleep", lambda seconds: None)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setattr(
        bootstrap, "missing_modules", lambda python, names: sorted({"numpy"} & {*names})
    )
    return Pip


def test_running_interpreter_is_used_when_complete(monkeypatch):
    monkeypatch.setattr(bootstrap, "_create", None)  # 用到就出错
    assert bootstrap.ensure_environment([], ["json", "torch"]) == Path(sys.executable)


def test_old_torch_does_not_count(monkeypatch):
    monkeypatch.setattr(bootstrap.metadata, "version", lambda name: "1.13.1+cu117")
    assert bootstrap._missing_here(["torch"]) == ["torch"]
    monkeypatch.setattr(bootstrap.metadata, "version", lambda name: "2.1.0a0+git")
    assert bootstrap._missing_here(["torch"]) == []


def test_second_run_reuses_until_requirements_change(pip, tmp_path):
    inner, outer = tmp_path / "inner.txt", tmp_path / "outer.txt"
    inner.write_text("# 中文\ntqdm\n", encoding="utf-8")
    outer.write_text("-r inner.txt\n", encoding="utf-8")
    python = bootstrap.ensure_environment([outer, "numpy"], ["tqdm"])
    assert python == bootstrap.venv_python(tmp_path / ".venv")
    assert pip.installed == [f"-r {outer} numpy"]
    bootstrap.ensure_environment([outer, "numpy"], ["tqdm"])
    assert len(pip.installed) == 1
    inner.write_text("tqdm>=4\n", encoding="utf-8")
    bootstrap.ensure_environment([outer, "numpy"], ["tqdm"])
    assert len(pip.installed) == 2


def test_failure_is_retried_then_explained(pip):
    pip.fail = "numpy"
    with pytest.raises(UserError, match="依赖没有装上"):
        bootstrap.ensure_environment(["numpy"], ["tqdm"])
    assert pip.installed == ["numpy", "numpy", f"-i {bootstrap.MIRROR} numpy"]
    assert not (bootstrap.VENV / bootstrap.STAMP).exists()


def test_optional_requirements_may_fail(pip, capsys):
    pip.fail = "playwright"
    bootstrap.ensure_environment(["tqdm"], ["tqdm"], optional=["playwright"])
    assert "可选" in capsys.readouterr().out
    assert len(json.loads((bootstrap.VENV / bootstrap.STAMP).read_text(encoding="utf-8"))) == 1


def test_still_missing_after_install_is_an_error(pip):
    with pytest.raises(UserError, match="numpy"):
        bootstrap.ensure_environment(["tqdm"], ["numpy"])


@pytest.mark.parametrize(
    ("system", "driver", "index"),
    [
        ("Windows", (13, 0), "cu128"),
        ("Windows", (12, 6), "cu126"),
        ("Windows", (12, 2), "cu121"),
        ("Windows", None, None),
        ("Linux", (12, 6), None),
        ("Linux", None, "cpu"),
        ("Darwin", None, None),
    ],
)
def test_torch_index(monkeypatch, system, driver, index):
    monkeypatch.setattr(bootstrap.platform, "system", lambda: system)
    monkeypatch.setattr(bootstrap, "driver_cuda", lambda: driver)
    monkeypatch.setattr(bootstrap, "card_capability", lambda: None)
    if sys.version_info < (3, 9) and index and index.startswith("cu"):
        index = "cu121"
    assert bootstrap.torch_index() == (bootstrap.TORCH_INDEX + index if index else None)


def test_driver_version_is_read_from_nvidia_smi(monkeypatch):
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: "nvidia-smi")

    def answer(output):
        done = subprocess.CompletedProcess([], 0, stdout=output)
        monkeypatch.setattr(bootstrap.subprocess, "run", lambda *_, **__: done)
        return bootstrap.driver_cuda()

    assert answer(b"| NVIDIA-SMI 560.94   Driver Version: 560.94  CUDA Version: 12.6 |") == (12, 6)
    assert answer(b"| NVIDIA-SMI 595.10   CUDA UMD Version: 13.2 |") == (13, 2)


def test_bootstrap_starts_with_the_standard_library_alone():
    """-S -I：看不到任何第三方包。"""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    code += "from support import bootstrap; print(bootstrap.VENV)"
    result = subprocess.run([sys.executable, "-S", "-I", "-c", code], stdout=subprocess.PIPE)
    assert result.returncode == 0


def test_requirement_files_are_readable_by_old_pip_everywhere():
    """旧 pip 在 GBK 系统上按系统编码读依赖文件，除非前两行写明编码。"""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert text.isascii() or "coding: utf-8" in "".join(text.splitlines()[:2])
