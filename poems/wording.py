"""对话格式与提示词：只有这里知道一首诗怎样写成 token，也只有这里知道怎样向模型开口。

一首诗写成
    <|im_start|>user\\n{提示词}\\n<|im_end|>\\n<|im_start|>assistant\\n{正文}<|im_end|>
特殊符号以编号放入，从不经过文字；正文和最后的 <|im_end|> 才是训练目标（mask=1）。
"""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import List, Tuple

from support.console import UserError

KINDS = (
    "title",
    "title_author",
    "author",
    "first_line",
    "theme",
    "plain",
    "lines",
    "length",
    "acrostic",
)
KIND_NAMES = {  # 给人看的名字
    "title": "题目",
    "title_author": "题目与作者",
    "author": "作者",
    "first_line": "首行",
    "theme": "意象",
    "plain": "随意",
    "lines": "行数",
    "length": "字数",
    "acrostic": "藏头",
}
MIN_BODY = 8  # 一篇文档至少给正文留出这么多 token
OVERLAP = 8  # 续篇重述前一篇末尾几行，约占正文空间的 1/OVERLAP，至多两倍

Document = Tuple[List[int], List[int]]  # (ids, mask)，两者等长

# ── 格式 ──────────────────────────────────────────────────────────────


def body(poem: dict) -> str:
    """诗的正文：各节之间空一行。"""
    return "\n\n".join(poem["para"]).strip()


def question_text(prompt: str) -> str:
    """提示词一段的文字，单独编码一次。"""
    return f"user\n{prompt}\n"


class ChatFormat:
    """把编码好的提示词与正文拼成文档；每个分词器建一个，重复使用。

    tok 需要 encode、token_bytes、vocab_size、start_id、end_id。
    """

    def __init__(self, tok):
        self.tok = tok
        self.start, self.end = tok.start_id, tok.end_id
        self._middle = [self.end, *tok.encode("\n"), self.start, *tok.encode("assistant\n")]
        self._pieces = {}  # token 编号 → (是否以换行结尾, 是否从一个字的开头开始)

    def prefix(self, question: list) -> list:
        """编码好的提示词 → 直到 assistant\\n 为止的 ids，回答从它后面开始。"""
        return [self.start, *question, *self._middle]

    def fit(self, prompt: str, max_len: int, room: int) -> list:
        """提示词 → prefix，尽量给正文留下 room 个 token：太长的提示词从末尾删字。

        连格式本身都放不下时抛出 UserError。
        """
        shortest = len(self.prefix(self.tok.encode(question_text(""))))
        if shortest + MIN_BODY > max_len:
            raise UserError(
                f"上下文太短：光是对话格式就要 {shortest} 个 token，全长只有 {max_len}\n"
                "请调大 MAX_SEQ_LEN 或分词器的 VOCAB_SIZE"
            )
        limit = max(max_len - room, shortest)
        prefix = self.prefix(self.tok.encode(question_text(prompt)))
        while len(prefix) > limit:
            keep = int(len(prompt) * limit / len(prefix))
            prompt = prompt[: min(keep, len(prompt) - 1)].rstrip()
            prefix = self.prefix(self.tok.encode(question_text(prompt)))
        return prefix

    def documents(self, prompt: str, question: list, answer: list, max_len: int) -> list:
        """编码好的提示词 question 与正文 answer → [(ids, mask)]，每篇不超过 max_len 个 token。

        放得下就是一篇；放不下就拆成几篇：每篇重复提示词，续篇先重述前一篇的末尾几行（mask=0），
        只有最后一篇以 <|im_end|> 结尾；正文的每个 token 恰好训练一次。
        """
        prefix = self.prefix(question)
        if len(prefix) + len(answer) + 1 > max_len:
            room = min(len(answer) + 1, max_len // 2)
            if len(prefix) + room > max_len:
                prefix = self.fit(prompt, max_len, room)
        spans = self._spans(answer, max_len - len(prefix))
        return [self._document(prefix, answer, *span) for span in spans]

    def _document(self, prefix, answer, context, first, last):
        closing = [self.end] if last == len(answer) else []
        ids = [*prefix, *answer[context:last], *closing]
        untrained = len(prefix) + first - context
        return ids, [0] * untrained + [1] * (len(ids) - untrained)

    def _spans(self, answer, capacity):
        """[(重述的起点, 训练的起点, 终点)]：每段连同 <|im_end|> 不超过 capacity。"""
        total, spans, context, first = len(answer), [], 0, 0
        while total + 1 - context > capacity:
            last = self._cut(answer, first, min(context + capacity, total - 1))
            spans.append((context, first, last))
            context = self._context(answer, first, last, capacity // OVERLAP)
            first = last
        return [*spans, (context, first, total)]

    def _cut(self, answer, first, limit):
        """(first, limit] 里最好的断点：靠后一半里最后一个行尾，否则一个字的边界。"""
        for cut in range(limit, first + (limit - first) // 2, -1):
            if self._piece(answer[cut - 1])[0]:
                return cut
        for cut in range(limit, max(first, limit - 4), -1):
            if self._piece(answer[cut])[1]:
                return cut
        return limit

    def _context(self, answer, first, last, most):
        """续篇从哪里开始重述：末尾 most 个 token 里第一个行首；一行比这长就重述这一行，
        长过两倍时从一个字的开头开始。都不早于 first。
        """
        earliest = max(first, last - most)
        before = range(earliest - 1, max(first, last - 2 * most) - 1, -1)
        for place in [*range(earliest, last), *before]:
            if place and self._piece(answer[place - 1])[0]:
                return place
        for place in range(earliest, last):
            if self._piece(answer[place])[1]:
                return place
        return last

    def _piece(self, token):
        if token not in self._pieces:
            data = self.tok.token_bytes(token)
            starts = not data or data[0] & 0xC0 != 0x80
            self._pieces[token] = (data.endswith(b"\n"), starts)
        return self._pieces[token]


def render(tok, prompt: str, max_len: int | None = None) -> list[int]:
    """提问的 ids，直到 assistant\\n 为止；给了 max_len 时，提示词至多占一半，过长的从末尾删字。"""
    chat = ChatFormat(tok)
    if max_len is not None:
        return chat.fit(prompt, max_len, max_len // 2)
    return chat.prefix(tok.encode(question_text(prompt)))


def documents(tok, prompt: str, body: str, max_len: int) -> list[Document]:
    """一首诗 → [(ids, mask)]；长诗拆成几篇，规则见 ChatFormat.documents。"""
    question, answer = tok.encode(question_text(prompt)), tok.encode(body)
    return ChatFormat(tok).documents(prompt, question, answer, max_len)


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


# ── 措辞 ──────────────────────────────────────────────────────────────

# compose() 给出每种要求的标准说法；这里是训练时混入的别的说法
_OTHER_WORDINGS: dict[str, tuple[str, ...]] = {
    "title_author": (
        "以《{title}》为题，仿照{author}写一首诗",
        "用{author}的笔法写一首《{title}》",
    ),
    "author": ("写一首{author}风格的诗", "请仿照{author}写一首诗", "像{author}那样写一首诗"),
    "first_line": (
        "用“{line}”开头写一首诗",
        "请接着写：{line}",
        "以“{line}”为第一行，写一首诗",
    ),
    "theme": (
        "写一首关于{word}的诗",
        "请写一首关于{word}的诗",
        "写一首诗，主题是{word}",
        "以{word}为意象写一首诗",
        "写写{word}",
    ),
    "plain": ("写一首诗", "请写一首诗", "给我写一首诗", "来一首诗", "随便写一首诗吧", "写首诗"),
    "lines": ("请写一首{lines}行的诗", "写一首诗，一共{lines}行", "写一首{lines}行诗"),
    "length": (
        "请写一首{length}字左右的诗",
        "写一首大约{length}字的诗",
        "写一首诗，{length}字上下",
    ),
    "acrostic": (
        "用“{heads}”写一首藏头诗",
        "以“{heads}”为藏头写一首诗",
        "写一首诗，每行第一个字连起来是“{heads}”",
    ),
}


def compose(
    title: str | None = None,
    author: str | None = None,
    lines: int | None = None,
    length: int | None = None,
    line: str | None = None,
    heads: str | None = None,
) -> str:
    """几项要求合成一句话：标准的说法，训练和 chat() 的控制项都用它。"""
    poem = "藏头诗" if heads else "诗"
    sizes = "、".join(_sizes(lines, length))
    ask = "写一首" + (f"{sizes}的{poem}" if sizes else poem)
    titled = [f"题目是《{title}》"] if title else []
    return "，".join([ask, *titled, *_clauses(author, line, heads)])


def extend(
    ask: str,
    author: str | None = None,
    lines: int | None = None,
    length: int | None = None,
    line: str | None = None,
    heads: str | None = None,
) -> str:
    """把几项要求接在一句现成的“写一首……的诗”后面。"""
    return "，".join([ask, *_sizes(lines, length), *_clauses(author, line, heads)])


def _sizes(lines, length):
    sizes = [f"{lines}行"] if lines is not None else []
    return [*sizes, f"{length}字左右"] if length is not None else sizes


def _clauses(author, line, heads):
    clauses = [f"{author}的风格"] if author else []
    clauses += [f"第一行是“{line}”"] if line else []
    return [*clauses, f"藏头是“{heads}”"] if heads else clauses


_NO_AUTHOR = frozenset(("佚名", "无名", "无名氏", "匿名", "未知", "不详"))


def _facts(kind, poem):
    """一种提示词要填的内容（compose 的参数名 → 值）；这首诗用不上这种提示词时为 None。"""
    title, author = poem["title"].strip(), poem["author"].strip()
    author = "" if author in _NO_AUTHOR else author
    if kind == "title_author":
        return {"title": title, "author": author} if title and author else None
    if kind == "author":
        return {"author": author} if author else None
    text = body(poem)
    if kind == "lines":
        count = len(verse_lines(text))
        return {"lines": count} if 2 <= count <= 60 else None
    if kind == "length":
        count = count_chars(text)
        return {"length": round_length(count)} if 8 <= count <= 2000 else None
    if kind == "first_line":
        line = opening(text)
        return {"line": line} if line else None
    heads = line_heads(text)
    return {"heads": heads} if heads else None


def make_prompt(kind: str, poem: dict, rng: random.Random) -> str | None:
    """给这首诗配一句 kind 类的提示词；这首诗用不上这种提示词时为 None。"""
    if kind not in KINDS:
        raise ValueError(f"没有名为 {kind} 的提示词种类；可选：{' '.join(KINDS)}")
    if kind == "title":
        return poem["title"] if poem["title"].strip() else None
    if kind == "plain":
        return rng.choice(_OTHER_WORDINGS["plain"])
    if kind == "theme":
        return _theme_prompt(poem, rng)
    facts = _facts(kind, poem)
    if facts is None:
        return None
    if rng.random() < 0.5:
        return _composed(kind, facts, poem, rng)
    for count in ("lines", "length"):
        if count in facts and rng.random() < 0.3:
            facts[count] = chinese_number(facts[count])
    return rng.choice(_OTHER_WORDINGS[kind]).format(**facts)


def _theme_prompt(poem, rng):
    words = theme_words(body(poem), poem["title"])
    return rng.choice(_OTHER_WORDINGS["theme"]).format(word=rng.choice(words)) if words else None


def _composed(kind, facts, poem, rng):
    """标准的说法；一部分连上题目，或接在一句“写一首关于……的诗”后面，和 chat() 的控制项一样。"""
    subject = rng.random()
    if kind in ("title_author", "author") or subject < 0.5:
        return compose(**facts)
    if subject < 0.6:
        ask = _theme_prompt(poem, rng)
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


def choose_prompts(poem: dict, shares: dict, count: int, rng: random.Random) -> list:
    """按比例给一首诗选 count 种不同的提示词 → [(kind, prompt)]，至少一种。

    每种入选的机会与比例成正比（等距抽样）；用不上的种类由其余的按比例补上。
    """
    weights = {kind: share for kind, share in shares.items() if share > 0}
    chosen = []
    for kind in _spread(weights, count, rng):
        del weights[kind]
        _offer(chosen, kind, poem, rng)
    while len(chosen) < count and weights:
        kind = rng.choices(list(weights), list(weights.values()))[0]
        del weights[kind]
        _offer(chosen, kind, poem, rng)
    return chosen or [("plain", rng.choice(_OTHER_WORDINGS["plain"]))]


def _offer(chosen, kind, poem, rng):
    prompt = make_prompt(kind, poem, rng)
    if prompt is not None:
        chosen.append((kind, prompt))


def _spread(weights, count, rng):
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


def request(
    question: str | None = None,
    author: str | None = None,
    lines: int | None = None,
    length: int | None = None,
    first_line: str | None = None,
    acrostic: str | None = None,
) -> tuple[str, str]:
    """chat() 的问题与控制项 → (提示词, 种类)；措辞与训练时相同。

    只有问题时提示词就是问题本身。种类取要求最高的一项，全部种类见 request_kinds。
    """
    kind = request_kinds(question, author, lines, length, first_line, acrostic)[0]
    if kind == "title":
        return question, kind
    if length is not None:
        length = round_length(length)
    wanted = {"author": author, "lines": lines, "length": length}
    wanted.update(line=first_line, heads=acrostic)
    if question and _is_ask(question):
        return extend(question.rstrip("。.！!"), **wanted), kind
    return compose(title=question or None, **wanted), kind


def _is_ask(question):
    """问题是不是一句“写一首……的诗”，而不是题目。"""
    return _ASKS.match(question) is not None


def request_kinds(
    question: str | None = None,
    author: str | None = None,
    lines: int | None = None,
    length: int | None = None,
    first_line: str | None = None,
    acrostic: str | None = None,
) -> list[str]:
    """这些控制项要求模型练过哪些种类的提示词，要求最高的在前。"""
    kinds = [
        kind
        for kind, given in (
            ("acrostic", acrostic),
            ("first_line", first_line),
            ("lines", lines),
            ("length", length),
        )
        if given
    ]
    if author:
        kinds.append("title_author" if question else "author")
    return kinds or ["title" if question else "plain"]
