"""一篇文章里的诗：在哪里切开，哪一行是题目，哪一行是作者。全是纯函数，进来的是去了行尾空白的各行。"""

from __future__ import annotations

import re
from typing import Callable, List, NamedTuple

Lines = List[str]


class Block(NamedTuple):
    """切出来的一首。"""

    title: str
    author: str
    body: str


Split = Callable[[Lines], List[Block]]  # 切不开时为空

_TITLE_LABEL = re.compile(
    r"^\W{0,2}(?:标题|题目|诗题|篇名|title)\s*[:：]\s*(?P<title>\S.*)$", re.IGNORECASE
)
_AUTHOR_LABEL = re.compile(
    r"^\W{0,2}(?:原?作者|诗人|author|by|[文诗作])\s*[:：/／|｜]\s*(?P<author>\S.{0,30}?)\W{0,2}$",
    re.IGNORECASE,
)
_NUMBER = r"(?:\d{1,4}\s*[.、．)）]\s*|第?[一二三四五六七八九十百]+[、.．]\s*)?"
_BOOK_MARKS = re.compile(rf"^\W{{0,2}}{_NUMBER}《(?P<title>[^》]{{1,40}})》\s*(?P<rest>.{{0,24}})$")
_RULE = re.compile(r"^\s*(?P<mark>[=＝\-—–*＊_~～#·•+◆★☆─━])(?:\s*(?P=mark)){2,}\s*$")
_HEADING = re.compile(r"^(?P<marks>#{1,6})\s+(?P<title>\S.*?)\s*#*$")
_BOLD = re.compile(r"^(?P<mark>\*\*|__)(?P<title>[^*_]{1,30})(?P=mark)$")
_NUMBERED = re.compile(
    r"^(?P<number>\d{1,4})\s*[.、．)）]\s*(?P<title>[^\s，。！？；：,!?;:][^，。！？；：,!?;:]{0,23})$"
)
_NAME = r"[\u3400-\u9fff]{2,4}(?:[·・．][\u3400-\u9fff]{1,8})*"
_DYNASTY = r"(?:[\[【（(〔][^\]】）)〕]{1,4}[\]】）)〕]\s*)?"
_AUTHOR_LINE = re.compile(
    rf"^[—\-\s（(]*{_DYNASTY}(?:[文诗作][/／:：]\s*)?(?P<author>{_NAME})(?:\s*[著作])?[\s）)]*$"
)
_TITLE_AND_AUTHOR = re.compile(
    rf"^(?P<title>\S.{{0,29}}?)(?:\s*(?P<mark>[/／|｜]|\s|\u3000)\s*|(?=[（(]))"
    rf"{_DYNASTY}[（(]?(?P<author>{_NAME})[）)]?$"
)
_BODY_LABEL = re.compile(r"^\s*(?:正文|内容|诗文|content)\s*[:：]\s*$", re.IGNORECASE)
_SURNAMES = frozenset(
    "某王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕"
    "丁任沈姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武"
    "戴莫孔向汤欧阮艾臧穆冰舒卞闻戈辛"
)
_STOPS = re.compile(r"[，。！？；：、…,.!?;:]")
_TITLED_LINE = re.compile(
    r"^\s*[\"“]?(?P<title>[^:：\t，。！？；]{1,24})\s*(?:[:：]|\t+)\s*(?P<body>\S.{5,})$"
)


# ── 一首 ──────────────────────────────────────────────────────────────


def one(lines: Lines) -> Block:
    """第一个非空行是题目（也许连着作者），其余是正文。"""
    lines = _trimmed(lines)
    if not lines:
        return Block("", "", "")
    title, author = title_line(lines[0])
    rest = _trimmed(lines[1:])
    spaced = len(lines) > 1 and not lines[1].strip()
    joined = _TITLE_AND_AUTHOR.match(title) if not author and spaced else None
    if joined and ((joined.group("mark") or "").strip() or joined.group("author")[0] in _SURNAMES):
        title, author = joined.group("title"), joined.group("author")
    match = _AUTHOR_LINE.match(rest[0]) if not author and len(rest) > 2 else None
    if match and _is_signature(match.group("author"), rest, spaced):
        author, rest = match.group("author"), _trimmed(rest[1:])
    return Block(title, author, "\n".join(without_label(rest)))


def _is_signature(name: str, rest: Lines, spaced: bool) -> bool:
    """题目下面像人名的一行是作者：紧接题目又空一行，或者姓常见、比下面的诗行短。"""
    if not rest[1].strip() and not spaced:
        return True
    verses = [line.strip() for line in rest[1:] if line.strip()]
    longer = bool(verses) and min(map(len, verses)) > len(name)
    return len(name) <= 3 and name[0] in _SURNAMES and longer


def without_label(lines: Lines) -> Lines:
    """去掉写着“正文：”的一行。"""
    return [line for line in lines if not _BODY_LABEL.match(line)]


def title_line(line: str) -> tuple[str, str]:
    """写着题目的一行 → （题目, 同一行里的作者）。"""
    line = line.strip(" \t\u3000\ufeff")
    label = _TITLE_LABEL.match(line)
    if label:
        line = label.group("title").strip()
    heading = _HEADING.match(line)
    if heading:
        line = heading.group("title")
    marked = _BOOK_MARKS.match(line)
    if marked:
        author = _author_after(marked.group("rest"))
        if author is not None:
            return marked.group("title"), author
    return line, ""


def _author_after(rest: str) -> str | None:
    """《题目》后面的文字是作者时的名字；什么也没有时为空串，是别的话时为 None。"""
    rest = rest.strip(" \t\u3000")
    match = _AUTHOR_LABEL.match(rest) or _AUTHOR_LINE.match(rest.lstrip("/／|｜—-:： "))
    return match.group("author") if match else ("" if not rest else None)


def _trimmed(lines: Lines) -> Lines:
    """去掉首尾的空行。"""
    first, last = 0, len(lines)
    while first < last and not lines[first].strip(" \t\u3000\ufeff"):
        first += 1
    while last > first and not lines[last - 1].strip(" \t\u3000\ufeff"):
        last -= 1
    return lines[first:last]


# ── 许多首 ────────────────────────────────────────────────────────────


def _split_at(lines: Lines, starts: list[int]) -> list[Lines]:
    """从这些行起各为一段；第一段之前的文字不要。"""
    ends = [*starts[1:], len(lines)]
    return [_trimmed(lines[first:last]) for first, last in zip(starts, ends)]


def _blocks(parts: list[Lines]) -> list[Block]:
    """各段的题目、作者、正文；第二行在各段里都像人名，它就是作者。"""
    parts = [part for part in map(_trimmed, parts) if len(part) > 1]
    found = []
    bodies = [_trimmed(part[1:]) for part in parts]
    named = [_AUTHOR_LABEL.match(body[0]) or _AUTHOR_LINE.match(body[0]) for body in bodies]
    by_line = all(named) and all(len(body) > 1 for body in bodies) and len(parts) > 1
    for part, body, name in zip(parts, bodies, named):
        title, author = title_line(part[0])
        joined = _TITLE_AND_AUTHOR.match(title) if not author else None
        joined = joined if joined and (joined.group("mark") or "").strip() else None
        if by_line and not author and name:
            author, body = name.group("author"), _trimmed(body[1:])
        elif joined:
            title, author = joined.group("title"), joined.group("author")
        found.append(Block(title, author, "\n".join(without_label(body))))
    return found


def by_rules(lines: Lines) -> list[Block]:
    """一行 ===== 之类隔开各首；诗里也用的 ***、--- 要各段都以题目开头才算。"""
    parts: list[Lines] = [[]]
    sure = True
    for line in lines:
        match = _RULE.match(line)
        if match:
            sure = sure and match.group("mark") in "=＝#"
            parts.append([])
        else:
            parts[-1].append(line)
    parts = [part for part in map(_trimmed, parts) if part]
    if len(parts) < 2 or any(len(part) < 2 for part in parts):
        return []
    return _blocks(parts) if sure or all(map(_starts_with_title, parts)) else []


def _starts_with_title(part: Lines) -> bool:
    """以题目开头：写明的题目，或后面空一行、跟着作者的短短一行。"""
    first = part[0].strip()
    if _TITLE_LABEL.match(first) or _HEADING.match(first) or _BOOK_MARKS.match(first):
        return True
    if len(part) < 3 or len(first) > 20 or _STOPS.search(first):
        return False
    signed = _AUTHOR_LINE.match(part[1]) and len(part) > 3 and not part[2].strip()
    return not part[1].strip() or bool(signed or _AUTHOR_LABEL.match(part[1]))


def by_book_marks(lines: Lines) -> list[Block]:
    """单独成行的《题目》（后面可有作者），至少两行。"""
    starts = []
    for number, line in enumerate(lines):
        match = _BOOK_MARKS.match(line.strip())
        if match and _author_after(match.group("rest")) is not None:
            starts.append(number)
    return _blocks(_split_at(lines, starts)) if len(starts) > 1 and starts[0] == 0 else []


def by_numbers(lines: Lines) -> list[Block]:
    """空一行之后单独成行的“1. 题目”“2. 题目”……从 1 数起，至少两首。"""
    parts: list[Lines] = []
    for before, line in zip(["", *lines], lines):
        match = _NUMBERED.match(line.strip()) if not before.strip() else None
        if match and int(match.group("number")) == len(parts) + 1:
            parts.append([match.group("title")])
        elif parts:
            parts[-1].append(line)
        else:
            return []  # 第一首之前还有别的
    parts = [*map(_trimmed, parts)]
    return _blocks(parts) if len(parts) > 1 and all(len(part) > 1 for part in parts) else []


def by_labels(lines: Lines) -> list[Block]:
    """“题目：…”打头的各段，至少两段。"""
    starts = [number for number, line in enumerate(lines) if _TITLE_LABEL.match(line)]
    return _blocks(_split_at(lines, starts)) if len(starts) > 1 and starts[0] == 0 else []


def by_headings(lines: Lines) -> list[Block]:
    """Markdown 的标题，一个标题一首；下面只有小标题的大标题像人名时是作者。

    没有标题时，单独成段的 **题目** 也算。
    """
    if not any(map(_HEADING.match, lines)):
        lines = [
            line if before.strip() else _BOLD.sub(r"# \g<title>", line)
            for before, line in zip(["", *lines], lines)
        ]
    starts = [number for number, line in enumerate(lines) if _HEADING.match(line)]
    if len(starts) < 2 or starts[0] != 0:
        return []
    found, groups = [], {}
    for part in _split_at(lines, starts):
        heading = _HEADING.match(part[0])
        level = len(heading.group("marks"))
        groups = {depth: name for depth, name in groups.items() if depth < level}
        if len(part) == 1:
            groups[level] = heading.group("title")
            continue
        while _RULE.match(part[-1]):  # 标题之间还画了线
            part = _trimmed(part[:-1])
        block = one(part)
        body = without_markdown(block.body.split("\n"))
        names = [name for name in groups.values() if _is_name(name)]
        author = block.author or (names[-1] if names else "")
        found.append(Block(block.title, author, body))
    return found if len(found) > 1 or groups else []


def _is_name(text: str) -> bool:
    return bool(_AUTHOR_LINE.match(text)) and not re.search(r"[诗集选卷辑作品]", text)


def by_lines(lines: Lines) -> list[Block]:
    """每行一首：“题目:正文”或“题目 制表符 正文”；至少三行，几乎每行如此，题目各不相同。"""
    full = [line for line in lines if line.strip()]
    matches = [match for match in map(_TITLED_LINE.match, full) if match]
    titles = {match.group("title") for match in matches}
    if len(matches) < 3 or len(matches) * 10 < len(full) * 9 or len(titles) * 5 < len(matches) * 4:
        return []
    if sum(len(match.group("body")) for match in matches) < 12 * len(matches):
        return []  # 短短的对话、名单不是诗
    return [Block(m.group("title").strip(), "", m.group("body")) for m in matches]


def by_gaps(lines: Lines) -> list[Block]:
    """空两行以上隔开、每段都以题目开头的各首。"""
    parts: list[Lines] = [[]]
    for number, line in enumerate(lines):
        blank = not line.strip()
        if (
            not blank
            and number > 1
            and not lines[number - 1].strip()
            and not lines[number - 2].strip()
        ):
            parts.append([])
        parts[-1].append(line)
    parts = [part for part in map(_trimmed, parts) if part]
    return _blocks(parts) if len(parts) > 1 and all(map(_starts_with_title, parts)) else []


def looks_like_many(lines: Lines) -> str:
    """按一首读了、却像有许多首的理由；不像时为空。"""
    rules = sum(1 for line in lines if _RULE.match(line))
    marks = sum(1 for line in lines if _BOOK_MARKS.match(line.strip()))
    authors = sum(1 for line in lines if _AUTHOR_LABEL.match(line))
    titled = sum(1 for line in lines if _TITLED_LINE.match(line))
    gaps = len(re.findall(r"\n{3,}", "\n".join(line.strip() for line in lines)))
    for count, least, what in (
        (rules, 3, "分隔线"),
        (marks, 3, "《题目》"),
        (authors, 2, "“作者：”"),
        (titled, 10, "“题目:正文”"),
        (gaps, 1, "空两行以上"),
    ):
        if count >= least:
            return f"像是不止一首（{what}），却按一首读了"
    return "很长，像是不止一首，却按一首读了" if sum(map(len, lines)) > 20_000 else ""


# ── 文件头与 Markdown ─────────────────────────────────────────────────

_ITEM = re.compile(r"^\s*-\s+(.+)$")
_PAIR = re.compile(r"^(?P<key>[\w\u3400-\u9fff-]+)\s*[:：=]\s*(?P<value>.*)$")


def front_matter(lines: Lines) -> tuple[dict, Lines] | None:
    """文章开头 --- 或 +++ 之间的“名字: 值” → （文件头, 其余各行）；没有时为 None。"""
    if not lines or lines[0] not in ("---", "+++"):
        return None
    end = next((n for n, line in enumerate(lines[1:40], 1) if line == lines[0]), None)
    if end is None:
        return None
    head: dict[str, str] = {}
    key = ""
    for line in lines[1:end]:
        pair, item = _PAIR.match(line), _ITEM.match(line)
        if pair:
            key = pair.group("key")
            head[key] = pair.group("value").strip("\"'[] ")
        elif item and key:  # 值写成下面的几项
            head[key] = "、".join(filter(None, (head[key], item.group(1).strip("\"' "))))
    return (head, _trimmed(lines[end + 1 :])) if head else None


_MARKDOWN = (
    (re.compile(r"^>\s?", re.MULTILINE), ""),
    (re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![*\w])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![*\w])"), r"\1"),
    (re.compile(r"\\$", re.MULTILINE), ""),
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),
    (re.compile(r"^```.*$", re.MULTILINE), ""),
)


def without_markdown(lines: Lines) -> str:
    """去掉引用、强调、链接等标记。"""
    text = "\n".join(lines)
    for pattern, plain in _MARKDOWN:
        text = pattern.sub(plain, text)
    return text.strip("\n")
