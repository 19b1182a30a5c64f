"""改这一行：只换一行、同一个种子同一行、控制照旧、次序怎样定、错在哪里说得清。"""

from __future__ import annotations

import pytest

from support.console import UserError
from tests import tiny_model
from writing import forms, likelihood, rewrite, rhyme
from writing.poet import Poet

POEM = "  春天来了\n花开在山坡上，\n\n夏天的雨落在河边\n秋天的风吹过麦田\n"


@pytest.fixture(scope="module")
def poet():
    tok = tiny_model.tokenizer()
    return Poet(tiny_model.model(tok.vocab_size), tok)


def lines(text):
    return [line.strip() for line in text.split("\n") if line.strip()]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_only_that_line_changes(poet, number):
    found = rewrite.rewrite(poet, "四季", POEM, number, n=3, seed=7, min_p=0.03)
    place = rewrite.find(POEM, number)
    assert found.startswith(place.before) and found.endswith(place.after)
    new = found[len(place.before) : len(found) - len(place.after)]
    assert new.strip() == new != "" and "\n" not in new and new not in lines(POEM)
    assert found == rewrite.rewrite(poet, "四季", POEM, number, n=3, seed=7, min_p=0.03)


def test_seeds_differ_and_a_poem_needs_no_title(poet):
    found = {rewrite.rewrite(poet, "", POEM, 3, n=2, seed=seed) for seed in (1, 10, 20)}
    assert len(found) > 1


def test_controls_are_kept(poet):
    poem = "春花落\n夏雨来\n秋风起\n冬雪飞"
    given = {"acrostic": "春夏秋冬", "line_chars": 3, "seed": 4}
    found = lines(rewrite.rewrite(poet, "四季", poem, 3, n=2, **given))
    assert found[2][0] == "秋" and len(found[2]) == 3
    assert [*found[:2], found[3]] == ["春花落", "夏雨来", "冬雪飞"]
    free = lines(rewrite.rewrite(poet, None, poem, 2, n=2, acrostic="春夏秋冬", seed=4))
    assert free[1][0] == "夏"


def test_form_of_another_length_is_refused(poet):
    pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    with pytest.raises(UserError, match="五言律诗是 8 行"):
        rewrite.rewrite(poet, "四季", "春花落\n夏雨来\n秋风起\n冬雪飞", 2, form="五言律诗")


@pytest.mark.parametrize("number", [1, 2, 4])
def test_forms_keep_their_rhyme_and_tones(poet, number):
    pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    given = {"form": "五言绝句", "tones": "仄起入韵", "seed": 4}
    written = poet.write_all([poet.request("秋思", **given)])[0].text
    found = lines(rewrite.rewrite(poet, "秋思", written, number, n=2, **{**given, "seed": 9}))
    assert [line for k, line in enumerate(found, 1) if k != number] == [
        line for k, line in enumerate(lines(written), 1) if k != number
    ]
    assert len({rhyme.group(found[k][-1]) for k in (0, 1, 3)}) == 1
    pattern = forms.patterns("五言绝句", "仄起入韵")[number - 1]
    for want, char in zip(pattern, found[number - 1]):
        assert want == "中" or rhyme.tone(char) == want


def test_controls_follow_the_poem():
    place = rewrite.find("春花\n夏雨\n秋风", 2)
    assert rewrite._controls({"length": 40, "lines": 9}, place) == {"lines": 3}
    kept = rewrite._controls({"acrostic": "甲乙", "first_line": "春花"}, place)
    assert kept == {"lines": 3, "acrostic": "春夏秋", "first_line": "春花"}
    assert rewrite._controls({"rhyme": "江阳"}, place)["rhyme"] == "江阳"
    pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    assert rewrite._controls({"rhyme": True}, place)["rhyme"] == rhyme.group("花")


def test_first_line_may_be_rewritten_though_it_was_given(poet):
    found = rewrite.rewrite(poet, "四季", POEM, 1, n=2, seed=3, first_line="春天来了")
    assert lines(found)[0] != "春天来了"


def test_the_likelier_following_lines_win_and_known_lines_come_last(poet, monkeypatch):
    place = rewrite.find("甲\n乙\n丙\n丁", 2)
    monkeypatch.setattr(rewrite, "_fit", lambda _poet, _request, _place, draft: len(draft))
    drafts = ["乙", "丙", "短", "长一些"]
    ranked = sorted(drafts, key=lambda draft: rewrite._rank(poet, None, place, draft))
    assert ranked == ["乙", "丙", "短", "长一些"]


def test_fit_is_how_likely_the_following_lines_are(poet):
    """对照：完整的前向里后面各行的平均；最后一行是结束符的。"""
    tok, draft = poet.tok, "雪压着屋顶"
    for number, before, after in ((2, "花开\n", "\n风吹"), (3, "花开\n雨落\n", "")):
        place = rewrite.find("花开\n雨落\n风吹", number)
        request = rewrite._request(poet, "四季", place, {})
        ids = [*tok.encode(before + draft + after), *([] if after else [tok.end_id])]
        own = len(tok.encode(before + draft + ("\n" if after else "")))
        logs = likelihood.log_probs(poet, request.prompt, ids)
        fit = rewrite._fit(poet, request, place, draft)
        assert fit == pytest.approx(float(logs[own:].mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("poem", "number", "words"),
    [
        (POEM, 0, "没有第 0 行：这首诗有 4 行"),
        (POEM, 5, "没有第 5 行"),
        (POEM, True, "没有第 True 行"),
        (POEM, "2", "没有第 2 行"),
        (" \n ", 1, "空的"),
        (3, 1, "应当是文字"),
        ("\ud800", 1, "代理字符"),
    ],
)
def test_wrong_lines_are_explained(poet, poem, number, words):
    with pytest.raises(UserError, match=words):
        rewrite.rewrite(poet, "四季", poem, number)


def test_too_far_down_for_the_context(poet):
    with pytest.raises(UserError, match="上下文"):
        rewrite.rewrite(poet, "四季", "春天来了\n" * 60, 60)
