"""盲评的卷子：诗都在，名字不露，答案对得上，同样的种子同样的卷子。"""

from __future__ import annotations

import json

from tests import tiny_model
from writing import pairs
from writing.poet import Poet

TITLES = [f"题{number}" for number in range(20)]
OLD = ("readme", [f"旧诗{number}。" for number in range(20)])
NEW = ("auto", [f"新诗{number}。" for number in range(20)])


def test_sheet_hides_and_key_tells():
    text, key = pairs.sheet(TITLES, OLD, NEW, seed=4)
    assert "readme" not in text and "auto" not in text
    assert len(key) == 20 and pairs.sheet(TITLES, OLD, NEW, seed=4) == (text, key)
    for part in text.split("════ 第 ")[1:]:
        number, rest = part.split(" 对：", 1)
        title = rest.split(" ", 1)[0]
        for side, name in key[number].items():
            poem = dict((OLD, NEW))[name][TITLES.index(title)]
            assert f"【{side}】\n{poem}" in part
    assert {tuple(sides.values()) for sides in key.values()} == {
        ("auto", "readme"),
        ("readme", "auto"),
    }


def test_write(tmp_path):
    tok = tiny_model.tokenizer()
    poet = Poet(tiny_model.model(tok.vocab_size), tok)
    ways = {"readme": {"temperature": 0.7}, "auto": {"temperature": 1.0}}
    ways = {name: {**way, "max_new_tokens": 12} for name, way in ways.items()}
    paths = tmp_path / "pairs.txt", tmp_path / "pairs_key.json"
    assert pairs.write(poet, ["春天", "太长" * 200, "雪"], ways, 5, paths) == 2
    text, key = paths[0].read_text(encoding="utf-8"), json.loads(paths[1].read_bytes())
    assert set(key) == {"1", "2"} and "第 2 对" in text and "太长" not in text
    request = poet.request("雪", **ways["auto"], seed=7)  # 种子按题目的次序
    assert poet.write_all([request])[0].text in text
