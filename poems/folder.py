"""RAW_DATA 里有哪些文件可读，文件夹名说了什么。只读普通文件；链接的文件夹也走，绕圈的不走。"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Iterator, NamedTuple

from support.files import must_be_plain

_CHINESE = re.compile(r"[\u3400-\u9fff]")
_NOT_POEMS = re.compile(r"(?:readme|license|changelog|contributing)\b", re.IGNORECASE)


class SourceFile(NamedTuple):
    """一个待读的文件。"""

    path: Path
    name: str  # 相对于 RAW_DATA 的名字，以 / 分隔，也是排序的依据
    size: int  # 字节

    @property
    def stem(self) -> str:
        """不带文件夹与后缀的名字。"""
        return Path(self.name.rpartition("/")[2]).stem

    @property
    def suffix(self) -> str:
        """小写的后缀，连同点。"""
        return self.path.suffix.lower()


def find_files(
    root: Path, suffixes: tuple[str, ...], ignore: tuple[Path, ...] = ()
) -> tuple[list[SourceFile], list[str]]:
    """root 下（或 root 自己）后缀合适的文件，按名字排序；以及略过的文件名。

    隐藏文件、ignore 里的文件不算在内；断了的链接、管道、设备之类不是普通文件的略过。
    """
    if not root.is_dir():
        must_be_plain(root)
        return [SourceFile(root, readable(root.name), root.stat().st_size)], []
    unwanted = {os.path.realpath(path) for path in ignore}
    unwanted_folders = {os.path.dirname(path) for path in unwanted}
    files, skipped = [], []
    for folder, names in _walk(root):
        prefix = os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        prefix = "" if prefix == "./" else prefix
        look_closer = bool(unwanted) and os.path.realpath(folder) in unwanted_folders
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith(".") or (look_closer and os.path.realpath(path) in unwanted):
                continue
            size = _size(path)
            shown = readable(prefix + name)
            if size is None or not name.lower().endswith(suffixes) or _NOT_POEMS.match(name):
                skipped.append(shown)
            else:
                files.append(SourceFile(Path(path), shown, size))
    return sorted(files, key=lambda file: file.name), sorted(skipped)


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(文件夹, 其中的文件名)，连同链接来的文件夹；走到自己上面的文件夹去的链接不走。"""
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith((".", "__")) and not _circles(folder, name)
        ]
        yield folder, names


def _circles(folder: str, name: str) -> bool:
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return False
    here, there = os.path.realpath(folder), os.path.realpath(path)
    return here == there or here.startswith(there.rstrip(os.sep) + os.sep)


def _size(path: str) -> int | None:
    """普通文件的字节数；别的为 None。"""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def readable(name: str) -> str:
    """文件名 → 文字：不是 UTF-8 的名字（从别的系统解压来的）试着按 GBK、Big5 读。"""
    if name.isascii():
        return name
    data = os.fsencode(name)
    for encoding in ("utf-8", "gb18030", "big5"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return name


def author_of(file: SourceFile, any_folder: bool) -> str:
    """由文件夹名得出作者：到第一个 _ 为止（安琪_anqi → 安琪）；得不出时为空串。

    any_folder 为假时，只认“中文_”打头的文件夹名。
    """
    nested = "/" in file.name
    folder = file.name.split("/")[-2] if nested else readable(file.path.resolve().parent.name)
    author, mark, _ = folder.partition("_")
    if not mark and not nested:
        return ""  # 直接放在 RAW_DATA 下，文件夹名不是作者
    if any("\ud800" <= char <= "\udfff" for char in author):
        return ""  # 名字的编码认不出来
    if any_folder or (mark and _CHINESE.search(author)):
        return author
    return ""
