"""运行环境：现用的 Python 什么都有就用它，否则建好并重复使用项目旁的 .venv。

只用标准库，因为这时可能什么都还没有装。python -m support.bootstrap 备好测试环境并打印解释器的路径。
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Sequence, Union

from support import console, files, installing
from support.console import UserError
from support.interpreter import REQUIRED, ROOT, VENV, venv_python

STAMP = "installed.json"  # 放在 .venv 里：装过的依赖的摘要
LOG = "install.log"  # 也在 .venv 里：pip 说的话
MIRROR = "https://pypi.tuna.tsinghua.edu.cn/simple"  # 默认索引两次不成时换它
TORCH_INDEX = "https://download.pytorch.org/whl/"

Requirement = Union[Path, str]  # 依赖文件，或一条依赖
RUN_MODULES = list(REQUIRED)


def ensure_environment(
    requirements: Sequence[Requirement],
    modules: Sequence[str],
    optional: Sequence[Requirement] = (),
) -> Path:
    """返回能 import 全部 modules 的 Python 解释器，必要时建 .venv 并安装。

    requirements：Path 是依赖文件，str 是一条依赖；optional 同样，但装不上只提醒。
    第二次运行时依赖没有变就直接重用。装不上时抛 UserError。
    """
    if not _missing_here(modules):
        return Path(sys.executable)
    python = venv_python(VENV)
    if not _runs(python):
        _create(VENV)
    stamp = _digest([*requirements, *optional])
    if stamp in _stamps() and not missing_modules(python, modules):
        return python
    print(f"正在准备运行环境 {VENV}（第一次要下载 PyTorch，可能要几分钟）…", flush=True)
    _install_torch(python, requirements)
    _install(python, requirements)
    missing = missing_modules(python, modules)
    if missing:
        raise UserError(f"安装之后仍然缺少 {'、'.join(missing)}；pip 的输出在 {VENV / LOG}")
    if optional and not _pip(python, _arguments(optional)):
        print(f"有可选的依赖没有装上，不影响核心功能；详情在 {VENV / LOG}", flush=True)
    _remember(stamp)
    return python


def test_environment() -> Path:
    """跑测试的解释器：核心依赖与 pytest 必须有，其余尽力安装。"""
    return ensure_environment(
        [ROOT / "requirements.txt", "pytest>=7"],
        [*RUN_MODULES, "pytest"],
        optional=[ROOT / "requirements-dev.txt"],
    )


def missing_modules(python: Path, modules: Sequence[str]) -> list[str]:
    """解释器 python 里找不到的模块。"""
    code = (
        "import importlib.util, sys\n"
        "print(*[m for m in sys.argv[1:] if importlib.util.find_spec(m) is None])"
    )
    command = [str(python), "-c", code, *modules]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=str(ROOT))
    return result.stdout.decode().split()


def _missing_here(modules: Sequence[str]) -> list[str]:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if "torch" in modules and "torch" not in missing and _old_torch(metadata.version("torch")):
        missing.append("torch")
    return missing


def _old_torch(version: str) -> bool:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < (2, 1)


# ── 虚拟环境 ──────────────────────────────────────────────────────────


def _runs(python: Path) -> bool:
    try:
        command = [str(python), "-m", "pip", "--version"]
        return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def _create(folder: Path) -> None:
    """建虚拟环境；已有但跑不起来的（换过 Python、搬过目录）改名留在旁边。"""
    aside = files.keep_aside(folder)
    if aside is not None:
        print(f"原来的 {folder.name} 已经不能运行，改名为 {aside.name}", flush=True)
    result = subprocess.run(
        [sys.executable, "-m", "venv", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if result.returncode or not _runs(venv_python(folder)):
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"建不了虚拟环境 {folder}：\n{result.stdout.decode(errors='replace').strip()}\n"
            "Debian、Ubuntu 请先运行：sudo apt install python3-venv\n"
            f"也可以自己安装依赖：{sys.executable} -m pip install -r requirements.txt"
        )


def _stamps() -> list[str]:
    try:
        return json.loads((VENV / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []


def _remember(stamp: str) -> None:
    with files.atomic_write(VENV / STAMP) as file:
        json.dump([*_stamps(), stamp], file)


def _digest(requirements: Sequence[Requirement]) -> str:
    """依赖的摘要：文件取内容（连同其中 -r 引用的文件），字符串取本身。"""
    total = hashlib.sha256()
    for item in requirements:
        total.update(_content(item).encode() + b"\0")
    return total.hexdigest()


def _content(item: Requirement) -> str:
    if not isinstance(item, Path):
        return str(item)
    text = item.read_text(encoding="utf-8")
    nested = re.findall(r"^-r\s+(\S+)", text, flags=re.M)
    return text + "".join(_content(item.parent / name) for name in nested)


# ── 安装 ──────────────────────────────────────────────────────────────


def _install(python: Path, requirements: Sequence[Requirement]) -> None:
    """装上全部依赖：默认索引试两次，再试国内镜像。"""
    attempts = [[], []] if os.environ.get("PIP_INDEX_URL") else [[], [], ["-i", MIRROR]]
    for number, extra in enumerate(attempts, start=1):
        if _pip(python, [*extra, *_arguments(requirements)]):
            return
        print(f"第 {number} 次安装没有成功（共试 {len(attempts)} 次）。", flush=True)
        time.sleep(2)
    command = " ".join(["-m pip install", *_arguments(requirements)])
    raise UserError(
        f"依赖没有装上（Python {platform.python_version()}），pip 的全部输出在 {VENV / LOG}\n"
        "已下载的部分 pip 会记住；请检查网络、代理与磁盘空间，然后重新运行同一条命令。\n"
        f"也可以手动安装：{python} {command}"
    )


def _arguments(requirements: Sequence[Requirement]) -> list[str]:
    result = []
    for item in requirements:
        result += ["-r", str(item)] if isinstance(item, Path) else [item]
    return result


def _pip(python: Path, arguments: Sequence[str]) -> bool:
    return installing.pip(python, arguments, VENV / LOG)


def _install_torch(python: Path, requirements: Sequence[Requirement]) -> None:
    """PyPI 上的 torch 不适合这台机器时，先从 PyTorch 的索引装合适的那一个。"""
    index = torch_index()
    texts = [_content(item) for item in requirements]
    wanted = re.findall(r"^torch\b[^#;\n]*", "\n".join(texts), flags=re.M)
    if not (index and wanted) or not missing_torch(python) or not _reachable(index):
        return
    if not _pip(python, ["--index-url", index, wanted[0].strip()]):
        print(f"从 {index} 装 PyTorch 没有成功，改用默认索引。", flush=True)


def missing_torch(python: Path) -> bool:
    """解释器里还没有 torch。"""
    return bool(missing_modules(python, ["torch"]))


def torch_index() -> str | None:
    """这台机器该用的 PyTorch 索引；None = 默认索引就对。

    Windows 的默认 torch 只有 CPU 版，有 NVIDIA 显卡时要换 CUDA 版；
    Linux 的默认 torch 带着约 3 GB 的 CUDA 库，没有显卡时换 CPU 版。
    """
    cuda = driver_cuda()
    if platform.system() == "Windows":
        return TORCH_INDEX + cuda_build(cuda, card_capability()) if cuda else None
    if platform.system() == "Linux" and cuda is not None and _is_old(card_capability()):
        return TORCH_INDEX + cuda_build(cuda, card_capability())  # 默认的可能没有给它编译的核
    if platform.system() == "Linux" and cuda is None and not Path("/opt/rocm").exists():
        return TORCH_INDEX + "cpu"
    return None


def driver_cuda() -> tuple[int, int] | None:
    """nvidia-smi 报告的 CUDA 版本，如 (12, 6)；没有 NVIDIA 显卡时为 None。"""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        output = subprocess.run([program], stdout=subprocess.PIPE, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(rb"CUDA[^:\n]*Version:\s*(\d+)\.(\d+)", output)
    return (int(found.group(1)), int(found.group(2))) if found else (12, 1)


def card_capability() -> tuple[int, int] | None:
    """最旧的那张卡的计算能力，如 (8, 6)；问不出来时为 None。"""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, stdout=subprocess.PIPE, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # 旧驱动不认得这个问法
        return None
    found = re.findall(rb"^\s*(\d+)\.(\d+)", output, re.MULTILINE)
    return min(((int(a), int(b)) for a, b in found), default=None)


def _is_old(capability: tuple[int, int] | None) -> bool:
    """Turing 以前的卡：cu128 起的 PyTorch 没有给它们编译的核。"""
    return capability is not None and capability < (7, 5)


def cuda_build(driver: tuple[int, int], capability: tuple[int, int] | None = None) -> str:
    """驱动支持的 CUDA 版本与卡 → PyTorch 索引里的名字；Python 3.8 只有 cu121 的。"""
    if sys.version_info < (3, 9):
        return "cu121"
    if _is_old(capability):
        return "cu126" if driver >= (12, 6) else "cu121"
    for version, name in (((12, 8), "cu128"), ((12, 6), "cu126")):
        if driver >= version:
            return name
    return "cu121"


def _reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/torch/", timeout=10):
            return True
    except (OSError, ValueError):
        note = "（装上的是 CPU 版，显卡用不上；换成显卡版的命令见 python diagnose.py）"
        windows = platform.system() == "Windows"
        print(f"连不上 {url}，改用默认索引{note if windows else ''}。", flush=True)
        return False


def main() -> None:
    print(test_environment())


if __name__ == "__main__":
    console.run(main)
