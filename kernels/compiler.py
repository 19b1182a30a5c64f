"""在使用者的机器上编译这个文件夹里的 C++：有编译器、处理器有 AVX2 就编，两三秒，编好的留着。

编不了、没有编好时一切照旧，只是慢一些。名字里有源代码的摘要，源代码改了就重编；放在使用者的缓存
文件夹里，环境变量 POEM_CACHE 可以换地方。
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from support.console import UserError

SOURCES = tuple(map(Path(__file__).with_name, ("native.cpp", "picking.cpp")))
_HEADER = Path(__file__).with_name("floats.h")
PLACE = "POEM_CACHE"
_FLAGS = ("-std=c++14", "-O3", "-fno-math-errno", "-mavx2", "-mfma", "-mf16c", "-shared", "-fPIC")
_MAKING, _LONGEST = "making-", 120.0  # 正在编的放在哪里；最多编几秒
_THREADS = (("-fopenmp",), ())  # 没有 OpenMP 的编译器（macOS 自带的）只用一个线程


def folder() -> Path:
    """编好的库放在哪里。"""
    if os.environ.get(PLACE):
        return Path(os.environ[PLACE])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "base-gpt-modern-poem"
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "base-gpt-modern-poem"


def library_path() -> Path:
    """这一份源代码编成的库。"""
    texts = [path.read_bytes() for path in (*SOURCES, _HEADER)]
    text = b"\0".join([*texts, " ".join(_FLAGS).encode()])
    return folder() / f"native-{hashlib.sha256(text).hexdigest()[:16]}.so"


def problem() -> str | None:
    """编不了的原因；编得了时为 None。"""
    if sys.platform == "win32":
        return "Windows 上还不编译"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"没有给 {platform.machine()} 写"
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return "处理器没有 AVX2"
    if _compiler() is None:
        return "没有 C++ 编译器（g++ 或 clang++）"
    if not _can_write(folder()):
        return f"{folder()} 里写不了"
    failed = _failure_note(library_path())
    return f"上次没有编成，编译器说的在 {failed}" if failed.exists() else None


def pick(choice: str, wait: bool = False) -> ctypes.CDLL | None:
    """COMPILE 配置 → 编好的库，None = 不用它。

    auto：有就用；没有就在后台编，下次启动用上，这一次不等也不换。on：现在就编，编不了时报错。
    wait：auto 也等它编好。
    """
    if choice == "off":
        return None
    ready = library_path()
    if choice == "on" and not ready.exists():
        _failure_note(ready).unlink(missing_ok=True)
        build()
    if wait and not ready.exists() and problem() is None:
        _build_quietly()
    if ready.exists():
        return _load(ready)
    if problem() is None:
        print("（后台编译一个写诗更快的核，只这一次，下次启动就用上）", file=sys.stderr, flush=True)
        # 不是 daemon：只写一首就退出的，也等它编完，不然次次白编
        threading.Thread(target=_build_quietly, name="compiler").start()
    return None


def build() -> Path:
    """编译，返回库；编不了时抛 UserError。别的进程同时在编也不要紧：后写好的换上，内容一样。"""
    reason, ready = problem(), library_path()
    if reason is not None:
        raise UserError(f"写诗的核用不了：{reason}。请用 --COMPILE=auto")
    try:
        ready.parent.mkdir(parents=True, exist_ok=True)
        _clear_unfinished(ready.parent)
        with tempfile.TemporaryDirectory(prefix=_MAKING, dir=ready.parent) as made:
            target = Path(made) / ready.name
            said = [_compile(target, extra) for extra in _THREADS if not target.exists()]
            if target.exists():
                os.replace(target, ready)
                return ready
        _failure_note(ready).write_text(said[0], encoding="utf-8")
    except OSError as error:
        raise UserError(f"写诗的核编译不了：{error}。请用 --COMPILE=auto") from error
    raise UserError(f"写诗的核没有编成，编译器说的在 {_failure_note(ready)}。请用 --COMPILE=auto")


def _clear_unfinished(place: Path) -> None:
    """编到一半程序就结束了的。"""
    for made in place.glob(f"{_MAKING}*"):
        if time.time() - made.stat().st_mtime > 3 * _LONGEST:
            shutil.rmtree(made, ignore_errors=True)


def _build_quietly() -> None:
    try:
        build()
    except UserError as error:
        print(
            f"（{error.args[0].split('。')[0]}，照旧写诗；再试一次：--COMPILE=on）",
            file=sys.stderr,
            flush=True,
        )


def _compile(target: Path, extra: tuple) -> str:
    """编译到 target；返回编译器说的话。"""
    command = [_compiler(), *_FLAGS, *extra, *map(str, SOURCES), "-o", str(target)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_LONGEST,
            check=False,
        )
        failed, said = done.returncode, done.stdout.decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        failed, said = 1, f"{_LONGEST:.0f} 秒也没有编完"
    if failed:
        target.unlink(missing_ok=True)
    return f"{' '.join(command)}\n{said}"


def _compiler() -> str | None:
    names = [os.environ.get("CXX") or "g++", "g++", "clang++", "c++"]
    return next(filter(None, map(shutil.which, names)), None)


def _failure_note(ready: Path) -> Path:
    return ready.with_suffix(".txt")


def _can_write(place: Path) -> bool:
    """文件夹（还没有时是它的上级）写得进。"""
    while not place.exists() and place != place.parent:
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK)


def _load(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # 共用的主目录里，别的机器编的
        return None
