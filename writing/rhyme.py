"""韵部：按普通话的韵母分成十三辙（另立儿化一部），读音来自 pypinyin（可选安装）。"""

from __future__ import annotations

import functools

from support.console import UserError

_GROUPS = {
    "发花": "a ia ua",
    "梭坡": "o e uo",
    "乜斜": "ie ve ê",
    "姑苏": "u",
    "一七": "i v -i",
    "怀来": "ai uai",
    "灰堆": "ei uei",
    "遥条": "ao iao",
    "油求": "ou iou",
    "言前": "an ian uan van",
    "人辰": "en in uen vn",
    "江阳": "ang iang uang",
    "中东": "eng ing ueng ong iong",
    "儿": "er",
}
NAMES = tuple(_GROUPS)
_GROUP_OF = {final: name for name, finals in _GROUPS.items() for final in finals.split()}


def is_hanzi(char: str) -> bool:
    """是不是一个汉字（有读音可押）。"""
    return "\u4e00" <= char <= "\u9fff" or "\u3400" <= char <= "\u4dbf"


@functools.lru_cache(maxsize=None)
def group(char: str) -> str | None:
    """一个汉字的韵部（取最常见的读音）；不是汉字或没有读音时为 None。

    没有安装 pypinyin 时抛出 UserError。
    """
    if not is_hanzi(char):
        return None
    try:
        from pypinyin import Style, pinyin
    except ImportError:
        raise UserError("押韵需要拼音库。\n请运行：pip install pypinyin") from None
    found = pinyin(char, style=Style.FINALS, strict=True, errors="ignore")
    return _GROUP_OF.get(found[0][0]) if found else None


def target(rhyme: object) -> str | None:
    """chat() 的 rhyme 选项 → 韵部；True 表示由第一行决定（None）。

    可以写韵部名（江阳），也可以写一个要押的字。认不出时抛出 UserError。
    """
    if rhyme is True:
        group("韵")  # 没有装 pypinyin 的话，现在就说
        return None
    if isinstance(rhyme, str) and rhyme in NAMES:
        group("韵")
        return rhyme
    if isinstance(rhyme, str) and rhyme and group(rhyme[-1]):
        return group(rhyme[-1])
    raise UserError(f"rhyme={rhyme!r} 认不出；可写 True、一个汉字，或韵部：{' '.join(NAMES)}")


def line_group(line: str) -> str | None:
    """一行最后一个汉字的韵部；行末除标点外不是汉字时为 None。"""
    for char in reversed(line):
        if char.isalnum():
            return group(char)
    return None
