"""裁判：概率加起来是 1；对照照公式逐条写的 Kneser–Ney；没见过的更费比特。"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from writing import fluency, originality


def train(texts):
    units = [np.append(originality.encode(text), np.uint16(0)) for text in texts]
    return fluency.Judge(np.concatenate(units))


def bits(judge, text):
    return judge.char_bits(originality.encode(text))


def poems(count, letters="花雪月", longest=12):
    rng = random.Random(5)
    return ["".join(rng.choices(letters, k=rng.randrange(1, longest))) for _ in range(count)]


class Plain:
    """照公式写的同一个模型：字典，一个字一个字地算。"""

    def __init__(self, texts):
        padded = ["^" * (fluency.ORDER - 1) + text + "^" for text in texts]
        self.counts = {fluency.ORDER: Counter()}
        for text in padded:
            for end in range(fluency.ORDER, len(text) + 1):
                self.counts[fluency.ORDER][text[end - fluency.ORDER : end]] += 1
        for order in range(fluency.ORDER - 1, 0, -1):
            self.counts[order] = Counter(gram[1:] for gram in self.counts[order + 1])
        self.size = len(set("".join(texts))) + 2  # 结尾与生字

    def chance(self, context, char):
        found = 1 / self.size
        for order in range(1, fluency.ORDER + 1):
            counts = self.counts[order]
            head = context[len(context) - order + 1 :] if order > 1 else ""
            follow = {gram: n for gram, n in counts.items() if gram[:-1] == head}
            if not follow:
                break
            times = Counter(counts.values())
            discount = times[1] / (times[1] + 2 * times[2]) if times[1] else 0.5
            hits = max(follow.get(head + char, 0) - discount, 0)
            found = (hits + discount * len(follow) * found) / sum(follow.values())
        return found


def test_against_the_formula():
    texts = poems(60)
    judge, plain = train(texts), Plain(texts)
    for text in [*texts[:5], "月月月月月月月", "雪"]:
        padded = "^" * (fluency.ORDER - 1) + text + "^"
        expected = [
            -np.log2(plain.chance(padded[:place], padded[place]))
            for place in range(fluency.ORDER - 1, len(padded))
        ]
        assert bits(judge, text) == pytest.approx(expected)


def test_by_hand():
    """一首“花花”：一字表 {花: 前面有过两种字, 结尾: 一种}，折扣 1/(1+2·1)。"""
    judge = train(["花花"])
    first = judge.levels[0]
    assert list(np.diff(first.sums)) == [1, 2] and first.discount == pytest.approx(1 / 3)
    found = 2 ** -bits(judge, "月")[0]  # 诗的开头只见过“花”，每级都让出全部折扣
    shorter = (1 / 3) * 2 / 3 * (1 / 3)  # 一字：两种字让出折扣，均分给三种（结尾、生字、花）
    for level in judge.levels[1:]:
        shorter *= level.discount
    assert found == pytest.approx(shorter / judge.rare)


@pytest.mark.parametrize("context", ["", "花", "花雪月花雪月", "没见过"])
def test_chances_sum_to_one(context):
    judge = train(poems(40))
    known = [2 ** -bits(judge, context + char)[len(context)] for char in "花雪月"]
    end = 2 ** -bits(judge, context)[-1]
    unknown = 2 ** -bits(judge, context + "龘")[len(context)]
    assert sum(known) + end + judge.rare * unknown == pytest.approx(1)


def test_rare_chars_share_one_place(monkeypatch):
    monkeypatch.setattr(fluency, "BITS", 2)  # 只装得下两个字
    judge = train(["花花花雪雪月", "风花雪"])
    assert judge.size == 4 and judge.rare == 3  # 月、风，和没见过的
    chances = [2 ** -bits(judge, char)[0] for char in "花雪月风龘"]
    assert sum(chances) + 2 ** -bits(judge, "")[-1] == pytest.approx(1)


def test_human_lines_cost_less_than_gibberish():
    judge = train(["床前明月光\n疑是地上霜", "举头望明月\n低头思故乡"] * 3)
    assert bits(judge, "床前明月光")[:-1].mean() < bits(judge, "光月明前床")[:-1].mean()
