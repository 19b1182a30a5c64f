"""wording.py：对话格式逐字对照手写的样子，长诗拆分不漏不重，提示词与诗相符。"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tokenizers import Tokenizer

from poems import wording
from support.console import UserError
from tests import tiny_tokenizer

POEM = {
    "title": "清早",
    "author": "双禾",
    "para": ["月亮落在河里\n天还没有亮", "卖豆浆的人推开了雾\n月亮跟着他走"],
}
LOOKALIKES = "<|im_end|>\n<|im_start|>user\n<|padding|>"


@pytest.fixture(scope="module")
def tok():
    texts = [
        wording.body(POEM),
        "user\nassistant\n写一首诗，题目是《清早》",
        "风吹过来。\n\n雨停了，",
    ]
    return tiny_tokenizer.train(texts * 3, 420)


def spell(tok, ids):
    """ids → 文字，特殊符号写出名字：不经过 wording.py 的对照。"""
    runs, text = [], []
    for token in ids:
        if token < 3:
            runs += [tok.decode(text), tiny_tokenizer.SPECIAL[token]]
            text = []
        else:
            text.append(token)
    return "".join([*runs, tok.decode(text)])


def trained_ids(documents):
    return [token for ids, mask in documents for token, m in zip(ids, mask) if m]


# ── 格式 ──────────────────────────────────────────────────────────────


def test_format_matches_the_contract_letter_by_letter(tok):
    [(ids, mask)] = wording.documents(tok, "清早", wording.body(POEM), 512)
    by_hand = (
        "<|im_start|>user\n清早\n<|im_end|>\n<|im_start|>assistant\n"
        "月亮落在河里\n天还没有亮\n\n卖豆浆的人推开了雾\n月亮跟着他走<|im_end|>"
    )
    assert spell(tok, ids) == by_hand
    # tokenizers 自己认特殊符号、按它们切开再编码，应得到同样的编号
    assert Tokenizer.from_str(tok.to_json()).encode(by_hand).ids == ids
    assert len(mask) == len(ids)


def test_only_body_and_last_end_are_trained(tok):
    text = wording.body(POEM)
    [(ids, mask)] = wording.documents(tok, "清早", text, 512)
    head = wording.render(tok, "清早")
    assert mask == [0] * len(head) + [1] * (len(ids) - len(head))
    assert trained_ids([(ids, mask)]) == [*tok.encode(text), tok.end_id]


def test_render_is_what_training_saw(tok):
    [(ids, _)] = wording.documents(tok, "写一首诗", "风", 512)
    head = wording.render(tok, "写一首诗")
    assert ids[: len(head)] == head
    assert spell(tok, head).endswith("<|im_start|>assistant\n")


def test_lookalikes_in_text_never_become_special(tok):
    [(ids, _)] = wording.documents(tok, LOOKALIKES, LOOKALIKES, 512)
    assert [token for token in ids if token < 3] == [1, 2, 1, 2]
    assert spell(tok, ids).count("<|padding|>") == 2


def test_a_poem_that_just_fits_is_one_document(tok):
    [(ids, _)] = wording.documents(tok, "清早", LINES, 1 << 20)
    assert len(wording.documents(tok, "清早", LINES, len(ids))) == 1
    assert len(wording.documents(tok, "清早", LINES, len(ids) - 1)) == 2


# ── 长诗 ──────────────────────────────────────────────────────────────

LINES = "\n".join(f"第{i}行写的是风吹过来又吹过去" for i in range(60))
GIANT = "没有换行的长长一行" * 80
STANZAS = "\n\n".join(["风\n雨\n雪"] * 50)


@pytest.mark.parametrize("text", [LINES, GIANT, STANZAS, "a" * 700, "😀" * 200])
@pytest.mark.parametrize("max_len", [64, 97, 200])
def test_long_poem_trains_every_token_exactly_once(tok, text, max_len):
    head = wording.render(tok, "清早")
    parts = wording.documents(tok, "清早", text, max_len)
    assert len(parts) > 1
    assert trained_ids(parts) == [*tok.encode(text), tok.end_id]
    for number, (ids, mask) in enumerate(parts):
        assert len(ids) == len(mask) <= max_len
        assert ids[: len(head)] == head
        assert (ids[-1] == tok.end_id) == (number == len(parts) - 1)
        assert sum(mask) > 0
        assert mask == sorted(mask)  # 先是不训练的，后是训练的


def test_later_parts_open_with_last_lines_of_the_part_before(tok):
    parts = wording.documents(tok, "清早", LINES, 200)
    head = len(wording.render(tok, "清早"))
    for (before, _), (ids, mask) in zip(parts, parts[1:]):
        context = ids[head : mask.index(1)]
        assert context and before[-len(context) :] == context
        text = tok.decode(context)
        assert text.startswith("第") and text.endswith("\n")  # 整行地重述，断在行尾


def test_giant_line_is_cut_between_characters(tok):
    for ids, mask in wording.documents(tok, "清早", "龘" * 300, 64):
        text = tok.decode([token for token, m in zip(ids, mask) if m and token > 2])
        assert set(text) == {"龘"}


def test_prompt_longer_than_context_is_cut(tok):
    title = "很长的题目" * 200
    text = wording.body(POEM)
    parts = wording.documents(tok, title, text, 120)
    assert all(len(ids) <= 120 for ids, _ in parts)
    assert trained_ids(parts) == [*tok.encode(text), tok.end_id]
    assert "<|im_start|>user\n很长的题目" in spell(tok, parts[0][0])
    assert len(wording.render(tok, title, 120)) <= 60
    assert wording.render(tok, "清早", 512) == wording.render(tok, "清早")


def test_hopelessly_short_context_is_explained(tok):
    with pytest.raises(UserError, match="MAX_SEQ_LEN"):
        wording.documents(tok, "清早", LINES, 12)


def test_odd_texts_do_not_crash(tok):
    for text in ("", "\n", "\x00", "\ud800坏", "👨‍👩‍👧", " " * 50):
        for ask in ("", "\n\n", "\ud800"):
            parts = wording.documents(tok, ask, text, 64)
            assert trained_ids(parts) == [*tok.encode(text), tok.end_id]


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
    text = wording.body(POEM)
    assert [len(wording.verse_lines(text)), wording.count_chars(text)] == [4, 26]
    assert all("4行" in text or "四行" in text for text in prompts("lines", POEM))
    assert all("30字" in text or "三十字" in text for text in prompts("length", POEM))


def test_theme_is_in_the_poem():
    assert wording.theme_words(wording.body(POEM))[0] == "月亮"
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
