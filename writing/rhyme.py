"""韵部与平仄：按普通话，韵母分成十三辙（另立儿化一部）；读音来自 pypinyin（可选安装）。"""

from __future__ import annotations

import functools
import unicodedata

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
LEVEL, OBLIQUE = "平", "仄"
_TONE_OF = {"\u0304": LEVEL, "\u0301": LEVEL, "\u030c": OBLIQUE, "\u0300": OBLIQUE}  # 调号


def is_hanzi(char: str) -> bool:
    """是不是一个汉字（有读音可押）。"""
    return "\u4e00" <= char <= "\u9fff" or "\u3400" <= char <= "\u4dbf"


@functools.lru_cache(maxsize=None)
def group(char: str) -> str | None:
    """一个汉字的韵部（取最常见的读音）；不是汉字或没有读音时为 None。

    没有安装 pypinyin 时抛出 UserError。
    """
    bare = "".join(mark for mark in _syllable(char) if mark not in _TONE_OF)
    return _GROUP_OF.get(_final(unicodedata.normalize("NFC", bare))) if bare else None


@functools.lru_cache(maxsize=None)
def tone(char: str) -> str | None:
    """一个汉字的平仄（取最常见的读音；一二声平，三四声仄）；轻声与没有读音的为 None。"""
    return next((_TONE_OF[mark] for mark in _syllable(char) if mark in _TONE_OF), None)


def _syllable(char: str) -> str:
    """一个汉字最常见的读音，调号拆成单独的字符；不是汉字或没有读音时为空。"""
    if not is_hanzi(char):
        return ""
    try:
        from pypinyin import constants
    except ImportError:
        raise UserError("押韵与平仄需要拼音库。\n请运行：pip install pypinyin") from None
    first, _, _ = constants.PINYIN_DICT.get(ord(char), "").partition(",")
    return unicodedata.normalize("NFD", first)


@functools.lru_cache(maxsize=None)
def _final(syllable: str) -> str:
    """音节的韵母；音节只有四百来个，慢的换算各做一次。"""
    from pypinyin import Style
    from pypinyin.style import convert

    return convert(syllable, Style.FINALS, strict=True, default="")


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
