"""认出并读入各种来源的诗：.pt 诗文件、JSON、JSON Lines、.txt，以及混放它们的文件夹。

只管“诗在哪里、哪一段是题目、作者和正文”，不改文字；文字由 data_clean.py 清洗。
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

from poems import records

TITLE_KEYS = ("title", "rhythmic", "name", "标题", "题目", "诗名", "词牌")
AUTHOR_KEYS = ("author", "poet", "writer", "作者", "诗人")
STANZA_KEYS = ("para",)  # 每项是一段
LINE_KEYS = ("paragraphs", "content", "lines", "text", "body", "poem", "正文", "内容")  # 每项是一行
BODY_KEYS = STANZA_KEYS + LINE_KEYS
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
SUFFIXES = (".pt", ".txt", *JSON_SUFFIXES)

# 读入时顺手改的（每首诗计一次）
STRING_BODY = "正文不是列表，按一段文字读"
ODD_ITEMS = "略过正文里的空项或非文字项"
# 不能用的记录
NOT_A_POEM = "不是诗的记录（没有正文字段）"
BAD_BODY = "正文不是文字"
EMPTY = "正文为空"


class RawPoem(NamedTuple):
    """读到的一首诗，文字未经清洗；reason 不为空时不能用。"""

    where: str  # 文件，或“文件 第 n 条”
    title: str
    body: str  # 段与段之间空一行
    author: str
    notes: tuple[str, ...] = ()
    reason: str | None = None


class SourceFile(NamedTuple):
    """一个待读的文件。"""

    path: Path
    name: str  # 相对于 RAW_DATA 的名字，以 / 分隔，也是排序的依据
    size: int  # 字节


OnFile = Callable[[SourceFile, str], None]
OnRead = Callable[[int], None]


# ── 文件 ──────────────────────────────────────────────────────────────


def find_files(root: Path, ignore: tuple[Path, ...] = ()) -> tuple[list[SourceFile], list[str]]:
    """root 下（或 root 自己）能读的文件，按名字排序；以及略过的文件名。

    隐藏文件、ignore 里的文件不算在内。
    """
    if root.is_file():
        return [SourceFile(root, root.name, root.stat().st_size)], []
    unwanted = {os.path.realpath(path) for path in ignore}
    unwanted_folders = {os.path.dirname(path) for path in unwanted}
    files, skipped = [], []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__"))]
        prefix = os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        prefix = "" if prefix == "./" else prefix
        look_closer = bool(unwanted) and os.path.realpath(folder) in unwanted_folders
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith(".") or (look_closer and os.path.realpath(path) in unwanted):
                continue
            if name.lower().endswith(SUFFIXES):
                files.append(SourceFile(Path(path), prefix + name, os.path.getsize(path)))
            else:
                skipped.append(prefix + name)
    return sorted(files, key=lambda file: file.name), sorted(skipped)


def read_poems(file: SourceFile, on_encoding: OnFile, on_read: OnRead) -> Iterator[RawPoem]:
    """逐首给出一个文件里的诗。

    on_encoding(文件, 编码) 在认出编码后调用，on_read(字节数) 随读取进度调用。
    JSON 写坏了时抛出 records.BrokenJSON。
    """
    suffix = file.path.suffix.lower()
    if suffix in JSON_SUFFIXES or (suffix != ".pt" and _looks_like_json(file.path)):
        yield from _read_json(file, on_encoding, on_read)
        return
    data = file.path.read_bytes()
    on_read(len(data))
    if b"\0" in data[:1024] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        yield RawPoem(file.name, "", "", "", reason=NOT_A_POEM)  # 例如 PyTorch 的 .pt
        return
    text, encoding = records.decode(data)
    on_encoding(file, encoding)
    yield _read_pt(file, text) if suffix == ".pt" else _read_txt(file, text)


def _looks_like_json(path: Path) -> bool:
    """后缀不是 .json 的文件，看开头像不像一串 JSON 记录。"""
    with open(path, "rb") as file:
        return _JSON_START.match(file.read(256)) is not None


_JSON_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:\[\s*)?\{\s*\"")

# ── .pt 与 .txt ───────────────────────────────────────────────────────

_HEAD_LINE = re.compile(r"(title|date|author)[:：][ \t]*([^\r\n]*)(?:\r\n?|\n|$)", re.IGNORECASE)
_HEAD = re.compile(rf"(?:{_HEAD_LINE.pattern})*", re.IGNORECASE)
_TITLE_LABEL = re.compile(r"^(?:标题|题目|诗题)\s*[:：]\s*")
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def _read_pt(file: SourceFile, text: str) -> RawPoem:
    """title:/date: 打头，空一行，正文；没有这样的头时整个文件是正文，文件名是题目。"""
    text = text.lstrip("\ufeff\r\n")
    head_end = _HEAD.match(text).end()
    head = {key.lower(): value for key, value in _HEAD_LINE.findall(text, 0, head_end)}
    title = head.get("title", file.path.stem)
    author = head.get("author") or folder_author(file, any_folder=True)
    return RawPoem(file.name, title, text[head_end:], author)


def _read_txt(file: SourceFile, text: str) -> RawPoem:
    """第一个非空行是题目，其余是正文。"""
    title, _, body = text.lstrip("\ufeff \t\r\n\u3000").replace("\r\n", "\n").partition("\n")
    title = _TITLE_LABEL.sub("", title.strip())
    return RawPoem(file.name, title, body, folder_author(file, any_folder=False))


def folder_author(file: SourceFile, any_folder: bool) -> str:
    """由文件夹名得出作者：到第一个 _ 为止（安琪_anqi → 安琪）；得不出时为空串。

    any_folder 为假时，只认“中文_”打头的文件夹名。
    """
    nested = "/" in file.name
    folder = file.name.split("/")[-2] if nested else file.path.resolve().parent.name
    author, mark, _ = folder.partition("_")
    if not mark and not nested:
        return ""  # 直接放在 RAW_DATA 下，文件夹名不是作者
    if any_folder or (mark and _CHINESE.search(author)):
        return author
    return ""


# ── JSON ──────────────────────────────────────────────────────────────


def _read_json(file: SourceFile, on_encoding: OnFile, on_read: OnRead) -> Iterator[RawPoem]:
    encoding = records.detect_encoding(file.path)
    on_encoding(file, encoding)
    number = 0
    for record in records.iter_records(file.path, encoding, on_read):
        for item, author in _flatten(record, ""):
            number += 1
            yield from_record(item, f"{file.name} 第 {number} 条", author)


def _flatten(value: Any, author: str, depth: int = 0) -> Iterator[tuple[Any, str]]:
    """拆开外面的包装（{"poems": […]}、诗集套诗），给出（记录, 继承来的作者）。"""
    groups = _inner_records(value) if depth < 4 else []
    if not groups:
        yield value, author
    elif isinstance(value, dict):
        author = _text(_pick(value, AUTHOR_KEYS)) or author
    for item in groups:
        yield from _flatten(item, author, depth + 1)


def _inner_records(value: Any) -> list:
    """包装里面的记录；value 自己就是一首诗（或什么也不是）时为空。"""
    if isinstance(value, list):
        return value if _holds_records(value) else []
    if not isinstance(value, dict):
        return []
    body = _pick(value, BODY_KEYS)
    candidates = value.values() if body is None else [body]
    return [item for group in candidates if _holds_records(group) for item in group]


def _holds_records(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def from_record(record: Any, where: str, author: str = "") -> RawPoem:
    """一条 JSON 记录 → 诗。字段缺失、为空或类型不对时给出 reason，不抛错。"""
    if not isinstance(record, dict):
        return RawPoem(where, "", _text(record), "", reason=NOT_A_POEM)
    title = _text(_pick(record, TITLE_KEYS))
    author = _text(_pick(record, AUTHOR_KEYS)) or author
    keys = [key for key in BODY_KEYS if key in record]
    if not keys:
        return RawPoem(where, title, "", author, reason=NOT_A_POEM)
    key = next((key for key in keys if record[key]), keys[0])
    value = record[key]
    if not value:
        return RawPoem(where, title, "", author, reason=EMPTY)
    if isinstance(value, str):
        notes = (STRING_BODY,) if key in STANZA_KEYS else ()
        return RawPoem(where, title, value, author, notes)
    if not isinstance(value, list):
        return RawPoem(where, title, str(value), author, reason=BAD_BODY)
    by_line = key in LINE_KEYS
    items = [_item_text(item) for item in value]
    texts = [text for text in items if text is not None]
    odd = len(texts) < len(items) or (not by_line and not all(texts))
    if not texts:
        return RawPoem(where, title, str(value), author, reason=BAD_BODY)
    # 按行的写法里，空串是段与段之间的空行
    body = "\n".join(texts) if by_line else "\n\n".join(text for text in texts if text)
    return RawPoem(where, title, body, author, (ODD_ITEMS,) if odd else ())


def _item_text(item: Any) -> str | None:
    """列表里的一项 → 文字；一段写成各行的列表也认；其他类型为 None。"""
    if isinstance(item, str):
        return item
    if isinstance(item, list) and item and all(isinstance(line, str) for line in item):
        return "\n".join(item)
    return None


def _pick(record: dict, keys: tuple[str, ...]) -> Any:
    """第一个有内容的字段。"""
    return next((record[key] for key in keys if record.get(key)), None)


def _text(value: Any) -> str:
    """题目、作者：文字与数字照用，列表取其中的文字，其余当作没有。"""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        return "、".join(item for item in value if isinstance(item, str))
    return ""
