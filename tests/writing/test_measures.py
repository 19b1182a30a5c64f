"""诗的指标：对照手算与逐首硬算。"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from writing import measures


def test_shape_by_hand():
    texts = ["春天\n春天\n\n花", "一二三四"]
    found = measures.shape(texts, texts)
    assert found["repeated_lines"].value == pytest.approx(1 / 4)
    assert found["distinct_1"].value == pytest.approx((3 / 5 + 1) / 2)
    assert found["distinct_2"].value == pytest.approx((3 / 4 + 1) / 2)
    assert found["lines"].value == 2 and found["line_chars"].value == pytest.approx(9 / 4)
    assert found["js_lines"].value == found["js_stanzas"].value == 0
    assert found["shared_4grams"].value == 0
    assert set(measures.shape([], texts).values()) == {None}


def test_stanzas():
    assert measures.stanzas("") == 0 and measures.stanzas("一\n二") == 1
    assert measures.stanzas("\n\n一\n\n\n二\n \n三\n") == 3


def test_shared_grams_against_brute_force():
    rng = random.Random(3)
    texts = ["".join(rng.choices("花雪月风", k=rng.randrange(4, 30))) for _ in range(12)]
    for text, share in zip(texts, measures.shared_grams(texts)):
        grams = {text[i : i + 4] for i in range(len(text) - 3)}
        others = [other for other in texts if other is not text]
        hits = sum(any(gram in other for other in others) for gram in grams)
        assert share == pytest.approx(hits / len(grams))
    assert measures.shared_grams(["一二三四", "一二三四", "短"]) == [1, 1]


def test_js_distance():
    same = np.array([3.0, 1.0, 0.0])
    assert measures.js_distance(same, 7 * same) == pytest.approx(0)
    assert measures.js_distance(np.array([1.0, 0]), np.array([0, 5.0])) == pytest.approx(1)
    # p = (1, 0)，q = (1/2, 1/2)，m = (3/4, 1/4)
    by_hand = (math.log2(4 / 3) + 0.5 * math.log2(2 / 3) + 0.5 * math.log2(2)) / 2
    found = measures.js_distance(np.array([4.0, 0]), np.array([2.0, 2.0]))
    assert found == pytest.approx(math.sqrt(by_hand))


def test_distance_is_of_all_numbers_together():
    assert measures.distance([[4], [8]], [[4, 8]]).value == pytest.approx(0)
    far = measures.distance([[2], [2, 2]], [[40]])
    assert far == (1, 1, 1)
    assert measures.distance([[100]], [[101]]).value == 0  # 同一类
    assert measures.distance([[]], [[3]]) is None


def test_ratio_interval():
    """区间对照一次次真的重抽；均值的区间约为 ±1.96 个标准误。"""
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, size=400)
    found = measures.ratio(values)
    error = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(found.value - error, abs=0.03)
    assert found.high == pytest.approx(found.value + error, abs=0.03)
    assert measures.ratio([1, 2], [2, 4]) == (0.5, 0.5, 0.5)
    assert measures.ratio(values) == found and measures.ratio([]) is None
    assert measures.ratio([1, 0], [1, 0]).value == 1


def test_title_ranks():
    titles, texts = list("春夏秋冬"), ["春来", "秋天", "秋风", "冬冬"]

    def score(asked, bodies):
        return [body.count(title) for title, body in zip(asked, bodies)]

    ranks = measures.title_ranks(titles, texts, score)
    assert ranks == [1, 3, 1, 1]  # 第二首：“秋”在前，三个平手
    mean = measures.mean_reciprocal(ranks)
    assert mean.value == pytest.approx((3 + 1 / 3) / 4)


def test_title_ranks_draw_other_titles():
    titles = [f"题{number % 40}" for number in range(60)]
    seen = []

    def score(asked, bodies):
        seen.extend(asked)
        return [0.0] * len(asked)

    ranks = measures.title_ranks(titles, titles, score, seed=1)
    assert ranks == [1 + 15 / 2] * 60
    for place in range(60):
        drawn = seen[16 * place : 16 * place + 16]
        assert drawn[0] == titles[place] and len(set(drawn)) == 16


def test_variety():
    assert measures.variety("山河\n星火，", 4) == 1.0
    assert measures.variety("山山山山山", 4) == 0.25
    assert measures.variety("一二三一二三", 4) == pytest.approx(3 / 4)  # 每四个字里三种
    assert measures.variety("一二三四五五五五", 4) == pytest.approx(
        (1 + 1 + 3 / 4 + 1 / 2 + 1 / 4) / 5
    )
    assert measures.variety("山河山", 4) == pytest.approx(2 / 3)  # 短的照实有的字数
    assert measures.variety("山", 4) == 0.5 and measures.variety("", 4) == 0.0
