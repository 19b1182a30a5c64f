"""dedup.py：规范形式、签名、标题里的部分标记。"""

from __future__ import annotations

import random

import numpy as np
import pytest

from poems import dedup, near

CHARS = [chr(code) for code in range(0x4E00, 0x4E00 + 800)]


def random_text(rng: random.Random, length: int) -> str:
    return "".join(rng.choice(CHARS) for _ in range(length))


def jaccard(first: str, second: str) -> float:
    left, right = set(dedup.shingles(first)), set(dedup.shingles(second))
    return len(left & right) / len(left | right)


# ── 规范形式、片段 ────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("春天，来了！", "春天 来了"),
        ("ＡＢＣ１２３", "abc123"),
        ("春　天\n来\t了", "春天来了"),
        ("“春天”——来了……", "「春天」来了"),
    ],
)
def test_normal_form_ignores_width_case_and_punctuation(first: str, second: str) -> None:
    assert dedup.normal_form(first) == dedup.normal_form(second)
    assert dedup.digest(dedup.normal_form(first)) == dedup.digest(dedup.normal_form(second))


def test_normal_form_keeps_words_apart() -> None:
    assert dedup.normal_form("春天来了") != dedup.normal_form("春天走了")
    assert dedup.normal_form("，。！") == ""


def test_overlap_of_excerpt_is_one_and_counts_repeats() -> None:
    rng = random.Random(1)
    whole = random_text(rng, 200)
    assert dedup.overlap(dedup.shingles(whole), dedup.shingles(whole[40:90])) == 1.0
    assert dedup.overlap(dedup.shingles("啊" * 50), dedup.shingles("啊啊啊" + whole)) < 0.05
    assert dedup.overlap(dedup.shingles(""), dedup.shingles(whole)) == 0.0


# ── 签名 ──────────────────────────────────────────────────────────────


def test_signature_does_not_depend_on_batching() -> None:
    rng = random.Random(2)
    texts = [random_text(rng, rng.randint(0, 60)) for _ in range(300)] + [
        "",
        "一",
        "一二",
        "😀😀😀",
    ]
    together = dedup.signature(texts)
    assert together.shape == (len(texts), dedup.HASHES)
    assert together.dtype == np.uint16
    for number in (0, 17, 299, 300, 301, 302, 303):
        assert np.array_equal(dedup.signature([texts[number]])[0], together[number])


def test_empty_texts() -> None:
    assert dedup.signature([]).shape == (0, dedup.HASHES)
    assert (dedup.signature([""]) == 0xFFFF).all()


def test_signature_estimates_jaccard() -> None:
    rng = random.Random(3)
    texts, truths = [], []
    for changes in (0, 2, 5, 10, 20, 40, 80):
        for _ in range(10):
            text = random_text(rng, 150)
            other = list(text)
            for place in rng.sample(range(150), changes):
                other[place] = rng.choice(CHARS)
            texts += [text, "".join(other)]
            truths.append(jaccard(text, "".join(other)))
    signatures = dedup.signature(texts)
    errors = near.likeness_of(signatures[::2], signatures[1::2]) - np.array(truths)
    assert abs(errors.mean()) < 0.02
    assert np.abs(errors).max() < 0.25  # 4 个标准误


# ── 部分标记 ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("title", "base"),
    [
        ("秋歌之四", "秋歌"),
        ("十四行：之一", "十四行"),
        ("夜歌·其二", "夜歌"),
        ("歌（二十七）", "歌"),
        ("秘密花园(3)", "秘密花园"),
        ("春天［三］", "春天"),
        ("圣堂武士之歌：下", "圣堂武士之歌"),
        ("春天（上）", "春天"),
        ("太阳_节选", "太阳"),
        ("春天（节选）", "春天"),
        ("影子之歌_长诗节选", "影子之歌"),
        ("黑陶出土：组诗选一", "黑陶出土"),
        ("大象第12章", "大象"),
        ("没有R第214首", "没有R"),
        ("繁星：一三六", "繁星"),
        ("短章：7", "短章"),
        ("新闻104", "新闻"),
        ("无眠Ⅱ", "无眠"),
        ("春天 II", "春天"),
        ("河流 part III", "河流"),
        ("春天 三", "春天"),
        ("青楼之三：四道指痕", "青楼"),
        ("免于心碎（一）——给潘漠子", "免于心碎"),
        ("给爱曼达之九（上）", "给爱曼达"),
        ("纪念册：别怕", "纪念册"),
        ("组诗：春天", "春天"),
    ],
)
def test_base_title_strips_part_marks(title: str, base: str) -> None:
    assert dedup.base_title(title) == base


@pytest.mark.parametrize(
    "title",
    [
        *(
            "无题",
            "在路上",
            "晚上",
            "其中",
            "挑选",
            "秋之十行",
            "第一首诗",
            "第二章",
            "之一",
            "(一)",
        ),
        *("1998", "9.22", "36.5°C", "二〇一九", "1941:基辅之春", "DV", "一只蚂蚁", ""),
    ],
)
def test_base_title_leaves_other_titles_alone(title: str) -> None:
    assert dedup.base_title(title) == title
