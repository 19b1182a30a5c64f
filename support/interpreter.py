"""用哪一个 Python：脚本要的包在不在这里，项目的 .venv 在哪里。只用标准库。"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Sequence

from support import console
from support.console import UserError

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
REQUIRED = ("torch", "tokenizers", "numpy", "tqdm")


def begin(required: Sequence[str] = REQUIRED) -> None:
    """脚本最前面叫它：缺了包、导入时按 Ctrl-C 都只是一句话，不是一串回溯。"""
    console.quiet_imports()
    absent = [name for name in required if importlib.util.find_spec(name) is None]
    if absent:
        console.run(lambda: _refuse(absent))


def _refuse(absent: Sequence[str]) -> None:
    script = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    python, here = venv_python(VENV), Path(sys.executable)
    if python.exists() and Path(sys.prefix).resolve() != VENV.resolve():
        advice = f"请用 quickstart.py 备好的那个：{typed(python)} {script}"
    else:
        advice = (
            f"请安装：{typed(here)} -m pip install -r requirements.txt\n"
            "或者先运行 python quickstart.py，它会备好一切"
        )
    raise UserError(f"这个 Python（{here}）里没有 {'、'.join(absent)}。\n{advice}")


def typed(python: Path) -> str:
    """在项目的文件夹里怎样打这个解释器：.venv 里的写相对路径，短，也不怕路径里的空格。"""
    try:
        return str(python.relative_to(ROOT))
    except ValueError:
        return f'"{python}"' if " " in str(python) else str(python)


def venv_python(folder: Path) -> Path:
    """虚拟环境里解释器的路径（Windows 与其他系统不同）。"""
    if sys.platform == "win32":
        return folder / "Scripts" / "python.exe"
    return folder / "bin" / "python"
