"""一首诗的文字：能放心改的就改（记下改了什么），不能用的说出原因。全是纯函数。

标点保持原样（全角仍是全角），段落保持原样（段与段之间空一行）。
"""

from __future__ import annotations

import html
import re
from typing import NamedTuple

from poems import dedup

UNKNOWN_AUTHOR = "佚名"

# 改了什么
NEWLINES = "换行符统一为 \\n"
HTML = "去掉 HTML 标签与实体"
INVISIBLE = "去掉零宽字符与控制字符"
SLASH_N = "“/n”字样读作换行"
MARKS = "“|”“/”读作换行"
GAPS = "成串的全角空格读作换行"
BLANKS = "去掉缩进与行尾空白，特殊空白改为空格"
BLANK_LINES = "多余的空行并为一行"
FURNITURE = "去掉网址、署名等页面杂物"
NO_TITLE = "缺标题，取首句为题"
NO_AUTHOR = f"缺作者，记为“{UNKNOWN_AUTHOR}”"
FOUND_AUTHOR = "由正文里的署名得到作者"

# 为什么不能用
EMPTY = "正文为空"
GARBLED = "有乱码或私用区字符"
TOO_SHORT = "正文太短"
NOT_CHINESE = "大半不是中文"


class Poem(NamedTuple):
    """清洗过的一首诗。"""

    title: str
    para: list[str]
    author: str
    normal: str  # 正文的规范形式（见 dedup.normal_form）
    mends: list[str]
    fault: str | None  # 不能用的原因


def mend(title: str, body: str, author: str, min_chars: int) -> Poem:
    """清洗一首诗。min_chars: 正文至少有多少个字（空白不计）。"""
    mends = []
    if not _spotless(body):
        for name, change in _STEPS:
            changed = change(body)
            if changed != body:
                mends.append(name)
                body = changed
    title, author = _one_line(title), _one_line(author)
    if any(hint in body for hint in _FURNITURE_HINTS):
        changed, found = _without_furniture(body, title, author)
        if changed != body:
            mends.append(FURNITURE)
            body = changed
        if found:
            mends.append(FOUND_AUTHOR)
            author = found
    changed = _EXTRA_LINES.sub("\n\n", body)
    if changed != body:
        mends.append(BLANK_LINES)
    body = changed.strip("\n")
    if not title and body:
        mends.append(NO_TITLE)
        title = _first_phrase(body)
    if not author:
        mends.append(NO_AUTHOR)
        author = UNKNOWN_AUTHOR
    normal = dedup.normal_form(body)
    fault = _fault(title, body, author, normal, min_chars)
    return Poem(title, body.split("\n\n"), author, normal, mends, fault)


# ── 逐步改 ────────────────────────────────────────────────────────────

_LINE_MARKS = "\r\v\f\x1c-\x1e\x85\u2028\u2029"
_LINE_ENDS = re.compile(f"\r\n?|[{_LINE_MARKS}]")
_UNSEEN_MARKS = (
    "\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u180b-\u180e"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb"
)
_UNSEEN = re.compile(f"[{_UNSEEN_MARKS}]")
_ODD_BLANK = "\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u2800\u3164"
_EDGE_BLANKS = re.compile(f"^[ \u3000{_ODD_BLANK}]+|[ \u3000{_ODD_BLANK}]+$", re.MULTILINE)
_INNER_BLANK = re.compile(f"[{_ODD_BLANK}]")
_SUSPECT = re.compile(f"[{_LINE_MARKS}{_UNSEEN_MARKS}{_ODD_BLANK}\u3000<&]")
_EXTRA_LINES = re.compile(r"\n{3,}")
_WIDE = "\u2010-\u201f\u2026\u3000-\u303f\u3400-\u9fff\uf900-\ufaff\uff01-\uff60"
_WRITTEN_N = re.compile(
    rf"(?<=[{_WIDE}])[ ]*(?:(?:[/\\]r)?[/\\]n[ ]*|\\r[ ]*)+(?=[{_WIDE}]|$)", re.MULTILINE
)
_BETWEEN = re.compile(rf"(?<=[{_WIDE}])[ \u3000]*([|｜/／]+)[ \u3000]*(?=[{_WIDE}])")
_LONG_LINE = 30  # 用 / 隔开的各行平均不超过这么多字
_WIDE_GAP = re.compile("(?<=[^\\s])\u3000{2,}(?=[^\\s])")

_DROPPED_BLOCK = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
_BREAK = re.compile(r"<(?:br|hr)\b[^<>]*>[ \t]*\n?", re.IGNORECASE)
_BLOCK_END = re.compile(r"</(?:p|div|li|tr|h[1-6]|blockquote)\s*>[ \t]*\n?", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:a|abbr|article|aside|audio|b|big|blockquote|body|button|center|code|dd|del|div|dl|dt|em"
    r"|embed|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|label|li|link"
    r"|main|meta|nav|nobr|o:p|object|ol|p|param|pre|s|section|small|span|strike|strong|sub|sup|svg"
    r"|table|tbody|td|tfoot|th|thead|title|tr|tt|u|ul|video|wbr)(?:\s[^<>]*|/)?>",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)


def _line_ends(text: str) -> str:
    return _LINE_ENDS.sub("\n", text)


def _no_html(text: str) -> str:
    """<br> 是换行；</p> 在有 <br> 时是段落结束，否则是一行结束。不认识的 <…> 不动。"""
    for _ in range(2):  # 转义过两次的网页文字要做两遍
        if "<" in text:
            text = _DROPPED_BLOCK.sub("", text)
            text = _BLOCK_END.sub("\n\n" if _BREAK.search(text) else "\n", text)
            text = _TAG.sub("", _BREAK.sub("\n", text))
        if "&" in text:
            text = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
    return text


def _no_unseen(text: str) -> str:
    return _UNSEEN.sub("", text)


def _read_slash_n(text: str) -> str:
    """写成 /n 或 \\n 两个字符的换行；前后须是中文，免得误伤诗里的“/n/”。"""
    if "/n" not in text and "\\n" not in text and "\\r" not in text:
        return text
    return _WRITTEN_N.sub(lambda match: "\n" * (match.group().count("n") or 1), text)


def _read_marks(text: str) -> str:
    """行与行之间写着 | 或 / 的诗：汉字之间至少两处；连写两个是空一行。

    诗里本来就用的斜线不动：除了段与段之间的空行，还有别的换行、或每行太长的，不这样读。
    """
    found = _BETWEEN.findall(text)
    if len(found) < 2 or len(found) < text.count("\n"):
        return text
    slashes = any(mark[0] in "/／" for mark in found)
    broken = "\n" in text.replace("\n\n", "") or len(text) > _LONG_LINE * len(found)
    if slashes and broken:
        return text
    return _BETWEEN.sub(lambda match: "\n" * min(len(match.group(1)), 2), text)


def _read_gaps(text: str) -> str:
    """用两个以上全角空格隔开各行的诗：这样的空隙不比真的换行少。"""
    count = len(_WIDE_GAP.findall(text))
    return _WIDE_GAP.sub("\n", text) if count and count >= text.count("\n") else text


def _plain_blanks(text: str) -> str:
    return _INNER_BLANK.sub(" ", _EDGE_BLANKS.sub("", text))


def typed(text: str) -> str:
    """人输入的问题、首行之类：看不见的字符、换行与特殊空白照语料改，别的不动。"""
    return _plain_blanks(_no_unseen(_line_ends(text))).strip()


_STEPS = (
    (HTML, _no_html),
    (NEWLINES, _line_ends),
    (INVISIBLE, _no_unseen),
    (SLASH_N, _read_slash_n),
    (BLANKS, _plain_blanks),
    (MARKS, _read_marks),
    (GAPS, _read_gaps),
)


def _spotless(text: str) -> bool:
    """_STEPS 什么也不会改（多数诗如此，省去逐步尝试）。"""
    return (
        text.strip(" ") == text
        and not _SUSPECT.search(text)
        and not any(mark in text for mark in _SUSPECT_STRINGS)
    )


_SUSPECT_STRINGS = (" \n", "\n ", "/", "\\n", "\\r", "|", "／", "｜")


def _one_line(text: str) -> str:
    """题目与作者：同样清洗，并成一行。"""
    if not _spotless(text):
        for name, change in _STEPS:
            text = text if name in (MARKS, GAPS) else change(text)
    return " ".join(text.split("\n")).strip()


def _first_phrase(body: str) -> str:
    """没有题目的诗，照惯例以首句为题，至多 20 字。"""
    line = body.split("\n", 1)[0]
    phrase = re.split(
        r"[，。！？；：、…,.!?;:]", line.strip("“”‘’「」『』《》（）()—"), maxsplit=1
    )[0]
    return (phrase or line).strip()[:20]


# ── 页面杂物 ──────────────────────────────────────────────────────────

_FURNITURE_HINTS = (
    *(
        "http",
        "HTTP",
        "www.",
        "作者",
        "诗人",
        "标题",
        "题目",
        "诗题",
        "by ",
        "by:",
        "By",
        "BY",
        "uthor",
    ),
    *(f"{label}{mark}" for label in "文诗作" for mark in ":：/／|｜ "),
)
_URL_LINE = re.compile(
    r"^\W{0,3}(?:[\w ]{0,12}[:：]\s*)?(?:https?[:：]//|www\.)[^\s\u3400-\u9fff]+\W{0,3}$",
    re.IGNORECASE,
)
_BYLINE = re.compile(
    r"^\W{0,2}(?P<label>原?作者|诗人|撰文|[文诗作]|by|author)\s*[:：/／|｜]\s*(?P<name>\S.{0,40}?)\W{0,2}$",
    re.IGNORECASE,
)
_TITLE_LINE = re.compile(r"^\W{0,2}(?:标题|题目|诗题)\s*[:：]\s*(?P<name>\S.*?)\W{0,2}$")


def _without_furniture(body: str, title: str, author: str) -> tuple[str, str]:
    """去掉网址行、重复作者或题目的行；作者未知时从首尾的“作者：…”得到。返回（正文，得到的作者）。"""
    lines = body.split("\n")
    found = ""
    if not author:
        for line in lines[:2] + lines[-2:]:
            match = _BYLINE.match(line)
            if match and match.group("label") in ("作者", "原作者", "诗人"):
                author = found = match.group("name")
                break
    kept = [line for line in lines if not _is_furniture(line, title, author)]
    return ("\n".join(kept), found) if len(kept) < len(lines) else (body, found)


def _is_furniture(line: str, title: str, author: str) -> bool:
    if _URL_LINE.match(line):
        return True
    byline, heading = _BYLINE.match(line), _TITLE_LINE.match(line)
    return bool(byline and _repeats(byline.group("name"), author)) or bool(
        heading and _repeats(heading.group("name"), title)
    )


def _repeats(text: str, name: str) -> bool:
    """text 就是 name，或是 name 后面跟着空白、括号之类。"""
    if not name:
        return False
    rest = text[len(name) :]
    return dedup.normal_form(text) == dedup.normal_form(name) or (
        text.startswith(name) and not rest[:1].isalnum()
    )


# ── 能不能用 ──────────────────────────────────────────────────────────

_BROKEN = re.compile(
    "[\ufffd\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff]"
)
_MOJIBAKE = "锟斤拷"  # U+FFFD 的 UTF-8 字节被当作 GBK 读
_CHINESE = re.compile(
    "[\u3005\u3007\u3100-\u312f\u31a0-\u31bf\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


def _fault(title: str, body: str, author: str, normal: str, min_chars: int) -> str | None:
    if not body:
        return EMPTY
    if any(_BROKEN.search(text) or _MOJIBAKE in text for text in (body, title, author)):
        return GARBLED
    if len("".join(body.split())) < min_chars:
        return TOO_SHORT
    others = len(_CHINESE.sub("", normal))
    if not normal or others * 2 > len(normal):
        return NOT_CHINESE
    return None
