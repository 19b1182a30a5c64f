"""wording.py：提示词与诗相符，训练与 chat() 用同样的说法。"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from poems import chat_format, wording
from support.console import UserError

POEM = {
    "title": "清早",
    "author": "双禾",
    "para": ["月亮落在河里\n天还没有亮", "卖豆浆的人推开了雾\n月亮跟着他走"],
}


# ── 提示词 ────────────────────────────────────────────────────────────


def test_title_prompt_is_the_title_verbatim():
    assert wording.make_prompt("title", {**POEM, "title": " 清 早 "}, random.Random(0)) == " 清 早 "


def prompts(kind, poem, count=300):
    rng = random.Random(1)
    return Counter(wording.make_prompt(kind, poem, rng) for _ in range(count))


@pytest.mark.parametrize(
    "kind, wanted",
    [
        ("title_author", ("清早", "双禾")),
        ("author", ("双禾",)),
        ("first_line", ("月亮落在河里",)),
        ("plain", ("诗",)),
    ],
)
def test_prompts_carry_what_they_ask_for(kind, wanted):
    seen = prompts(kind, POEM)
    assert len(seen) >= 3
    assert all(word in text for text in seen for word in wanted)


def test_counts_come_from_the_body():
    text = chat_format.body(POEM)
    assert [len(wording.verse_lines(text)), wording.count_chars(text)] == [4, 26]
    assert all("4行" in text or "四行" in text for text in prompts("lines", POEM))
    assert all("30字" in text or "三十字" in text for text in prompts("length", POEM))


def test_theme_is_in_the_poem():
    assert wording.theme_words(chat_format.body(POEM))[0] == "月亮"
    assert any("月亮" in text for text in prompts("theme", POEM))
    for text in prompts("theme", POEM):
        assert any(word in text for word in ("月亮", "河", "雾"))
    assert wording.theme_words("嗯嗯 ok") == []


def test_acrostic_spells_the_line_heads():
    assert all("月天卖月" in text for text in prompts("acrostic", POEM))
    two_lines = {**POEM, "para": ["风来\n雨来"]}
    latin = {**POEM, "para": ["风来\nrain\n雨来"]}
    for poem in (two_lines, latin):
        assert wording.make_prompt("acrostic", poem, random.Random(0)) is None


@pytest.mark.parametrize(
    "kind, change",
    [
        ("title", {"title": " "}),
        ("author", {"author": ""}),
        ("title_author", {"author": "佚名"}),
        ("first_line", {"para": ["长" * 50]}),
        ("theme", {"para": ["ok"], "title": ""}),
        ("lines", {"para": ["只有一行"]}),
    ],
)
def test_kinds_that_do_not_apply_are_none(kind, change):
    assert wording.make_prompt(kind, {**POEM, **change}, random.Random(0)) is None


def test_braces_in_poems_are_plain_text():
    poem = {"title": "{title}", "author": "{0}", "para": ["{line}来了\n又走"]}
    for kind in wording.KINDS:
        for seed in range(20):
            wording.make_prompt(kind, poem, random.Random(seed))


@pytest.mark.parametrize(
    "number, text", [(8, "八"), (10, "十"), (12, "十二"), (105, "一百零五"), (350, "三百五十")]
)
def test_chinese_numbers(number, text):
    assert wording.chinese_number(number) == text


# ── 比例 ──────────────────────────────────────────────────────────────


def test_parse_shares():
    assert wording.parse_shares("title=30, author=0.5") == {"title": 30.0, "author": 0.5}
    for text in ("tilte=3", "title", "title=-1", "title=x", "title=0", "title=1,title=2", ""):
        with pytest.raises(UserError) as error:
            wording.parse_shares(text)
        assert all(kind in str(error.value) for kind in wording.KINDS)


def test_chosen_kinds_are_distinct_and_follow_the_shares():
    shares = {"title": 30.0, "author": 20.0, "theme": 20.0, "plain": 20.0, "lines": 10.0}
    rng = random.Random(3)
    counts = Counter()
    for _ in range(3000):
        chosen = [kind for kind, _ in wording.choose_prompts(POEM, shares, 2, rng)]
        assert len(set(chosen)) == len(chosen) == 2
        counts.update(chosen)
    for kind, share in shares.items():
        assert abs(counts[kind] / 6000 - share / 100) < 0.02


def test_kinds_that_do_not_apply_are_replaced():
    poem = {**POEM, "author": "", "para": ["长" * 50]}
    shares = {"author": 50.0, "acrostic": 49.0, "title": 1.0}
    assert wording.choose_prompts(poem, shares, 2, random.Random(0)) == [("title", "清早")]
    [(kind, _)] = wording.choose_prompts(poem, {"author": 1.0}, 2, random.Random(0))
    assert kind == "plain"


# ── chat() 的控制项 ───────────────────────────────────────────────────


@pytest.mark.parametrize(
    "given, text, kind",
    [
        ({"question": "春天"}, "春天", "title"),
        ({}, "写一首诗", "plain"),
        ({"author": "双禾"}, "写一首诗，双禾的风格", "author"),
        (
            {"question": "清早", "author": "双禾"},
            "写一首诗，题目是《清早》，双禾的风格",
            "title_author",
        ),
        ({"lines": 8}, "写一首8行的诗", "lines"),
        ({"question": "清早", "lines": 8}, "写一首8行的诗，题目是《清早》", "lines"),
        ({"length": 97}, "写一首100字左右的诗", "length"),
        ({"first_line": "风来了"}, "写一首诗，第一行是“风来了”", "first_line"),
        ({"acrostic": "春夏秋冬"}, "写一首藏头诗，藏头是“春夏秋冬”", "acrostic"),
        (
            {"question": "请写一首关于雪的诗。", "lines": 6, "author": "双禾"},
            "请写一首关于雪的诗，6行，双禾的风格",
            "lines",
        ),
        (
            {"question": "写诗的人", "lines": 6, "length": 60},
            "写一首6行、60字左右的诗，题目是《写诗的人》",
            "lines",
        ),
    ],
)
def test_request_wording(given, text, kind):
    assert wording.request(**given) == (text, kind)


def test_request_kinds_names_all_that_is_asked():
    assert wording.request_kinds("清早", author="双禾", lines=8) == ["lines", "title_author"]


@pytest.mark.parametrize(
    "kind, given",
    [
        ("title_author", {"question": "清早", "author": "双禾"}),
        ("author", {"author": "双禾"}),
        ("first_line", {"first_line": "月亮落在河里"}),
        ("lines", {"lines": 4}),
        ("lines", {"question": "清早", "lines": 4}),
        ("length", {"length": 30}),
        ("acrostic", {"acrostic": "月天卖月"}),
        ("acrostic", {"question": "清早", "acrostic": "月天卖月"}),
        ("lines", {"question": "写一首关于月亮的诗", "lines": 4}),
    ],
)
def test_requests_are_worded_as_trained(kind, given):
    assert wording.request(**given)[0] in prompts(kind, POEM, 1000)
