"""python -m tests [pytest 的参数]：备好环境，跑测试，退出码照传。"""

from __future__ import annotations

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
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")


def missing_oracles(python: Path) -> list[str]:
    """没有装的可选对照的名字。"""
    missing = [ORACLES[name] for name in bootstrap.missing_modules(python, list(ORACLES))]
    if not any(shutil.which(name) for name in BROWSERS):
        missing.append("Chromium")
    return missing


def main() -> int:
    python = bootstrap.test_environment()
    missing = missing_oracles(python)
    if missing:
        print(f"没有安装、因此跳过的可选对照：{'、'.join(missing)}", flush=True)
    return subprocess.call([str(python), "-m", "pytest", *sys.argv[1:]], cwd=str(ROOT))


if __name__ == "__main__":
    console.run(main)
