"""一条记录的哪个字段是题目、作者、正文：JSON 的记录、表格的一行、文章的文件头都问这里。"""

from __future__ import annotations

import math
import re
from typing import Any, Iterator, NamedTuple

TITLE_KEYS = ("title", "rhythmic", "name", "标题", "题目", "诗名", "词牌", "诗题", "篇名", "题")
CHAPTER_KEYS = ("chapter", "subchapter")  # 没有题目时，章节名是题目
AUTHOR_KEYS = ("author", "poet", "writer", "作者", "诗人", "authors", "作家", "姓名", "署名")
STANZA_KEYS = ("para",)  # 每项是一段
LINE_KEYS = (  # 每项是一行
    *("paragraphs", "content", "lines", "text", "body", "poem", "正文", "内容"),
    *("paragraph", "verses", "stanzas", "contents", "poetry", "诗文", "诗句", "诗", "全文", "原文"),
)
BODY_KEYS = STANZA_KEYS + LINE_KEYS
_ITEM_KEYS = ("line", "text", "content", "verse", "sentence", "lines", "句", "诗句", "行", "内容")
_QUESTION_KEYS = ("instruction", "prompt", "question", "input", "query", "问题", "提问")
_ANSWER_KEYS = ("output", "response", "completion", "answer", "chosen", "回答", "答案")
_DIALOGUE_KEYS = ("messages", "conversations", "conversation", "dialogue", "turns")
_ASKERS, _ANSWERERS = ("user", "human", "prompter"), ("assistant", "gpt", "model", "bot", "chatgpt")
_MISSING = frozenset(("nan", "none", "null", "n/a", "<na>", "undefined", "nil"))

# 读入时顺手改的（每首诗计一次）
STRING_BODY = "正文不是列表，按一段文字读"
ODD_ITEMS = "略过正文里的空项或非文字项"
PARA_IS_LINES = "文件里 para 的各项都只有一行，每项读作一行"
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


class Item(NamedTuple):
    """拆开包装后的一条记录，连同外面说明的题目与作者。"""

    record: Any
    author: str = ""
    title: str = ""


# ── 值 ────────────────────────────────────────────────────────────────


def is_missing(value: Any) -> bool:
    """没有值：None、NaN、空的，以及写成文字的 nan、None、null。"""
    if isinstance(value, str):
        return not value.strip() or value.strip().lower() in _MISSING
    return value is None or (isinstance(value, float) and math.isnan(value)) or value in ([], {})


def pick(record: dict, keys: tuple[str, ...]) -> Any:
    """第一个有内容的字段的值；字段名不分大小写。"""
    key = key_of(record, keys)
    return None if key is None else record[key]


def key_of(record: dict, keys: tuple[str, ...]) -> str | None:
    """第一个有内容的字段名。"""
    plain = {str(key).strip().lower(): key for key in record}
    found = (plain[key] for key in keys if key in plain)
    return next((key for key in found if not is_missing(record[key])), None)


def text_of(value: Any) -> str:
    """题目、作者：文字与数字照用，列表取其中的文字，其余当作没有。"""
    if is_missing(value) or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, list):
        return "、".join(item for item in value if isinstance(item, str) and not is_missing(item))
    return text_of(pick(value, ("name", "姓名", *TITLE_KEYS))) if isinstance(value, dict) else ""


def _item_text(item: Any) -> str | None:
    """列表里的一项 → 文字；写成各行的列表、{"line": …} 之类也认；其他类型为 None。"""
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        return _item_text(pick(item, _ITEM_KEYS))
    if isinstance(item, list) and item and all(isinstance(line, str) for line in item):
        return "\n".join(item)
    return None


# ── 包装 ──────────────────────────────────────────────────────────────


_NOTHING = Item(None)


def flatten(value: Any, outer: Item = _NOTHING, depth: int = 0) -> Iterator[Item]:
    """拆开外面的包装：{"poems": […]}、诗集套诗、按作者分组、题目 → 正文、对话。"""
    if depth < 5 and isinstance(value, list) and _is_dialogue(value):
        yield from _answers(value, outer)
    elif depth < 5 and isinstance(value, list) and _holds_records(value):
        for item in value:
            yield from flatten(item, outer, depth + 1)
    elif depth < 5 and isinstance(value, dict):
        yield from _open(value, outer, depth)
    else:
        yield Item(value, outer.author, outer.title)


def _open(value: dict, outer: Item, depth: int) -> Iterator[Item]:
    dialogue = pick(value, _DIALOGUE_KEYS)
    body = pick(value, BODY_KEYS)
    answer = pick(value, _ANSWER_KEYS)
    author = text_of(pick(value, AUTHOR_KEYS)) or outer.author
    if isinstance(dialogue, list) and _is_dialogue(dialogue):
        yield from _answers(dialogue, outer)
    elif body is None and answer is not None:
        yield _answer([text_of(value.get(key)) for key in _QUESTION_KEYS], answer, outer)
    elif body is not None and not (_holds_records(body) and not _are_lines(value, body)):
        yield Item(value, author, outer.title)
    elif body is not None:
        for item in body:
            yield from flatten(item, Item(None, author), depth + 1)
    else:
        yield from _named(value, Item(None, author), depth)


def _named(value: dict, outer: Item, depth: int) -> Iterator[Item]:
    """没有正文的记录：里面有诗集就进去，名字像人名的是作者；{题目: 正文} 也认；否则它自己。"""
    groups = {key: inner for key, inner in value.items() if _holds_records(inner)}
    if not groups and not _known(value):
        groups = {key: inner for key, inner in value.items() if isinstance(inner, dict) and inner}
        if value and all(map(_is_whole_poems, value.values())):
            for key, inner in value.items():
                author = str(key) if _is_name(key) else outer.author
                yield from (Item(text, author) for text in inner)
            return
        if value and all(_is_titled_text(key, inner) for key, inner in value.items()):
            for key, text in value.items():
                yield Item({"title": key, "content": text}, outer.author)
            return
    if not groups:
        yield Item(value, outer.author, outer.title)
    for key, inner in groups.items():
        author = str(key) if _is_name(key) else outer.author
        yield from flatten(inner, Item(None, author), depth + 1)


def _known(value: dict) -> bool:
    """有我们认得的字段。"""
    keys = {str(key).strip().lower() for key in value}
    return not keys.isdisjoint((*TITLE_KEYS, *CHAPTER_KEYS, *AUTHOR_KEYS, *BODY_KEYS))


def _holds_records(value: Any) -> bool:
    """一串记录，或一串对话。"""
    return isinstance(value, list) and any(
        isinstance(item, dict) or (isinstance(item, list) and _is_dialogue(item)) for item in value
    )


def _are_lines(record: dict, items: list) -> bool:
    """正文的各项是写成对象的行，而不是一首首诗：没有题目和作者，只有一行字。"""
    objects = [item for item in items if isinstance(item, dict)]
    plain = all(
        _item_text(item) is not None
        and pick(item, TITLE_KEYS + CHAPTER_KEYS + AUTHOR_KEYS) is None
        and ("\n" not in (_item_text(item) or "") or pick(item, ("lines",)) is not None)
        for item in objects
    )
    return plain and pick(record, TITLE_KEYS + CHAPTER_KEYS) is not None


_NOT_NAMES = re.compile(r"[诗词曲集选卷辑篇章首]|作品|数据|列表|全部|未知|年|[0-9]")
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def _is_name(key: Any) -> bool:
    text = str(key)
    return bool(
        len(text) <= 12 and _CHINESE.search(text) and not _NOT_NAMES.search(text)
    ) and text not in (*TITLE_KEYS, *AUTHOR_KEYS, *BODY_KEYS)


def _is_whole_poems(value: Any) -> bool:
    """一串各有几行的文字：每项是一首。"""
    return isinstance(value, list) and all(
        isinstance(text, str) and "\n" in text.strip() for text in value
    )


def _is_titled_text(key: Any, text: Any) -> bool:
    lines = text if isinstance(text, list) else [text]
    if not lines or not all(isinstance(line, str) for line in lines):
        return False
    whole = "\n".join(lines)
    return bool(_CHINESE.search(whole)) and len(whole) >= 8 and len(str(key)) <= 40


# ── 对话 ──────────────────────────────────────────────────────────────


def _role(turn: Any) -> str:
    return str(turn.get("role") or turn.get("from") or "") if isinstance(turn, dict) else ""


def _is_dialogue(turns: list) -> bool:
    return bool(turns) and all(_role(turn) for turn in turns) and len(turns) >= 2


def _answers(turns: list, outer: Item) -> Iterator[Item]:
    """每个回答是一首诗，它前面的提问给出题目；系统的话不是诗。"""
    question = ""
    for turn in turns:
        said = turn.get("content", turn.get("value", turn.get("text")))
        if isinstance(said, list):  # [{"type": "text", "text": …}]
            said = "\n".join(text for text in map(_item_text, said) if text)
        if _role(turn).lower() in _ASKERS:
            question = text_of(said)
        elif _role(turn).lower() in _ANSWERERS:
            yield _answer([question], said, outer)


_TITLES = (
    re.compile(r"《([^》]{1,40})》"),
    re.compile(r"[以用][“\"「『‘']([^”\"」』’']{1,40})[”\"」』’'](?:为题|作题|为标题|为题目)"),
    re.compile(
        r"(?:题目|标题|题为|名为|题)\s*(?:是|为|叫|[:：])?\s*[“\"「『‘']([^”\"」』’']{1,40})[”\"」』’']"
    ),
    re.compile(r"(?:题目|标题)\s*(?:是|为|叫|[:：])\s*([^\s，。,；;！!？?]{1,30})"),
    re.compile(r"以\s*([^\s，。“”\"]{1,20})\s*为(?:题|标题)"),
)
_ASKS = re.compile(r"[写作来赋创]|请|帮|生成|诗")


def _answer(asked: list[str], answer: Any, outer: Item) -> Item:
    """一问一答 → 诗的记录；提问里没有写明题目、有一段又短得像题目时，它就是题目。"""
    asked = [text.strip() for text in asked if text.strip()]
    question = " ".join(asked)
    found = next((match for match in (p.search(question) for p in _TITLES) if match), None)
    short = [text for text in asked if len(text) <= 15 and not _ASKS.search(text)]
    title = found.group(1).strip() if found else "".join(short[:1])
    text = answer.strip() if isinstance(answer, str) else answer
    if isinstance(text, str):
        heading = re.match(r"\W{0,2}《([^》]{1,40})》\W{0,2}\n", text)
        if heading:
            title, text = title or heading.group(1), text[heading.end() :]
    return Item({"title": title, "content": text}, outer.author)


# ── 一条记录 ──────────────────────────────────────────────────────────


def title_of(record: dict) -> str:
    """题目；没有时用章节名。"""
    title = text_of(pick(record, TITLE_KEYS))
    if title:
        return title
    parts = [text_of(pick(record, (key,))) for key in CHAPTER_KEYS]
    return "·".join(part for part in parts if part)


def describe(outer: Any = None, record: Any = None) -> str:
    """一条记录和拆开后的第一首怎样读：“题目=title，作者=author，正文=content”。"""
    if _is_conversation(outer):
        return "对话：回答是诗，提问给出题目"
    if not isinstance(record, dict):
        return ""
    keys = (
        ("题目", key_of(record, TITLE_KEYS + CHAPTER_KEYS)),
        ("作者", key_of(record, AUTHOR_KEYS)),
        ("正文", key_of(record, BODY_KEYS)),
    )
    return "，".join(f"{name}={key}" for name, key in keys if key is not None)


def _is_conversation(record: Any) -> bool:
    if isinstance(record, list):
        return _is_dialogue(record)
    if not isinstance(record, dict) or pick(record, BODY_KEYS) is not None:
        return False
    return pick(record, _DIALOGUE_KEYS) is not None or pick(record, _ANSWER_KEYS) is not None


def to_poem(item: Item, where: str, para_is_lines: bool = False) -> RawPoem:
    """一条记录 → 诗。字段缺失、为空或类型不对时给出 reason，不抛错。"""
    record = item.record
    if isinstance(record, str) and "\n" in record.strip():
        return RawPoem(where, item.title, record, item.author)
    if not isinstance(record, dict):
        return RawPoem(where, "", text_of(record), "", reason=NOT_A_POEM)
    title = title_of(record) or item.title
    author = text_of(pick(record, AUTHOR_KEYS)) or item.author
    plain = {str(key).strip().lower(): key for key in record}
    keys = [plain[key] for key in BODY_KEYS if key in plain]
    if not keys:
        return RawPoem(where, title, "", author, reason=NOT_A_POEM)
    key = next((key for key in keys if not is_missing(record[key])), keys[0])
    value = record[key]
    if is_missing(value):
        return RawPoem(where, title, "", author, reason=EMPTY)
    if isinstance(value, str):
        notes = (STRING_BODY,) if key in STANZA_KEYS else ()
        return RawPoem(where, title, value, author, notes)
    if not isinstance(value, list):
        return RawPoem(where, title, str(value), author, reason=BAD_BODY)
    as_lines = key not in STANZA_KEYS or (para_is_lines and len(value) > 1)
    notes = (PARA_IS_LINES,) if as_lines and key in STANZA_KEYS else ()
    body, odd = _join(value, as_lines)
    if body is None:
        return RawPoem(where, title, str(value), author, reason=BAD_BODY)
    return RawPoem(where, title, body, author, (*notes, ODD_ITEMS) if odd else notes)


def _join(items: list, as_lines: bool) -> tuple[str | None, bool]:
    """列表 → 正文（没有一项是文字时为 None），与是否略过了什么。"""
    texts = [text for text in map(_item_text, items) if text is not None]
    odd = len(texts) < len(items) or (not as_lines and not all(texts))
    if not texts:
        return None, odd
    # 按行的写法里，空串是段与段之间的空行；各项本身有几行的是一段
    stanzas = not as_lines or sum("\n" in text.strip("\n") for text in texts) * 2 > len(texts) > 1
    return ("\n\n" if stanzas else "\n").join(t for t in texts if t or not stanzas), odd
