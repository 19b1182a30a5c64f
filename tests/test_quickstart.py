"""quickstart.py --POEMS：让一个练过的模型学自己的诗，前后并排；说错了话都有一条消息。"""

from __future__ import annotations

import json

import pytest

import checkpoint
import quickstart
from support.console import UserError
from tests import tiny_model

LINES = ("春风吹过旧的屋檐", "你把灯留在窗口", "夜里有人唱着歌", "远山慢慢地白了")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """自己的诗、练过的模型，产物不写在项目里。"""
    folder = tmp_path / "我的诗"
    folder.mkdir()
    for number in range(12):
        lines = [
            f"第{'一二三四五六七八九十百千'[number]}夜",
            *LINES[number % 4 :],
            *LINES[: number % 4],
        ]
        (folder / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    base = tmp_path / "base.bin"
    tiny_model.save(base)
    monkeypatch.setattr(quickstart, "MINE", tmp_path / "quickstart_mine")
    return folder, base


def test_the_walk_ends_with_both_poems(mine, capfd):
    poems, base = mine
    before = base.read_bytes()
    quickstart.learn_mine(poems, base)
    out = capfd.readouterr().out
    assert base.read_bytes() == before
    summary = next(line for line in out.splitlines() if line.startswith('{"checkpoint"'))
    columns = json.loads(summary)["columns"]
    assert [column["checkpoint"].endswith("best_model.bin") for column in columns] == [False, True]
    assert columns[1]["bits_per_char"] < columns[0]["bits_per_char"]
    assert "── 原来的模型 ──" in out and "── 学过你的诗 ──" in out
    assert "旧诗：" in out and "训练以前" in out  # 忘了多少
    first = checkpoint.load(quickstart.MINE / "best_model.bin")["weights"]

    quickstart.learn_mine(poems, base)  # 什么都没变：不再练
    assert "已经完成" in capfd.readouterr().out
    again = checkpoint.load(quickstart.MINE / "best_model.bin")["weights"]
    assert all((again[name] == first[name]).all() for name in first)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--POEMS=没有的文件夹"], "没有找到 --POEMS=没有的文件夹"),
        (["--FROM=a.bin"], "不认识"),
        (["--POEM=x"], "不认识 --POEM"),
    ],
)
def test_mistakes_are_explained(arguments, said):
    with pytest.raises(UserError, match=said):
        quickstart.given_poems(arguments)


def test_a_missing_model_is_explained(mine):
    with pytest.raises(UserError, match=r"没有找到起点的模型 .*nowhere\.bin"):
        quickstart.given_poems([f"--POEMS={mine[0]}", "--FROM=nowhere.bin"])
    assert quickstart.given_poems([f"--POEMS={mine[0]}", f"--FROM={mine[1]}"]) == mine
    assert quickstart.given_poems([quickstart.INSIDE]) is None
