"""写诗的选项：每一项只在这张表里说一次。

chat()、对话的命令、接口、网页、config.py 的范围与评测都读它；新的抽样选项或控制项只要在这里添
一行，再写出怎样计算（抽样在 writing/sample.py，控制项在 writing/controls.py）。产品的默认值在
config.py；config.py 没有对应的常量时，默认就是“不起作用”。
"""

from __future__ import annotations

import difflib
import numbers
from dataclasses import dataclass, field, make_dataclass
from typing import Callable, Collection

from support.console import UserError

MAX_LINES = 60
MAX_CHARS = 2000

# 在哪一步起作用
PICK = "挑候选"  # 由 sample.candidates 计算
REPEAT = "防重复"
EXTENT = "长短与种子"
CONTROL = "控制"  # 由 controls 里的一个类计算，或写进提示词
SEVERAL = "几首"  # 写完之后的事


@dataclass(frozen=True)
class Option:
    """一个选项；name 是 chat() 的参数名，也是接口与网页里的名字。"""

    name: str
    kind: type  # float | int | str | bool
    label: str  # 中文名，也是对话命令：/温度 0.9
    note: str
    stage: str
    neutral: object = None  # 不起作用的值
    low: int = 0
    high: int = 0  # 文字是接口里最多多少字
    open_low: bool = False  # 下限本身不允许
    choices: tuple = ()
    switch: str = ""  # 也可以写 True（“是”）时，True 的意思
    setting: str = ""  # config.py 里哪个常量是它的默认值
    instead: tuple = ()  # 人给了它，默认里的这些就不起作用：两样防重复不叠在一起
    prompt: str = ""  # 写进提示词；模型要练过这一类提示词（wording.KINDS）才听得懂
    aliases: tuple = ()  # 接口里的别名
    api: tuple = ()  # 接口里的 (下限, 上限)，与上面不同时才写
    slider: tuple = ()  # 网页上拉杆的 (左, 右, 一格)
    common: bool = False  # 网页上直接看得到，不在“更多”里
    blank: str = "默认"  # 网页上空着时的提示
    brief: str = ""  # 网页上的概要，{} 是值


TABLE = (
    Option(
        "temperature", float, "温度", "越高越奔放，0 = 每次都一样", PICK, 1.0, 0, 10,
        setting="TEMPERATURE", api=(0, 2), slider=(0, 1.5, 0.05), common=True,
    ),
    Option(
        "top_k", int, "前k", "只从最可能的 k 个里选，0 = 不限", PICK, 0, 0, 1 << 24,
        setting="TOP_K", api=(0, 1 << 20),
    ),
    Option(
        "top_p", float, "前p", "只从累计概率 p 以内选，1 = 不限", PICK, 1.0, 0, 1, open_low=True,
        setting="TOP_P", api=(0, 1), slider=(0.05, 1, 0.01),
    ),
    Option(
        "min_p", float, "最小p", "不选比最大概率低太多的，0 = 不限", PICK, 0.0, 0, 1,
        setting="MIN_P", slider=(0, 0.5, 0.01),
    ),
    Option(
        "repetition_penalty", float, "重复惩罚", "1 = 不惩罚", REPEAT, 1.0, 0.1, 10,
        setting="REPETITION_PENALTY", slider=(1, 2, 0.05), aliases=("repeat_penalty", "rep_pen"),
        instead=("presence_penalty", "frequency_penalty"),
    ),
    Option(
        "presence_penalty", float, "出现惩罚", "诗里写过的字词减去这么多，负的是鼓励", REPEAT,
        0.0, -2, 2, setting="PRESENCE_PENALTY", slider=(-2, 2, 0.1),
    ),
    Option(
        "frequency_penalty", float, "频率惩罚", "诗里每写过一次减去这么多", REPEAT,
        0.0, -2, 2, slider=(-2, 2, 0.1),
    ),
    Option(
        "no_repeat_ngram", int, "不重复", "连着这么多个 token 不许出现第二次，0 = 不管", REPEAT,
        0, 0, 1 << 16, setting="NO_REPEAT_NGRAM", aliases=("no_repeat_ngram_size",),
    ),
    Option(
        "steady_marks", bool, "稳标点", "是 = 标点、换行与收尾照模型本来的概率，别的只管字", PICK,
        False,
    ),
    Option(
        "penalize_marks", bool, "罚标点", "是 = 三种惩罚也算标点与换行", REPEAT, False,
    ),
    Option(
        "seed", int, "种子", "同一个种子写同一首诗", EXTENT, None, 0, (1 << 63) - 1,
        api=(-(1 << 63), (1 << 64) - 1), common=True, blank="每次不同",
    ),
    Option(
        "max_new_tokens", int, "长度", "最多写多少 token", EXTENT, 1 << 20, 1, 1 << 20,
        setting="MAX_NEW_TOKENS", api=(1, 1 << 31),
        aliases=("max_tokens", "max_completion_tokens", "n_predict", "num_predict"),
    ),
    Option(
        "min_new_tokens", int, "最短", "至少写多少 token", EXTENT, 0, 0, 1 << 20,
        aliases=("min_tokens",),
    ),
    Option(
        "context", str, "写满", "写满上下文时：stop 停下，slide 丢掉最早的部分继续", EXTENT, "stop",
        choices=("stop", "slide"), setting="CONTEXT",
    ),
    Option(
        "author", str, "作者", "仿照谁的风格", CONTROL, high=40,
        prompt="author", common=True, blank="不限", brief="仿{}",
    ),
    Option(
        "lines", int, "行数", "写几行", CONTROL, None, 1, MAX_LINES,
        prompt="lines", common=True, blank="不限", brief="{} 行",
    ),
    Option(
        "length", int, "字数", "大约多少字", CONTROL, None, 4, MAX_CHARS,
        prompt="length", common=True, blank="不限", brief="约 {} 字",
    ),
    Option(
        "first_line", str, "首行", "第一行", CONTROL, high=200,
        prompt="first_line", common=True, blank="由你起头", brief="有首句",
    ),
    Option(
        "acrostic", str, "藏头", "每行的第一个字", CONTROL, high=MAX_LINES,
        prompt="acrostic", common=True, blank="如：春夏秋冬", brief="藏头「{}」",
    ),
    Option(
        "rhyme", str, "押韵", "一个字、韵部名，或 是", CONTROL, high=8,
        switch="随第一行的韵", common=True, blank="不押韵", brief="押{}韵",
    ),
    Option(
        "form", str, "体裁", "几行、每行几个字、隔行押韵", CONTROL,
        choices=("五言绝句", "七言绝句", "五言律诗", "七言律诗"),
        common=True, blank="不限", brief="{}",
    ),
    Option(
        "line_chars", int, "每行字数", "每行恰好几个汉字，不写标点", CONTROL, None, 2, 30,
        blank="不限", brief="每行 {} 字",
    ),
    Option(
        "tones", str, "平仄", "与体裁同用：平起、仄起，首句入韵或不入韵，或 是", CONTROL,
        choices=("平起", "平起入韵", "仄起", "仄起入韵"),
        switch="挑合适的一种", blank="不管", brief="{}",
    ),
    Option("n", int, "几首", "一次写几首，最好的在前", SEVERAL, 1, 1, 64, api=(1, 8)),
    Option(
        "check_copy", bool, "查抄", "是 = 写完查一查和训练诗像不像", SEVERAL, False,
    ),
)  # fmt: skip
BY_NAME = {option.name: option for option in TABLE}
CONTROLS = tuple(option for option in TABLE if option.stage == CONTROL)
SAMPLING = tuple(option for option in TABLE if option.stage in (PICK, REPEAT, EXTENT))
SET = tuple(option for option in SAMPLING if option.setting)  # config.py 里有默认值的
PICKED = tuple(
    option.name for option in SAMPLING if option.stage == PICK and option.kind is not bool
)
PROMPTED = tuple(option.name for option in CONTROLS if option.prompt)

Options = make_dataclass(
    "Options",
    [(option.name, option.kind, field(default=option.neutral)) for option in SAMPLING],
    frozen=True,
)
Options.__doc__ = "一首诗的抽样选项；没有给的不起作用。"


STYLES = (("沉静", 0.8), ("平常", 1), ("恣意", 1.2))  # 网页的笔意：默认的温度乘多少

# ── 默认与给的 ────────────────────────────────────────────────────────


# SAMPLER=auto 的值：量出来最好的一套，只看过几十万 token 的与练到头的模型都量过
AUTO = {
    "temperature": 1.0,
    "top_k": 0,
    "min_p": 0.05,
    "repetition_penalty": 1.0,
    "presence_penalty": 1.0,
    "frequency_penalty": 0.8,
    "steady_marks": True,
}
# 导出给别的程序的：它们不会稳住标点，这一套在那里写得最好
PORTABLE = {"temperature": 1.0, "top_k": 0, "top_p": 0.95, "repetition_penalty": 1.1}


def sampling(values: dict, own: Collection[str], portable: bool = False) -> dict:
    """config.py 的 values → 抽样选项，选项名 → 值；own：其中哪些常量是人给的，比 auto 的优先。"""
    chosen = {option.name: values[option.setting] for option in SET}
    if values["SAMPLER"] == "readme":
        return chosen
    given = {option.name: chosen[option.name] for option in SET if option.setting in own}
    return merge({**chosen, **(PORTABLE if portable else AUTO)}, given)


def merge(usual: dict, given: dict) -> dict:
    """默认的 usual 里换上人给的 given；值为 None 是没有给。"""
    given = {name: value for name, value in given.items() if value is not None}
    dropped = {other for name in given for other in BY_NAME[name].instead}
    neutral = {name: BY_NAME[name].neutral for name in dropped & set(usual)}
    return {**usual, **neutral, **given}


# ── 检查 ──────────────────────────────────────────────────────────────


def check_names(given: dict) -> None:
    """有不认识的名字时抛出 UserError，说出最接近的。"""
    known = [option.name for option in (*SAMPLING, *CONTROLS)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise UserError(f"没有名为 {name} 的选项；最接近的是 {near}。可用：{' '.join(known)}")


def check(name: str, value: object) -> object:
    """选项的值合规矩就返回（数成为 int 或 float，文字去掉两端空白），否则抛出 UserError。"""
    option = BY_NAME[name]
    if option.switch and (value is True or not value):
        return value or None
    if option.choices:
        if value not in option.choices:
            raise UserError(f"{name}={value!r} 应当是 {' 或 '.join(option.choices)}")
        return value
    if option.kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{name}={value!r} 应当是 True 或 False")
        return value
    return check_text(option.label, value) if option.kind is str else _check_number(option, value)


def _check_number(option: Option, value: object) -> float:
    whole = option.kind is int
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{option.name}={value!r} 应当是{'整数' if whole else '数'}")
    if whole and not (isinstance(value, numbers.Integral) or float(value).is_integer()):
        raise UserError(f"{option.name}={value!r} 应当是整数")
    above = value > option.low if option.open_low else value >= option.low
    if not (above and value <= option.high):  # NaN 也在这里被挡住
        shown = value if abs(value) < 1 << 64 or isinstance(value, float) else "那么大的数"
        bracket = ">" if option.open_low else "≥"
        limits = f"应当 {bracket} {option.low} 且 ≤ {option.high}"
        raise UserError(f"{option.name}={shown} 超出范围：{limits}")
    return option.kind(value)


def check_text(label: str, text: object) -> str:
    """问题、首行之类的文字：必须是字符串，不含控制字符与落单的代理字符。"""
    if not isinstance(text, str):
        raise UserError(f"{label}应当是文字，收到的是 {type(text).__name__}")
    for char in text:
        if (char < " " and char not in "\t\n\r") or char == "\x7f":
            raise UserError(f"{label}里有控制字符 U+{ord(char):04X}，请去掉再试")
        if "\ud800" <= char <= "\udfff":
            raise UserError(f"{label}里有落单的代理字符 U+{ord(char):04X}，请去掉再试")
    return text.strip()


def check_poem(text: object) -> str:
    """一首写好的诗：文字，换行一律是 \\n。模型写出的控制字符也收下。"""
    if not isinstance(text, str):
        raise UserError(f"诗应当是文字，收到的是 {type(text).__name__}")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UserError("诗里有落单的代理字符，请去掉再试")
    return text.replace("\r\n", "\n")


def bounds(option: Option) -> tuple:
    """接口里的 (下限, 上限)。"""
    low, high = option.api or (option.low, option.high)
    return option.kind(low), option.kind(high)


# ── 给人看 ────────────────────────────────────────────────────────────


def documented(function: Callable) -> Callable:
    """把全部选项写进函数的说明。"""
    rows = [
        f"    {option.name}: {option.label}；{option.note}" for option in (*SAMPLING, *CONTROLS)
    ]
    function.__doc__ = f"{function.__doc__.rstrip()}\n\n    选项：\n" + "\n".join(rows) + "\n    "
    return function
