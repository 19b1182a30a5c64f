"""写诗的选项：一张表，config、chat()、对话、接口、网页都照着它；坏值一律说得清。"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import config
import infere
from poems import options
from support.console import UserError
from web import chat_api


def test_config_gives_every_default_in_range():
    given = config.sampling("readme")
    assert {option.name for option in options.SAMPLING if option.setting} == set(given)
    for name, value in [*given.items(), *config.sampling().items()]:
        assert options.check(name, value) == value


def test_merge():
    """人给的一项一项地换；给了重复惩罚，默认里的出现惩罚就不起作用。"""
    usual = {"temperature": 1.0, "repetition_penalty": 1.0, "presence_penalty": 1.0}
    assert options.merge(usual, {"temperature": 0.5, "seed": None}) == {**usual, "temperature": 0.5}
    found = options.merge(usual, {"repetition_penalty": 1.3})
    assert (found["repetition_penalty"], found["presence_penalty"]) == (1.3, 0.0)
    both = {"repetition_penalty": 1.3, "presence_penalty": 0.2}
    assert options.merge(usual, both) == {**usual, **both}


def test_the_table_is_offered_everywhere():
    labels = [option.label for option in options.TABLE]
    assert len(set(labels)) == len(labels) and list(infere.COMMANDS) == labels
    shown = {row["name"] for row in chat_api.page_options()}
    for option in (*options.SAMPLING, *options.CONTROLS):
        assert option.name in shown and option.name in infere.chat.__doc__
        assert any("\u4e00" <= char <= "\u9fff" for char in option.note)


@pytest.mark.parametrize("option", [*options.SAMPLING, *options.CONTROLS], ids=lambda o: o.name)
def test_the_api_takes_every_option(option):
    value = {float: 0.5, int: 5, str: "雨", bool: True}[option.kind]
    value = option.choices[-1] if option.choices else value
    body = {"messages": [{"role": "user", "content": "春"}], option.name: value}
    assert chat_api.parse(json.dumps(body).encode()).options == {option.name: value}


def test_page_rows_are_plain_json():
    rows = json.loads(json.dumps(chat_api.page_options(), allow_nan=False))
    by_name = {row["name"]: row for row in rows}
    assert by_name["temperature"]["slider"] == [0, 1.5, 0.05]
    assert by_name["seed"]["high"] <= 2**53 and by_name["seed"]["low"] == 0
    assert "江阳" in by_name["rhyme"]["choices"] and by_name["rhyme"]["switch"]
    assert by_name["context"]["choices"] == ["stop", "slide"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seed", np.int64(3), 3),
        ("top_k", np.uint8(5), 5),
        ("top_k", 5.0, 5),
        ("n", np.int32(2), 2),
        ("lines", np.float32(4), 4),
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", 1, 1.0),
        ("author", " 海子 ", "海子"),
        ("rhyme", True, True),
        ("rhyme", "", None),
        ("context", "slide", "slide"),
        ("penalize_marks", True, True),
    ],
)
def test_good_values(name, value, expected):
    found = options.check(name, value)
    assert found == expected and type(found) in (int, float, str, bool, type(None))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, bad) for name in ("seed", "top_k", "lines") for bad in (math.nan, math.inf)),
        ("seed", np.float64("-inf")),
        ("top_k", np.float32("nan")),
        ("top_k", 10**400),
        ("temperature", 10**400),
        ("temperature", math.inf),
        ("temperature", "热"),
        ("seed", True),
        ("seed", 1.5),
        ("n", None),
        ("top_p", 0),
        ("context", ["stop"]),
        ("penalize_marks", 1),
        ("author", 3),
        ("acrostic", "春\ud800"),
        ("first_line", "春\x1b"),
        ("rhyme", 7),
    ],
)
def test_bad_values(name, value):
    with pytest.raises(UserError) as raised:
        options.check(name, value)
    label = options.BY_NAME[name].label
    assert name in str(raised.value) or label in str(raised.value)


def test_a_number_too_long_to_print():
    for name in ("top_k", "temperature"):
        with pytest.raises(UserError, match="超出范围"):
            options.check(name, 10**5000)


def test_unknown_name_is_told_the_nearest():
    with pytest.raises(UserError, match="最接近的是 top_k"):
        options.check_names({"topk": 3})
    with pytest.raises(UserError, match="最接近的是 acrostic"):
        infere.chat("春", acrostics="春")


def test_nothing_given_does_nothing():
    chosen = options.Options()
    assert (chosen.temperature, chosen.top_k, chosen.top_p, chosen.min_p) == (1, 0, 1, 0)
    assert (chosen.repetition_penalty, chosen.no_repeat_ngram, chosen.min_new_tokens) == (1, 0, 0)
    assert (chosen.presence_penalty, chosen.frequency_penalty) == (0, 0)
