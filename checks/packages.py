"""Python 与依赖：版本、位数，该装的包装了没有。"""

from __future__ import annotations

import importlib
import platform
import re
import struct
import sys
from importlib import metadata
from pathlib import Path

from checks.finding import BAD, OK, WARN, Finding, Findings, Settings
from support.interpreter import REQUIRED, ROOT


def check_python(_: Settings) -> Findings:
    """Python：版本与位数。"""
    bits = struct.calcsize("P") * 8
    text = f"{platform.python_version()}，{bits} 位，{platform.system()} {platform.machine()}"
    if bits != 64:
        yield Finding(BAD, "Python", text, "PyTorch 只有 64 位的：请安装 64 位 Python")
    else:
        yield Finding(OK, "Python", text)


def check_packages(_: Settings) -> Findings:
    """依赖：requirements.txt 里的必需，requirements-extra.txt 里的可选。"""
    pip = f"{sys.executable} -m pip install -r"
    required = _requirement_problems(ROOT / "requirements.txt")
    broken = _broken_imports() if not required else ""
    if required:
        yield Finding(BAD, "必需的包", "；".join(required), f"{pip} requirements.txt")
    elif broken:
        mend = f"{pip} requirements.txt --force-reinstall"
        if platform.system() == "Windows":
            mend += "\n缺 DLL 时，安装微软的 Visual C++ 2015–2022 运行库"
        yield Finding(BAD, "必需的包", f"装了却载入不了：{broken}", mend)
    else:
        yield Finding(OK, "必需的包", "齐全")
    optional = _requirement_problems(ROOT / "requirements-extra.txt")
    if optional:
        text = "；".join(optional) + "（画图、网页、导出等功能会少一些）"
        yield Finding(WARN, "可选的包", text, f"{pip} requirements-extra.txt")
    else:
        yield Finding(OK, "可选的包", "齐全")


def _broken_imports() -> str:
    """载入不了的第一个必需的包和原因；都好时为空串。"""
    for name in REQUIRED:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            return f"{name}（{str(error)[:160]}）"
    return ""


def _requirement_problems(path: Path) -> list[str]:
    problems = []
    for line in path.read_text(encoding="utf-8").splitlines():
        spec, _, marker = line.split("#")[0].partition(";")
        found = re.match(r"([A-Za-z0-9_.-]+)(.*)", spec.strip())
        if not found or not version_allowed(platform.python_version(), marker.replace('"', "")):
            continue
        name, limits = found.groups()
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(f"没有 {name}")
            continue
        if not version_allowed(version, limits):
            problems.append(f"{name} {version} 不合要求 {limits.strip()}")
    return problems


def version_allowed(version: str, limits: str) -> bool:
    """版本号是否满足 ">=2.1,<3" 这样的限制（只比数字部分）。"""
    mine = _numbers(version)
    for sign, wanted in re.findall(r"(>=|<|==)\s*([0-9.]+)", limits):
        other = _numbers(wanted)
        size = max(len(mine), len(other))
        left, right = (part + (0,) * (size - len(part)) for part in (mine, other))
        if not {">=": left >= right, "<": left < right, "==": left == right}[sign]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """版本号开头的数字，如 2.13.0+cpu → (2, 13, 0)。"""
    return tuple(int(part) for part in re.match(r"[0-9.]*", version).group().split(".") if part)


CHECKS = (check_python, check_packages)
