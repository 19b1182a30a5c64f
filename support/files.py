"""文件：原子写入、改名留底、查找输入、读 JSON。"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
import warnings
from pathlib import Path
from typing import IO, Any, BinaryIO, Iterator

from support import artefacts
from support.console import UserError


def work_path(work_dir: str, name: str) -> Path:
    """WORK_DIR 下的文件路径；目录没有就建。"""
    folder = Path(work_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"WORK_DIR={work_dir} 不能用作目录：{error}") from error
    return folder / name


def find_input(path: str, work_dir: str) -> Path | None:
    """输入文件先在当前目录找，再到 WORK_DIR 找；都没有时为 None。"""
    for candidate in (Path(path), Path(work_dir) / path):
        if path and candidate.exists():
            return candidate
    return None


def must_be_plain(path: Path) -> None:
    """有这个名字而不是普通文件就抛 UserError：文件夹读不了，管道会一直等，设备没有尽头。"""
    if path.is_dir():
        raise UserError(f"{path} 是文件夹，这里要的是文件。")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} 是管道或设备，不是普通文件，不能读。")


def replace(source: Path, target: Path) -> None:
    """os.replace；Windows 上目标正被占用时重试几秒。"""
    for attempt in range(20):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if attempt == 19:
                raise
            time.sleep(0.2)


def sync_folder(folder: Path) -> None:
    """让改名落盘；Windows 与有的网络盘不支持对目录 fsync，名字已经改好，不算错。"""
    if platform.system() == "Windows":
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def temporary_of(path: Path) -> Path:
    """写 path 的时候，没写完的内容在哪里。"""
    return path.with_name(f"{path.name}.tmp")


def sweep(folder: Path) -> None:
    """清掉被杀的程序在 folder 里留下的半成品；要先拿到锁（support/lock.py）。"""
    for name in artefacts.SWEPT:
        with contextlib.suppress(OSError):
            temporary_of(folder / name).unlink()
    for name in (artefacts.EXPORT_HF, artefacts.EXPORT_GGUF):
        for left in folder.glob(f"{name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)


def sha256(path: Path) -> str:
    """文件内容的 SHA-256。"""
    checksum = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            checksum.update(chunk)
    return checksum.hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w", previous: Path | None = None) -> Iterator[IO[Any]]:
    """写临时文件、fsync、改名：中途断电或出错时旧文件原样还在。

    给了 previous，原来的文件就以这个名字留着；任何一刻 path 都在。
    """
    path = Path(path)
    temporary = temporary_of(path)
    options = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(temporary, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # 写满磁盘的错误不带文件名
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _keep(path: Path, previous: Path) -> None:
    """path 也叫 previous，自己的名字还在；文件系统没有硬链接时只好改名。"""
    try:
        previous.unlink(missing_ok=True)
        os.link(path, previous)
    except OSError:
        replace(path, previous)


def keep_aside(path: Path) -> Path | None:
    """把已有文件改成旁边一个没用过的名字（绝不覆盖），返回新名字；没有文件时为 None。"""
    path = Path(path)
    if not path.exists():
        return None
    aside = unused(path)
    replace(path, aside)
    return aside


def unused(path: Path) -> Path:
    """旁边一个没用过的名字：x.old1.bin、x.old2.bin……"""
    number = 1
    while True:
        aside = path.with_name(f"{path.stem}.old{number}{path.suffix}")
        if not aside.exists():
            return aside
        number += 1


def write_text(path: Path, text: str) -> None:
    """原子地写一个文本文件。"""
    with atomic_write(path) as file:
        file.write(text)


def write_json(path: Path, value: object) -> None:
    """原子地写一个给人看的 JSON 文件。"""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """读 JSON；坏了就说明文件与位置。"""
    must_be_plain(Path(path))
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"读不了 {path}：{error}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} 第 {error.lineno} 行第 {error.colno} 列不是合法的 JSON：{error.msg}"
        ) from error
    except RecursionError as error:
        raise UserError(f"{path} 的 JSON 嵌套太深，不是本项目的文件。") from error


def read_tensors(source: Path | BinaryIO) -> Any:
    """torch.save 写的普通类型与张量，放到内存里；不运行文件里的代码。"""
    import torch

    # torch 2.1 每读一次都要警告它自己用了旧的存储类；使用者没有什么可改的
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
    return torch.load(source, map_location="cpu", weights_only=True)


def free_bytes(folder: Path) -> int:
    """目录所在磁盘的剩余字节数。"""
    return shutil.disk_usage(folder).free
