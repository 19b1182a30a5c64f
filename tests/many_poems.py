"""要多少首有多少首的诗，一行一条 JSON，量规模用：python -m tests.many_poems 100000 > 诗.jsonl

字从一张表里来，先拼成词，词再拼成行；短诗，每首题目加 4 到 12 行。同一个种子写出同样的诗，
少的是多的的开头。清洗时几乎全部留下，几乎没有近似的。
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from typing import Iterator

CHARS = (
    "一人在天上的不了地有我你他风雨云山水河海月日星光夜灯火花草树叶石沙雪冰霜雾烟尘土路桥门窗墙屋"
    "城村街巷田野麦稻米饭茶酒盐糖碗杯刀针线布衣鞋帽手脚眼耳口鼻心头发脸骨血泪汗梦醒睡走跑飞落升沉"
    "来去回看听说问答想念忘记写读唱哭笑爱恨怕痛冷热暖凉干湿轻重远近高低长短大小多少新旧老少生死春夏"
    "秋冬晨昏午晚年月时分秒今昨明早迟红黄蓝白黑绿灰紫金银铁木竹纸书信字句诗歌琴鼓钟铃声音静默空满深"
    "浅宽窄粗细软硬明暗清浊真假好坏美丑鸟鱼虫马牛羊狗猫鹰燕雁蝶蜂蚁蛇龙虎父母兄弟姐妹儿女孩童友邻客"
    "主王兵农工商医师船车轮帆桨锚港岸岛浪潮滩湖溪泉井池塘雷电虹霞阳阴影镜玻璃瓦砖梯楼塔寺庙坟碑旗帜"
    "东西南北中外前后左右里间边旁底顶尽头开关进出起坐立卧行停转动推拉举放抱握拾扔埋种收割煮烧洗晒缝补"
    "织染画刻折叠打破碎裂完整圆方直弯斜平陡滑涩甜苦酸辣咸香臭麻痒醉饿渴饱困倦累忙闲急慢快稳乱安宁荒凉"
)
_WORDS = 6000  # 词表里有多少个词
_JOINS = ("", "", "", "", "的", "了", "在", "和", "是", "着")
_ENDS = ("", "", "", "，", "，", "。", "？", "……")
_EACH = 40  # 一位作者有多少首


def poems(seed: int) -> Iterator[dict]:
    """一首接一首，没有尽头。"""
    rng = random.Random(seed)
    words = ["".join(rng.choices(CHARS, k=rng.choice((1, 2, 2, 2, 3)))) for _ in range(_WORDS)]
    usual = [*itertools.accumulate(1 / (place + 50) for place in range(_WORDS))]
    author = ""
    for number in itertools.count():
        if number % _EACH == 0:
            author = "".join(rng.choices(CHARS, k=3))
        count = rng.randint(4, 12)
        pieces = iter(rng.choices(words, cum_weights=usual, k=4 * count + 2))
        title = next(pieces) + next(pieces)
        lines = [_line(rng, pieces) for _ in range(count)]
        cut = rng.randrange(count)  # 有的分成两节
        para = ["\n".join(part) for part in (lines[:cut], lines[cut:]) if part]
        yield {"title": title, "para": para, "author": author}


def _line(rng: random.Random, pieces: Iterator[str]) -> str:
    line = next(pieces)
    for _ in range(rng.randint(1, 3)):
        line += rng.choice(_JOINS) + next(pieces)
    return line + rng.choice(_ENDS)


def main(count: int, seed: int) -> None:
    """写到标准输出。"""
    write = sys.stdout.buffer.write
    for poem in itertools.islice(poems(seed), count):
        write(json.dumps(poem, ensure_ascii=False).encode("utf-8") + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int((sys.argv[2:] or ["1"])[0]))
