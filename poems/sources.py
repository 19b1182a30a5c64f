"""各种来源的诗怎样读：一张表 LAYOUTS，一行是一种写法——怎样认出、报告里怎样说、怎样读成一首首诗。

只管“诗在哪里、哪一段是题目、作者和正文”，不改文字；文字由 mend.py 清洗。
"""

from __future__ import annotations

import csv
import itertools
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

from poems import blocks, fields, folder, records
from poems.fields import RawPoem
from poems.folder import SourceFile

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")
MARKDOWN_SUFFIXES = (".md", ".markdown")
SUFFIXES = (".pt", ".txt", *JSON_SUFFIXES, *TABLE_SUFFIXES, *MARKDOWN_SUFFIXES)
_HEAD_BYTES = 4096
_SMALL = 1 << 16  # 不超过这么多字节的文件只读一次
_JSON_START = re.compile(r"\s*(?:\[\s*)*\{\s*\"")

OnRead = Callable[[int], Any]
Poems = Iterator[RawPoem]


class Unreadable(ValueError):
    """一个文件读不下去；消息写明文件、位置与改法。"""


class Reading(NamedTuple):
    """一个文件正怎样读着。"""

    layout: str  # 给人看的：“按 CSV 读，题目=题目列”
    encoding: str
    poems: Poems
    many: bool  # 一个文件可以有许多首
    warning: str  # 像是读错了的理由；没有时为空


class Source:
    """一个文件：开头的字节，要用时才读的全文。"""

    def __init__(self, file: SourceFile, on_read: OnRead) -> None:
        self.file, self.on_read = file, on_read
        with open(file.path, "rb") as opened:
            self._small = opened.read(_SMALL + 1)
        self.head = self._small[:_HEAD_BYTES]

    @cached_property
    def _decoded(self) -> tuple[str, str]:
        """（全文, 编码）。"""
        whole = len(self._small) <= _SMALL
        return records.decode(self._small if whole else self.file.path.read_bytes())

    @cached_property
    def encoding(self) -> str:
        """整个文件的编码。"""
        if len(self._small) <= _SMALL:
            return self._decoded[1]
        return records.detect_encoding(self.file.path)

    @cached_property
    def start(self) -> str:
        """开头的文字。"""
        return self.head.decode(self.encoding, "replace").lstrip("\ufeff")

    @cached_property
    def text(self) -> str:
        """全文。"""
        self.on_read(self.file.size)
        return self._decoded[0].lstrip("\ufeff")

    @cached_property
    def lines(self) -> list[str]:
        """全文的各行，行尾空白去掉；各种换行都认。"""
        text = (
            self.text.replace("\r\r\n", "\n")
            .replace("\r\n", "\n")
            .replace("\r", "\n")
            .strip("\ufeff \t\n\u3000")
        )
        return [line.rstrip() for line in text.split("\n")]


class Layout(NamedTuple):
    """一种写法。"""

    name: str  # 报告里的说法；read 能说得更细时再补在后面
    fits: Callable[[Source], bool]
    read: Callable[[Source], tuple[str, Poems]]  # （补充的说法，诗）
    many: bool = True


def find_files(root: Path, ignore: tuple[Path, ...] = ()) -> tuple[list[SourceFile], list[str]]:
    """root 下（或 root 自己）能读的文件，按名字排序；以及略过的文件名。"""
    return folder.find_files(root, SUFFIXES, ignore)


def open_file(file: SourceFile, on_read: OnRead) -> Reading:
    """认出一个文件的写法，准备逐首读；on_read(字节数) 随读取进度调用。

    打不开、读不下去时（这时或读诗的中途）抛出 Unreadable。
    """
    try:
        source = Source(file, on_read)
        layout = next(layout for layout in LAYOUTS if layout.fits(source))
        detail, poems = layout.read(source)
        warning = "" if layout.many else blocks.looks_like_many(source.lines)
        encoding = "" if layout.read is _read_nothing else source.encoding
        said = f"{layout.name}，{detail}" if detail else layout.name
        return Reading(said, encoding, _guarded(file, poems), layout.many, warning)
    except (OSError, records.BrokenJSON, csv.Error) as error:
        raise Unreadable(_why(file, error)) from error


def _guarded(file: SourceFile, poems: Poems) -> Poems:
    try:
        yield from poems
    except (OSError, records.BrokenJSON, csv.Error) as error:
        raise Unreadable(_why(file, error)) from error


def _why(file: SourceFile, error: Exception) -> str:
    return str(error) if isinstance(error, records.BrokenJSON) else f"{file.name} 读不了：{error}"


def _poem(source: Source, found: blocks.Block, number: int | None = None) -> RawPoem:
    """文章里的一段 → 诗；没有写明的作者取自文件夹名。"""
    where = source.file.name if number is None else f"{source.file.name} 第 {number} 首"
    author = found.author or folder.author_of(source.file, any_folder=False)
    return RawPoem(where, found.title, found.body, author)


def _poems(source: Source, found: list[blocks.Block]) -> tuple[str, Poems]:
    poems = (_poem(source, block, number) for number, block in enumerate(found, 1))
    return f"{len(found)} 首", poems


# ── 不是文字 ──────────────────────────────────────────────────────────


def _is_binary(source: Source) -> bool:
    """PyTorch 的 .pt、压缩包之类；夹着个别 NUL 的文字不算。"""
    if source.head.startswith(
        (b"PK\x03\x04", b"\x80\x02", b"\x1f\x8b", b"%PDF", b"\xd0\xcf\x11\xe0")
    ):
        return True
    return not records.is_wide(source.head) and source.head.count(0) * 10 > len(source.head)


def _read_nothing(source: Source) -> tuple[str, Poems]:
    source.on_read(source.file.size)
    return "", iter([RawPoem(source.file.name, "", "", "", reason=fields.NOT_A_POEM)])


# ── JSON ──────────────────────────────────────────────────────────────


def _is_json(source: Source) -> bool:
    if source.file.suffix in JSON_SUFFIXES:
        return True
    return source.file.suffix != ".pt" and _JSON_START.match(source.start) is not None


def _read_json(source: Source) -> tuple[str, Poems]:
    file = source.file
    found = records.iter_records(file.path, source.encoding, source.on_read)
    first = list(itertools.islice(found, 1))
    items = (item for record in itertools.chain(first, found) for item in fields.flatten(record))
    start = list(itertools.islice(items, 1))
    said = fields.describe(*(record for record in first), *(item.record for item in start))
    by_line = bool(start) and _para_is_lines(source, start[0].record)
    poems = (
        fields.to_poem(item, f"{file.name} 第 {number} 条", by_line)
        for number, item in enumerate(itertools.chain(start, items), 1)
    )
    return said + ("（每项一行）" if by_line else ""), poems


def _para_is_lines(source: Source, first: Any) -> bool:
    """文件里没有一首诗的 para 有换行，又不都只有一项：各项是行，不是段。"""
    if not isinstance(first, dict) or fields.key_of(first, fields.STANZA_KEYS) is None:
        return False
    several = False
    try:
        for record in records.iter_records(source.file.path, source.encoding):
            for item in fields.flatten(record):
                para = item.record.get("para") if isinstance(item.record, dict) else None
                if not isinstance(para, list) or not para:
                    continue
                if any(not isinstance(line, str) or "\n" in line.strip() for line in para):
                    return False
                several = several or len(para) > 1
    except records.BrokenJSON:
        return False  # 真正读的时候再报告
    return several


# ── 表格 ──────────────────────────────────────────────────────────────


def _first_row(source: Source, mark: str) -> list[str]:
    """按这个分隔符，第一行的各格。"""
    first = source.start.replace("\r", "\n").strip("\n").split("\n", 1)[0].replace("\0", "")
    return [cell.strip() for cell in next(csv.reader([first], delimiter=mark), [])]


def _delimiter(source: Source) -> str | None:
    """第一行是认得出的表头时，它的分隔符。"""
    for mark in "\t,;|，":
        names = dict.fromkeys(_first_row(source, mark), "x")
        body = fields.key_of(names, fields.BODY_KEYS)
        if body and fields.key_of(names, fields.TITLE_KEYS + fields.AUTHOR_KEYS):
            return mark
        if body and source.file.suffix in TABLE_SUFFIXES:
            return mark  # 只有正文一列
    return None


def _is_table(source: Source) -> bool:
    return source.file.suffix != ".pt" and _delimiter(source) is not None


def _read_table(source: Source) -> tuple[str, Poems]:
    mark = _delimiter(source) or ","
    names = {name: name for name in _first_row(source, mark)}
    keys = (("题目", fields.TITLE_KEYS), ("作者", fields.AUTHOR_KEYS), ("正文", fields.BODY_KEYS))
    found = [(said, fields.key_of(names, wanted)) for said, wanted in keys]
    return "，".join(f"{said}={key}列" for said, key in found if key), _rows(source, mark)


def _rows(source: Source, mark: str) -> Poems:
    csv.field_size_limit(1 << 30)  # 长诗的一格会超过缺省的 128 KB
    with open(source.file.path, encoding=source.encoding, errors="replace", newline="") as file:
        lines = (line.replace("\0", "").replace("\ufeff", "") for line in file)
        rows = csv.DictReader(lines, delimiter=mark, skipinitialspace=True)
        for number, row in enumerate(rows, 1):
            record = {str(key).strip(): value for key, value in row.items() if key is not None}
            yield fields.to_poem(fields.Item(record), f"{source.file.name} 第 {number} 行")
    source.on_read(source.file.size)


def _is_bare_table(source: Source) -> bool:
    """没有认得出的表头的 .csv、.tsv。"""
    return source.file.suffix in TABLE_SUFFIXES


def _read_bare_table(source: Source) -> tuple[str, Poems]:
    """不猜：各列是什么没有写明。"""
    source.on_read(source.file.size)
    return "", iter([RawPoem(source.file.name, "", "", "", reason=NO_HEADER)])


NO_HEADER = "表格没有表头：第一行请写 题目,作者,正文"

# ── .pt ───────────────────────────────────────────────────────────────

_HEAD_LINE = re.compile(r"(title|date|author)[:：][ \t]*([^\r\n]*)(?:\r\n?|\n|$)", re.IGNORECASE)
_HEAD = re.compile(rf"(?:{_HEAD_LINE.pattern})*", re.IGNORECASE)


def _is_pt(source: Source) -> bool:
    return source.file.suffix == ".pt"


def _read_pt(source: Source) -> tuple[str, Poems]:
    """title:/date: 打头，空一行，正文；没有这样的头时整个文件是正文，文件名是题目。"""
    text = source.text.lstrip("\ufeff\r\n")
    head_end = _HEAD.match(text).end()
    head = {key.lower(): value for key, value in _HEAD_LINE.findall(text, 0, head_end)}
    title = head.get("title", source.file.stem)
    author = head.get("author") or folder.author_of(source.file, any_folder=True)
    return "", iter([RawPoem(source.file.name, title, text[head_end:], author)])


# ── 文章 ──────────────────────────────────────────────────────────────


def _has_front_matter(source: Source) -> bool:
    return blocks.front_matter(source.lines) is not None


def _read_front_matter(source: Source) -> tuple[str, Poems]:
    head, rest = blocks.front_matter(source.lines) or ({}, source.lines)
    body = blocks.without_markdown(rest)
    title, author = fields.title_of(head), fields.text_of(fields.pick(head, fields.AUTHOR_KEYS))
    found = blocks.Block(title or source.file.stem, author, body)
    first, _, after = body.partition("\n")
    if first.strip("# 《》") == title.strip():  # 文件头里写过的题目不重复
        found = blocks.Block(found.title, found.author, after)
    return "", iter([_poem(source, found)])


def _split_by(split: blocks.Split) -> dict[str, Any]:
    """一种切法 → Layout 的 fits 与 read。"""
    return {
        "fits": lambda source: bool(split(source.lines)),
        "read": lambda source: _poems(source, split(source.lines)),
    }


def _always(_: Source) -> bool:
    return True


def _read_one(source: Source) -> tuple[str, Poems]:
    """第一个非空行是题目，其余是正文；Markdown 的标记去掉。"""
    lines = source.lines
    if source.file.suffix in MARKDOWN_SUFFIXES:
        lines = blocks.without_markdown(lines).split("\n")
    found = blocks.one(lines)
    return ("题目旁写着作者" if found.author else ""), iter([_poem(source, found)])


LAYOUTS = (  # 从上到下，第一个合适的
    Layout("不是文字", _is_binary, _read_nothing, many=True),
    Layout("按 JSON 读", _is_json, _read_json),
    Layout("按 CSV 读", _is_table, _read_table),
    Layout("按 CSV 读，没有表头", _is_bare_table, _read_bare_table),
    Layout("按 .pt 诗文件读", _is_pt, _read_pt, many=False),
    Layout("按文件头（---）加正文读", _has_front_matter, _read_front_matter, many=False),
    Layout("按 Markdown 标题切开", **_split_by(blocks.by_headings)),
    Layout("按分隔线切开", **_split_by(blocks.by_rules)),
    Layout("按《题目》切开", **_split_by(blocks.by_book_marks)),
    Layout("按“1. 题目”切开", **_split_by(blocks.by_numbers)),
    Layout("按“题目：”切开", **_split_by(blocks.by_labels)),
    Layout("每行一首，题目:正文", **_split_by(blocks.by_lines)),
    Layout("按空行切开，每段以题目开头", **_split_by(blocks.by_gaps)),
    Layout("一个文件一首，首行是题目", _always, _read_one, many=False),
)
