"""措辞：怎样向模型开口。一种提示词是表 TABLE 里的一行；训练与 chat() 用同样的说法。"""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Any, Callable, Dict, NamedTuple

from poems import chat_format
from support.console import UserError

Facts = Dict[str, Any]  # 措辞里要填的内容；值是列表时任取一个


class Kind(NamedTuple):
    """一种提示词。"""

    name: str
    label: str  # 给人看的名字
    facts: Callable[[dict], Facts | None]  # 由诗得到要填的内容；这首诗用不上时为 None
    wordings: tuple[str, ...]  # 训练时的说法
    standard: bool = False  # 训练时一半用 compose 的标准说法
    demand: int = 0  # 同名的 chat() 控制项：要求越高数越大；0 = 不是控制项
    size: str = ""  # 标准说法里“写一首……的诗”中间的一项
    clause: str = ""  # 标准说法里跟在后面的一项
    poem: str = "诗"  # 标准说法里把诗叫作什么


# ── 从诗里读出来的事实 ────────────────────────────────────────────────


def verse_lines(text: str) -> list[str]:
    """正文里不空的行，去掉两端空白。"""
    return [line.strip() for line in text.split("\n") if line.strip()]


def count_chars(text: str) -> int:
    """字数：不算空白与换行。"""
    return len("".join(text.split()))


def round_length(count: int) -> int:
    """字数 → 人会说的整数：百字以内取整十，以上取整五十。"""
    step = 10 if count < 100 else 50
    return max(10, (count + step // 2) // step * step)


def is_chinese(char: str) -> bool:
    """是不是一个汉字。"""
    return "\u4e00" <= char <= "\u9fff" or "\u3400" <= char <= "\u4dbf" or char == "〇"


def line_heads(text: str) -> str | None:
    """各行第一个字连起来；只对 3 到 12 行、行首全是汉字的诗有意义，否则为 None。"""
    lines = verse_lines(text)
    if not 3 <= len(lines) <= 12:
        return None
    heads = "".join(line[0] for line in lines)
    return heads if all(map(is_chinese, heads)) else None


def opening(text: str) -> str | None:
    """可以拿来让人接着写的第一行；太短或太长时为 None。"""
    lines = verse_lines(text)
    return lines[0] if lines and 2 <= len(lines[0]) <= 30 else None


_IMAGE_TEXT = """
    月亮 太阳 星星 天空 大海 河流 月光 阳光 星空 春天 夏天 秋天 冬天 黄昏 黎明 清晨 夜晚 黑夜
    雪花 雨水 大雪 雷声 闪电 彩虹 云朵 大雾 露水 霜 雪 雨 风 云 雾 海 河 湖 溪 山 月 星 火
    草原 沙漠 森林 田野 麦田 稻田 山谷 悬崖 岛屿 沙滩 海浪 潮水 波浪 石头 泥土 尘土 沙子 岩石
    树 花 草 叶子 落叶 种子 果实 玫瑰 桃花 梅花 荷花 菊花 向日葵 蒲公英 竹子 柳树 梧桐 银杏 松树
    麦子 稻子 玉米 高粱 棉花 苹果 橘子 葡萄 石榴 鸟 鱼 狗 猫 羊 蛇 狼 鹰 蝴蝶 蜻蜓 蜜蜂
    蚂蚁 蜗牛 蝉 萤火虫 燕子 麻雀 乌鸦 鸽子 大雁 天鹅 老虎 狮子 骆驼 老鼠 蜘蛛 青蛙
    母亲 父亲 祖母 祖父 孩子 女儿 儿子 妻子 姐姐 弟弟 老人 少年 姑娘 诗人 农民 工人 士兵
    故乡 祖国 村庄 城市 小镇 北京 江南 长江 黄河 草地 广场 街道 小巷 车站 火车 地铁 飞机 轮船 船
    桥 窗 窗户 房子 屋顶 院子 墙 楼梯 阳台 厨房 医院 学校 教堂 寺庙 坟墓 监狱 花园 公园
    灯 路灯 蜡烛 镜子 钟表 钥匙 椅子 桌子 照片 衣服 鞋子 伞 碗 酒 茶 咖啡 面包 盐
    眼睛 头发 脸 嘴唇 眼泪 血 骨头 心脏 影子 梦 灵魂 声音 歌 琴 鼓 钟声 脚步 翅膀 羽毛
    爱情 思念 离别 孤独 死亡 生命 时间 童年 青春 回忆 命运 自由 战争 沉默 等待 远方 道路 旅途
    生日 节日 新年 中秋 清明 婚礼 葬礼 告别 归来 流浪 劳动 收获 饥饿 疾病 衰老 出生 睡眠 失眠
"""
IMAGES = tuple(_IMAGE_TEXT.split())
_EMPTY_CHARS = frozenset(
    "的了是在我你他她它们这那和与就也都不没有一个上下里中着过到得地把被让给对从向为以而又很再还"
    "要会能可以去来说什么怎样如像之其或者并且但只最更太吗呢吧啊呀哦哪谁几多少自己时候"
)


def theme_words(text: str, title: str = "", most: int = 3) -> list[str]:
    """诗里的意象，最突出的在前，至多 most 个；一个也没有时为空。

    常见的意象词按出现次数（题目里的加倍）与词长排；一个常见的都没有时，取反复出现的二字词。
    """
    there = [word for word in IMAGES if word in text]
    found = []
    for word in there:
        if not any(word in longer for longer in there if longer != word):  # 有“月亮”就不说“月”
            weight = (text.count(word) + 2 * title.count(word)) * len(word)
            found.append((-weight, text.index(word), word))
    if found:
        return [word for _, _, word in sorted(found)[:most]]
    pairs = Counter(
        text[place : place + 2]
        for place in range(len(text) - 1)
        if all(is_chinese(char) and char not in _EMPTY_CHARS for char in text[place : place + 2])
    )
    best = max(pairs, key=lambda pair: pairs[pair], default=None)
    return [best] if best is not None and pairs[best] > 1 else []


# ── 各种提示词 ────────────────────────────────────────────────────────

_NO_AUTHOR = frozenset(("佚名", "无名", "无名氏", "匿名", "未知", "不详"))


def _title(poem: dict) -> Facts | None:
    return {"title": poem["title"]} if poem["title"].strip() else None


def _author(poem: dict) -> Facts | None:
    author = poem["author"].strip()
    return {"author": author} if author and author not in _NO_AUTHOR else None


def _title_author(poem: dict) -> Facts | None:
    title, author = poem["title"].strip(), _author(poem)
    return {"title": title, **author} if title and author else None


def _first_line(poem: dict) -> Facts | None:
    line = opening(chat_format.body(poem))
    return {"first_line": line} if line else None


def _theme(poem: dict) -> Facts | None:
    words = theme_words(chat_format.body(poem), poem["title"])
    return {"theme": words} if words else None


def _plain(_: dict) -> Facts:
    return {}


def _lines(poem: dict) -> Facts | None:
    count = len(verse_lines(chat_format.body(poem)))
    return {"lines": count} if 2 <= count <= 60 else None


def _length(poem: dict) -> Facts | None:
    count = count_chars(chat_format.body(poem))
    return {"length": round_length(count)} if 8 <= count <= 2000 else None


def _acrostic(poem: dict) -> Facts | None:
    heads = line_heads(chat_format.body(poem))
    return {"acrostic": heads} if heads else None


TABLE = (  # 次序写进 dataset.bin，新的加在末尾
    Kind("title", "题目", _title, ("{title}",)),
    Kind(
        "title_author",
        "题目与作者",
        _title_author,
        ("以《{title}》为题，仿照{author}写一首诗", "用{author}的笔法写一首《{title}》"),
        standard=True,
    ),
    Kind(
        "author",
        "作者",
        _author,
        ("写一首{author}风格的诗", "请仿照{author}写一首诗", "像{author}那样写一首诗"),
        standard=True,
        clause="{author}的风格",
    ),
    Kind(
        "first_line",
        "首行",
        _first_line,
        (
            "用“{first_line}”开头写一首诗",
            "请接着写：{first_line}",
            "以“{first_line}”为第一行，写一首诗",
        ),
        standard=True,
        demand=3,
        clause="第一行是“{first_line}”",
    ),
    Kind(
        "theme",
        "意象",
        _theme,
        (
            "写一首关于{theme}的诗",
            "请写一首关于{theme}的诗",
            "写一首诗，主题是{theme}",
            "以{theme}为意象写一首诗",
            "写写{theme}",
        ),
    ),
    Kind(
        "plain",
        "随意",
        _plain,
        ("写一首诗", "请写一首诗", "给我写一首诗", "来一首诗", "随便写一首诗吧", "写首诗"),
    ),
    Kind(
        "lines",
        "行数",
        _lines,
        ("请写一首{lines}行的诗", "写一首诗，一共{lines}行", "写一首{lines}行诗"),
        standard=True,
        demand=2,
        size="{lines}行",
    ),
    Kind(
        "length",
        "字数",
        _length,
        ("请写一首{length}字左右的诗", "写一首大约{length}字的诗", "写一首诗，{length}字上下"),
        standard=True,
        demand=1,
        size="{length}字左右",
    ),
    Kind(
        "acrostic",
        "藏头",
        _acrostic,
        (
            "用“{acrostic}”写一首藏头诗",
            "以“{acrostic}”为藏头写一首诗",
            "写一首诗，每行第一个字连起来是“{acrostic}”",
        ),
        standard=True,
        demand=4,
        clause="藏头是“{acrostic}”",
        poem="藏头诗",
    ),
)
KINDS = tuple(kind.name for kind in TABLE)
KIND_NAMES = {kind.name: kind.label for kind in TABLE}
_BY_NAME = {kind.name: kind for kind in TABLE}

# ── 标准的说法 ────────────────────────────────────────────────────────


def compose(title: str | None = None, **wanted: Any) -> str:
    """几项要求合成一句话：标准的说法，训练和 chat() 的控制项都用它。

    wanted 的名字是有标准说法的种类：author、first_line、lines、length、acrostic。
    """
    asked = _asked(wanted)
    poem = next((kind.poem for kind in asked if kind.poem != "诗"), "诗")
    sizes = "、".join(_phrases([kind.size for kind in asked], wanted))
    ask = "写一首" + (f"{sizes}的{poem}" if sizes else poem)
    titled = [f"题目是《{title}》"] if title else []
    return "，".join([ask, *titled, *_phrases([kind.clause for kind in asked], wanted)])


def extend(ask: str, **wanted: Any) -> str:
    """把几项要求接在一句现成的“写一首……的诗”后面。"""
    asked = _asked(wanted)
    phrases = [kind.size for kind in asked] + [kind.clause for kind in asked]
    return "，".join([ask, *_phrases(phrases, wanted)])


def _asked(wanted: Facts) -> list[Kind]:
    """给了值的几种，按表里的次序。"""
    possible = [kind for kind in TABLE if kind.size or kind.clause]
    unknown = wanted.keys() - {kind.name for kind in possible}
    if unknown:
        raise TypeError(f"没有名为 {'、'.join(sorted(unknown))} 的要求")
    return [kind for kind in possible if wanted.get(kind.name) not in (None, "")]


def _phrases(templates: list[str], wanted: Facts) -> list[str]:
    return [template.format(**wanted) for template in templates if template]


# ── 给一首诗配提示词 ──────────────────────────────────────────────────


def make_prompt(name: str, poem: dict, rng: random.Random) -> str | None:
    """给这首诗配一句 name 类的提示词；这首诗用不上这种提示词时为 None。"""
    if name not in _BY_NAME:
        raise ValueError(f"没有名为 {name} 的提示词种类；可选：{' '.join(KINDS)}")
    kind = _BY_NAME[name]
    facts = kind.facts(poem)
    if facts is None:
        return None
    if kind.standard and rng.random() < 0.5:
        return _composed(kind, facts, poem, rng)
    for key, value in facts.items():
        if isinstance(value, int) and rng.random() < 0.3:
            facts[key] = chinese_number(value)
    wording = rng.choice(kind.wordings) if len(kind.wordings) > 1 else kind.wordings[0]
    for key, value in facts.items():
        if isinstance(value, list):
            facts[key] = rng.choice(value)
    return wording.format(**facts)


def _composed(kind: Kind, facts: Facts, poem: dict, rng: random.Random) -> str:
    """标准的说法；一部分连上题目，或接在一句“写一首关于……的诗”后面，和 chat() 的控制项一样。"""
    subject = rng.random()
    if not kind.demand or subject < 0.5:
        return compose(**facts)
    if subject < 0.6:
        ask = make_prompt("theme", poem, rng)
        if ask is not None and _is_ask(ask):
            return extend(ask, **facts)
    return compose(title=poem["title"].strip(), **facts)


def chinese_number(number: int) -> str:
    """0 到 9999 的整数 → 汉字：8 → 八，12 → 十二，150 → 一百五十。"""
    digits, units = "零一二三四五六七八九", ("", "十", "百", "千")
    text, places = "", str(number)
    for place, digit in enumerate(places):
        unit = units[len(places) - 1 - place]
        text += digits[int(digit)] + (unit if digit != "0" else "")
    text = re.sub("零+", "零", text)
    text = text.rstrip("零") or "零"
    return text[1:] if text.startswith("一十") else text


# ── 训练时选哪几种 ────────────────────────────────────────────────────


def parse_shares(text: str) -> dict[str, float]:
    """“title=30,author=6” → {"title": 30.0, "author": 6.0}；写错时抛出 UserError。"""
    shares, problems = {}, []
    for item in filter(None, (item.strip() for item in text.replace("，", ",").split(","))):
        kind, equals, value = (part.strip() for part in item.partition("="))
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if kind not in KINDS:
            problems.append(f"没有名为 {kind!r} 的提示词种类")
        elif not equals or not 0 <= share < float("inf"):
            problems.append(f"{item!r} 应写成 {kind}=非负的数")
        elif kind in shares:
            problems.append(f"{kind} 写了两次")
        else:
            shares[kind] = share
    if not problems and not any(shares.values()):
        problems.append("至少要有一种比例大于 0")
    if problems:
        raise UserError(
            f"PROMPT_SHARES={text!r} 有误：{'；'.join(problems)}\n可用的种类：{' '.join(KINDS)}\n"
            "请改 config.py，或用 --PROMPT_SHARES=title=30,author=6 这样的写法覆盖"
        )
    return shares


def choose_prompts(
    poem: dict, shares: dict[str, float], count: int, rng: random.Random
) -> list[tuple[str, str]]:
    """按比例给一首诗选 count 种不同的提示词 → [(kind, prompt)]，至少一种。

    每种入选的机会与比例成正比（等距抽样）；用不上的种类由其余的按比例补上。
    """
    weights = {kind: share for kind, share in shares.items() if share > 0}
    chosen: list[tuple[str, str]] = []
    for kind in _spread(weights, count, rng):
        del weights[kind]
        _offer(chosen, kind, poem, rng)
    while len(chosen) < count and weights:
        kind = rng.choices(list(weights), list(weights.values()))[0]
        del weights[kind]
        _offer(chosen, kind, poem, rng)
    return chosen or [("plain", rng.choice(_BY_NAME["plain"].wordings))]


def _offer(chosen: list[tuple[str, str]], kind: str, poem: dict, rng: random.Random) -> None:
    prompt = make_prompt(kind, poem, rng)
    if prompt is not None:
        chosen.append((kind, prompt))


def _spread(weights: dict[str, float], count: int, rng: random.Random) -> list[str]:
    """等距抽样：把各种比例首尾相接，每隔总长的 1/count 取一点，落在谁身上就选谁。"""
    kinds = list(weights)
    rng.shuffle(kinds)
    step = sum(weights.values()) / count
    point, end, chosen = rng.random() * step, 0.0, []
    for kind in kinds:
        end += weights[kind]
        if point < end:
            chosen.append(kind)
        while point < end:
            point += step
    return chosen


# ── chat() 的控制项 ───────────────────────────────────────────────────

_ASKS = re.compile(
    r"请?(帮我|给我|为我|替我|再)?(用.{1,20}|以.{1,20})?(写|作|来|讲)[一几两]?[首篇段些写]"
)


def request(question: str | None = None, **controls: Any) -> tuple[str, str]:
    """chat() 的问题与控制项 → (提示词, 种类)；措辞与训练时相同。

    只有问题时提示词就是问题本身。种类取要求最高的一项，全部种类见 request_kinds。
    """
    kind = request_kinds(question, **controls)[0]
    if question and kind == "title":
        return question, kind
    if controls.get("length") is not None:
        controls["length"] = round_length(controls["length"])
    if question and _is_ask(question):
        return extend(question.rstrip("。.！!"), **controls), kind
    return compose(title=question or None, **controls), kind


def _is_ask(question: str) -> bool:
    """问题是不是一句“写一首……的诗”，而不是题目。"""
    return _ASKS.match(question) is not None


def request_kinds(question: str | None = None, **controls: Any) -> list[str]:
    """这些控制项要求模型练过哪些种类的提示词，要求最高的在前。"""
    given = [kind for kind in _asked(controls) if controls[kind.name]]
    given.sort(key=lambda kind: -kind.demand)
    kinds = [kind.name for kind in given if kind.demand]
    if controls.get("author"):
        kinds.append("title_author" if question else "author")
    return kinds or ["title" if question else "plain"]
