"""dedup.py：规范形式、签名、近似对、分组、标题里的部分标记。"""

from __future__ import annotations

import random

import numpy as np
import pytest

from poems import dedup

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
    assert dedup.near_groups(dedup.signature([]), 0.8).tolist() == []
    assert dedup.near_groups(dedup.signature(["", ""]), 0.8).tolist() == [0, 1]


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
    pairs = np.arange(len(texts)).reshape(-1, 2)
    errors = dedup.likeness(dedup.signature(texts), pairs) - np.array(truths)
    assert abs(errors.mean()) < 0.02
    assert np.abs(errors).max() < 0.25  # 4 个标准误


# ── 近似对与分组 ──────────────────────────────────────────────────────


def test_near_pairs_finds_all_close_copies_and_no_strangers() -> None:
    rng = random.Random(4)
    texts = [random_text(rng, rng.randint(12, 200)) for _ in range(400)]
    copies = []
    for number in range(0, 400, 8):
        text = list(texts[number])
        text[len(text) // 2] = "囧"
        copies.append("".join(text) + "完了")
    pairs, likeness = dedup.near_pairs(dedup.signature(texts + copies), 0.25)
    expected = [[number, 400 + number // 8] for number in range(0, 400, 8)]
    assert pairs.tolist() == expected
    assert (likeness >= 0.25).all()


def test_many_copies_of_one_poem_fall_into_one_group() -> None:
    rng = random.Random(5)
    text = random_text(rng, 120)
    texts = [text[:number] + "囧" + text[number + 1 :] for number in range(100)]
    groups = dedup.near_groups(dedup.signature([*texts, random_text(rng, 120)]), 0.8)
    assert groups.tolist() == [0] * 100 + [100]


def test_connected_agrees_with_a_plain_union_find() -> None:
    rng = random.Random(6)
    pairs = np.array([[rng.randrange(300), rng.randrange(300)] for _ in range(220)])
    parent = list(range(300))

    def root(item: int) -> int:
        while parent[item] != item:
            item = parent[item]
        return item

    for first, second in pairs.tolist():
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    groups = dedup.connected(300, pairs)
    assert groups.tolist() == [root(item) for item in range(300)]
    assert dedup.connected(3, np.empty((0, 2), dtype=np.int64)).tolist() == [0, 1, 2]


def test_same_key_pairs_uses_keys_and_likeness() -> None:
    rng = random.Random(7)
    text = random_text(rng, 100)
    signatures = dedup.signature([text, random_text(rng, 100), text[:60], text[:60]])
    keys = np.array([5, 5, 5, 0], dtype=np.uint64)
    assert dedup.same_key_pairs(signatures, keys, 0.1).tolist() == [[0, 2]]


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


def test_split_groups_joins_parts_and_near_copies_only() -> None:
    rng = random.Random(8)
    body = random_text(rng, 80)
    poems = [
        ("秋歌之一", "甲", random_text(rng, 80)),  # 0
        ("秋歌之二", "甲", random_text(rng, 80)),  # 1 与 0 同组
        ("秋歌之三", "乙", random_text(rng, 80)),  # 2 别的作者
        ("无题", "甲", random_text(rng, 80)),  # 3
        ("无题", "甲", random_text(rng, 80)),  # 4 同名但没有部分标记：不同组
        ("长河", "丙", random_text(rng, 80)),  # 5
        ("长河（节选）", "丙", random_text(rng, 80)),  # 6 与 5 同组
        ("某", "丁", body),  # 7
        ("另", "戊", body[:-1] + "囧"),  # 8 与 7 近似
    ]
    titles, authors, bodies = zip(*poems)
    groups = dedup.split_groups(iter(titles), iter(authors), dedup.signature(bodies))
    assert groups.tolist() == [0, 0, 2, 3, 4, 5, 5, 7, 7]
