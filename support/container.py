"""一个文件装几个数组：流式写出，内存映射读取，每个数组有校验和。

文件依次是：
    魔数 8 字节 | 版本 uint32 | 头部长度 uint32 | JSON 头部 | 各数组，都从 64 字节的整数倍处开始
头部的 arrays 表给出每个数组的类型、长度、从数据区起算的位置与 sha256。
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import struct
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterable, NamedTuple

import numpy as np

from support import files

Header = Dict[str, Any]

_HEAD = struct.Struct("<8sII")
_ALIGN = 64


class Damaged(ValueError):
    """文件残缺、损坏、版本不同或不是这一种；消息给人看。"""


class Kind(NamedTuple):
    """一种文件。"""

    magic: bytes  # 8 字节
    version: int
    name: str  # 给人看的名字


class Piece(NamedTuple):
    """要写的一个数组；几段首尾相接，写到才去取，只取一次。"""

    dtype: str
    length: int
    parts: Iterable[np.ndarray]


def piece(array: np.ndarray) -> Piece:
    """已经在内存里的数组。"""
    return Piece(array.dtype.name, len(array), [array])


# ── 写 ────────────────────────────────────────────────────────────────


def write(path: Path, kind: Kind, header: Header, pieces: dict[str, Piece]) -> None:
    """写一个文件；同样的内容写出同样的字节，中途出错时旧文件原样还在。

    先按占位的校验和写头部，拷贝数组时算出校验和，再把头部重写一遍（长度不变）。
    """
    place, table = 0, {}
    for name, (dtype, length, _) in pieces.items():
        table[name] = {"dtype": dtype, "length": length, "offset": place, "sha256": "0" * 64}
        place = _aligned(place + length * np.dtype(dtype).itemsize)
    header = {**header, "bytes": place, "arrays": table, "fingerprint": "0" * 64}
    size = len(_head_bytes(kind, header))
    with files.atomic_write(path, "wb") as file:
        file.write(bytes(size))
        for name, (_, _, parts) in pieces.items():
            file.seek(size + table[name]["offset"])
            table[name]["sha256"] = _copy(parts, file)
        file.truncate(size + place)
        header["fingerprint"] = _fingerprint(header)
        file.seek(0)
        file.write(_head_bytes(kind, header))


def _copy(parts: Iterable[np.ndarray], file: BinaryIO) -> str:
    """把各段拷进 file，返回内容的 sha256。"""
    digest = hashlib.sha256()
    for part in parts:
        if len(part):
            data = memoryview(np.ascontiguousarray(part)).cast("B")
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def _head_bytes(kind: Kind, header: Header) -> bytes:
    text = json.dumps(header, ensure_ascii=False).encode("utf-8")
    head = _HEAD.pack(kind.magic, kind.version, len(text)) + text
    return head.ljust(_aligned(len(head)), b"\0")


def _fingerprint(header: Header) -> str:
    """头部（连同各数组的校验和）的摘要：内容相同才相同。"""
    content = {key: value for key, value in header.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


# ── 读 ────────────────────────────────────────────────────────────────


def load(path: Path, kind: Kind) -> Container:
    """内存映射打开；不是这一种、残缺或损坏时抛出 Damaged，读不了时抛出 OSError。"""
    with open(path, "rb") as file:
        header, start = _read_header(path, file, kind)
        try:
            _check(header, path)
            size, wanted = path.stat().st_size, start + header["bytes"]
            if size < wanted:
                raise Damaged(f"{path} 不完整：应有 {wanted} 字节，只有 {size} 字节")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return Container(header, mapped, start)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, Damaged):
                raise
            raise Damaged(f"{path} 的头部已损坏：{error!r}") from error


def _read_header(path: Path, file: BinaryIO, kind: Kind) -> tuple[Header, int]:
    """头部，与数据区从哪里开始。"""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or head[:8] != kind.magic:
        raise Damaged(f"{path} 不是本项目的{kind.name}文件")
    _, version, length = _HEAD.unpack(head)
    if version != kind.version:
        raise Damaged(f"{path} 的格式版本是 {version}，本程序只认 {kind.version}")
    text = file.read(length)
    if len(text) < length:
        raise Damaged(f"{path} 不完整：头部应有 {length} 字节，只有 {len(text)}")
    try:
        return json.loads(text.decode("utf-8")), _aligned(_HEAD.size + length)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} 的头部已损坏：{error!r}") from error


def _check(header: Header, path: Path) -> None:
    """头部自己的摘要对得上，各数组都在数据区里；否则抛出 Damaged。"""
    if not isinstance(header, dict) or header.get("fingerprint") != _fingerprint(header):
        raise Damaged(f"{path} 的头部已损坏：与它的摘要不符")
    for name, item in header["arrays"].items():
        first, length = item["offset"], item["length"]
        end = first + length * np.dtype(item["dtype"]).itemsize
        if first < 0 or length < 0 or end > header["bytes"]:
            raise Damaged(f"{path} 的头部已损坏：{name} 在文件之外")


class Container:
    """打开的文件：头部与各数组的只读视图。

    Windows 上打开的映射会挡住替换文件，用完请 close()。
    """

    def __init__(self, header: Header, mapped: mmap.mmap, start: int) -> None:
        self.header = header
        self.fingerprint: str = header["fingerprint"]
        self._map = mapped
        self.arrays = {
            name: np.frombuffer(mapped, item["dtype"], item["length"], start + item["offset"])
            for name, item in header["arrays"].items()
        }

    def close(self) -> None:
        """解除映射；外面还留着视图时，等它们消失后自动解除。"""
        self.arrays = {}
        with contextlib.suppress(BufferError):
            self._map.close()

    def verify(self) -> list[str]:
        """重算各数组的校验和，返回对不上的数组名；没有损坏时为空。"""
        table = self.header["arrays"]
        return [
            name
            for name, data in self.arrays.items()
            if hashlib.sha256(data).hexdigest() != table[name]["sha256"]
        ]
