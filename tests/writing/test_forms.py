"""格子：每行恰好几个汉字，平仄、押韵、藏头一起保证；合不上的当场说出理由。"""

from __future__ import annotations

import pytest

import config
import infere
from support.console import UserError
from tests import tiny_model
from writing import forms, rhyme
from writing.poet import Poet


@pytest.fixture(scope="module")
def made():
    tok = tiny_model.tokenizer()
    return Poet(tiny_model.model(tok.vocab_size, max_seq_len=320), tok)


@pytest.fixture
def poet(made, monkeypatch):
    monkeypatch.setattr(Poet, "load", lambda *_: made)
    monkeypatch.setattr(config, "MAX_NEW_TOKENS", 250)
    return made


def write(**given):
    """写一首，返回各行；边写边给的与它相同。"""
    given = {"temperature": 1.0, "top_k": 0, **given}
    text = infere.chat("春天", **given)
    assert text == "".join(infere.chat_stream("春天", **given))
    return text.split("\n")


def is_grid(lines, count, chars):
    return len(lines) == count and all(
        len(line) == chars and all(map(rhyme.is_hanzi, line)) for line in lines
    )


def obeys(line, pattern):
    return all(want in ("中", rhyme.tone(char)) for want, char in zip(pattern, line))


# ── 每行字数 ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("chars", [2, 5, 7, 11])
def test_exactly_so_many_characters(poet, chars):
    for seed in range(4):
        assert is_grid(write(line_chars=chars, lines=4, seed=seed), 4, chars)


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("limit", [7, 23, 60])
def test_free_number_of_lines_never_breaks_a_line(poet, temperature, limit):
    for seed in range(4):
        given = {"temperature": temperature, "max_new_tokens": limit}
        lines = write(line_chars=5, seed=seed, **given)
        assert lines and is_grid(lines, len(lines), 5)


def test_characters_outside_the_vocabulary_are_spelled(poet):
    """藏头的字要一个字节一个字节拼：不会有半个字，也不会走进死路。"""
    heads = "鹤燚龘㐂"
    assert not any(poet.vocabulary.spelling({head.encode("utf-8")}) for head in heads)
    for seed in range(4):
        lines = write(acrostic=heads, line_chars=3, seed=seed)
        assert is_grid(lines, 4, 3) and "".join(line[0] for line in lines) == heads


def test_a_tokenizer_of_bytes_alone(monkeypatch):
    """没有一个整字的词表：每个字都拼得完整。"""
    from tests import tiny_tokenizer

    tok = tiny_tokenizer.train(["abc"], 259)
    made = Poet(tiny_model.model(tok.vocab_size, max_seq_len=320), tok)
    monkeypatch.setattr(Poet, "load", lambda *_: made)
    for seed in range(2):
        lines = write(line_chars=4, lines=3, seed=seed, max_new_tokens=100)
        assert is_grid(lines, 3, 4)


def test_other_options_do_not_break_the_grid(poet):
    for given in ({"no_repeat_ngram": 1}, {"min_new_tokens": 200}, {"n": 3}, {"context": "slide"}):
        found = infere.chat("春天", line_chars=4, lines=3, seed=1, **given)
        for text in found if isinstance(found, list) else [found]:
            assert is_grid(text.split("\n"), 3, 4)


# ── 体裁与平仄 ────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", forms.NAMES)
def test_forms_rhyme(poet, form):
    pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    count, chars = (4 if form.endswith("绝句") else 8), (5 if form[0] == "五" else 7)
    for seed in range(3):
        lines = write(form=form, seed=seed)
        assert is_grid(lines, count, chars)
        assert len({rhyme.group(line[-1]) for line in lines[1::2]} - {None}) == 1


@pytest.mark.parametrize("tones", [True, "平起", "平起入韵", "仄起", "仄起入韵"])
@pytest.mark.parametrize("form", forms.NAMES)
def test_tones_and_rhyme(poet, form, tones):
    pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    for seed in range(2):
        lines = write(form=form, tones=tones, rhyme="光", seed=seed)
        found = [name for name in forms.TONES if fits(lines, form, name)]
        assert found if tones is True else tones in found


def fits(lines, form, tones):
    """平仄、粘对与韵脚都合这一种。"""
    patterns = forms.patterns(form, tones)
    rhymed = [line[-1] for line, pattern in zip(lines, patterns) if pattern[-1] == "平"]
    return (
        is_grid(lines, len(patterns), len(patterns[0]))
        and all(map(obeys, lines, patterns))
        and {rhyme.group(end) for end in rhymed} == {"江阳"}
    )


def test_the_table_of_patterns():
    """律句的对与粘：一联里第二字平仄相反，两联之间相同；平声收尾的恰好是韵脚。"""
    assert forms.patterns("五言绝句", "仄起") == [
        "中仄平平仄",
        "平平仄仄平",
        "中平平仄仄",
        "中仄仄平平",
    ]
    assert forms.patterns("七言绝句", "平起入韵")[0] == "中平中仄仄平平"
    for form in forms.NAMES:
        for tones in forms.TONES:
            found = forms.patterns(form, tones)
            seconds, ends = [line[1] for line in found], [line[-1] for line in found]
            assert seconds[0] == tones[0]
            assert all(a != b for a, b in zip(seconds[::2], seconds[1::2]))
            assert seconds[1:-1:2] == seconds[2::2]
            assert ends == ["平" if tones.endswith("入韵") else "仄", *"平仄" * 8][: len(found)]


def test_acrostic_rhyme_and_line_chars_together(poet):
    pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    for seed in range(3):
        lines = write(acrostic="春夏秋冬", line_chars=6, rhyme="江阳", seed=seed)
        assert is_grid(lines, 4, 6) and "".join(line[0] for line in lines) == "春夏秋冬"
        assert {rhyme.group(line[-1]) for line in lines} == {"江阳"}


def test_first_line_sets_the_rhyme_and_the_pattern(poet):
    pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    for seed in range(3):
        lines = write(form="五言绝句", tones=True, first_line="白日依山尽", seed=seed)
        assert lines[0] == "白日依山尽" and is_grid(lines, 4, 5)
        lines = write(line_chars=5, lines=3, rhyme=True, first_line="它飞过海洋", seed=seed)
        assert [rhyme.group(line[-1]) for line in lines] == ["江阳"] * 3
    assert write(line_chars=5, lines=1, first_line="它飞过海洋") == ["它飞过海洋"]


def test_the_prompt_says_how_many_lines(poet):
    pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    asked = [poet.request("春天", **given).prompt for given in ({"form": "五言律诗"}, {"lines": 8})]
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"form": "五言绝句", "lines": 8}, "4 行"),
        ({"form": "五言绝句", "line_chars": 7}, "5 个字"),
        ({"form": "五言律诗", "acrostic": "春夏秋冬"}, "8 行"),
        ({"form": "五言绝句", "length": 20}, "length"),
        ({"line_chars": 5, "length": 20}, "length"),
        ({"tones": True}, "form"),
        ({"line_chars": 5, "first_line": "床前明月光，"}, "不带标点"),
        ({"line_chars": 5, "first_line": "床前明月"}, "5 个汉字"),
        ({"line_chars": 5, "acrostic": "a春"}, "只能是汉字"),
        ({"line_chars": 5, "lines": 3, "first_line": "床前看白雪", "rhyme": "光"}, "不押"),
        ({"form": "五言绝句", "tones": "平起", "first_line": "白日依山尽"}, "应当是平声"),
        ({"form": "五言绝句", "tones": True, "first_line": "一一一一一"}, "平仄合不上"),
        ({"form": "五言绝句", "tones": "仄起", "acrostic": "春雪秋冬"}, "藏头第 2 行“雪”"),
        ({"line_chars": 7, "lines": 30, "max_new_tokens": 50}, "max_new_tokens"),
        ({"form": "三言", "lines": 3}, "五言绝句"),
        ({"line_chars": 1}, "≥ 2"),
    ],
)
def test_what_cannot_be_combined_is_refused_at_once(poet, given, words):
    pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    with pytest.raises(UserError, match=words):
        infere.chat("春天", **given)


def test_ordinary_requests_do_not_look_at_the_grid(poet, monkeypatch):
    monkeypatch.setattr(forms, "fitting", None)
    assert infere.chat("春天", lines=2, max_new_tokens=30, seed=1)


def test_the_readings_are_pypinyins():
    pinyin = pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    for char in "床前明月光疑是地上霜的了吗儿知诗日绿女学穷雄翁":
        tone = pinyin.pinyin(char, style=pinyin.Style.TONE3, neutral_tone_with_five=True)[0][0]
        assert rhyme.tone(char) == {"1": "平", "2": "平", "3": "仄", "4": "仄"}.get(tone[-1])
    assert rhyme.tone("a") is None and rhyme.tone("的") is None


def test_tokens_that_fit_by_hand(poet):
    """与逐个检查每个 token 的慢写法相同。"""
    vocabulary = poet.vocabulary
    for size in (1, 2, 3):
        slow = []
        for token, data in enumerate(vocabulary.bytes()):
            text = data.decode("utf-8", "replace")
            if text and len(text) <= size and all(map(rhyme.is_hanzi, text)):
                slow.append(token)
        assert forms.fitting(vocabulary, [forms.Place()] * size, b"", "") == slow
