"""python -m tests [pytest 的参数]：备好环境，跑测试，退出码照传。

什么参数也没有时是全部的测试，装了 pytest-xdist 就分给几个进程。
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from support import bootstrap, console  # noqa: E402

# 没有也能测，只是少几个独立的对照：模块 → 安装时的名字
ORACLES = {
    "matplotlib": "matplotlib",
    "transformers": "transformers",
    "safetensors": "safetensors",
    "gguf": "gguf",
    "llama_cpp": "llama-cpp-python",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "httpx": "httpx",
    "openai": "openai",
    "playwright": "playwright",
    "pypinyin": "pypinyin",
}
MOST_WORKERS = 4  # 每个约占 0.5 GB 内存，有的测试自己还要起几个进程
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")


def missing_oracles(python: Path) -> list[str]:
    """没有装的可选对照的名字。"""
    missing = [ORACLES[name] for name in bootstrap.missing_modules(python, list(ORACLES))]
    if not any(shutil.which(name) for name in BROWSERS):
        missing.append("Chromium")
    return missing


def side_by_side(python: Path, given: list[str]) -> list[str]:
    """分给几个进程的参数：同一个文件的在同一个进程里，备好的材料才不用备两遍。"""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(MOST_WORKERS, cores or 1)
    if given or workers < 2 or bootstrap.missing_modules(python, ["xdist"]):
        return []
    return ["-n", str(workers), "--dist", "loadfile"]


def main() -> int:
    python = bootstrap.test_environment()
    given = sys.argv[1:]
    missing = missing_oracles(python)
    if missing:
        print(f"没有安装、因此跳过的可选对照：{'、'.join(missing)}", flush=True)
    command = [str(python), "-m", "pytest", *side_by_side(python, given), *given]
    return subprocess.call(command, cwd=str(ROOT))


if __name__ == "__main__":
    console.run(main)
