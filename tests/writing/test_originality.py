"""查抄索引：与逐字穷举的最长公共片段相同；建一次，数据换了重建。"""

from __future__ import annotations

import json
import random

import pytest

import config
import dataset
import infere
from support import artefacts
from support.console import UserError
from tests import tiny_model
from writing import originality

POEMS = [
    ("春", "甲", ["春天来了，花开在山坡上\n夏天的雨落在河边", "秋天的风吹过麦田\n🌙照着我"]),
    ("雪", "乙", ["冬天的雪压着屋顶\n月亮照在窗前\n我想起故乡和母亲"]),
    ("鸟", "丙", ["一只鸟在想方向\n它飞过海洋，飞过远方\n春天来了，花落了"]),
]


def write_dataset(folder, poems=POEMS):
    records = [{"title": t, "author": a, "para": p} for t, a, p in poems]
    (folder / "all_poems.json").write_text(json.dumps(records), encoding="utf-8")
    dataset.build(
        folder / "all_poems.json",
        tiny_model.tokenizer(),
        folder / "dataset.bin",
        shares={"title": 1.0, "plain": 1.0},
        prompts_per_poem=2,
        val_share=0.0,
        max_seq_len=40,
    )
    return ["\n\n".join(paragraphs) for _, _, paragraphs in poems]


def brute(text, bodies):
    """穷举最长公共片段的长度。"""
    for length in range(len(text), 0, -1):
        if any(text[i : i + length] in b for i in range(len(text) - length + 1) for b in bodies):
            return length
    return 0


@pytest.fixture
def folder(tmp_path):
    return tmp_path, write_dataset(tmp_path)


def test_known_copy(folder):
    path, _ = folder
    found = originality.load(str(path)).longest_copy("啊\n它飞过海洋，飞过哪里")
    assert found == ("它飞过海洋，飞过", "鸟", "丙") or found.snippet.endswith("它飞过海洋，飞过")
    assert (found.title, found.author) == ("鸟", "丙") and found.length == len(found.snippet)
    assert "《鸟》" in found.describe()


def test_matches_brute_force(tmp_path):
    rng = random.Random(5)
    alphabet = "春天来了花开\n，月🌙"
    poems = [
        (str(i), "某", ["".join(rng.choices(alphabet, k=rng.randint(12, 30))).strip() + "尾"])
        for i in range(12)
    ]
    bodies = write_dataset(tmp_path, poems)
    index = originality.load(str(tmp_path))
    assert index.longest_copy("") == (0, "", "", "")
    assert index.longest_copy("zzz").length == 0
    for _ in range(60):
        text = "".join(rng.choices(alphabet + "x", k=rng.randint(1, 60)))
        found = index.longest_copy(text)
        assert found.length == brute(text, bodies)
        assert found.snippet in text
    whole = index.longest_copy("前" + bodies[3] + "后")
    assert whole.length == len(bodies[3]) and whole.title == "3"


def test_index_is_kept_and_rebuilt(folder):
    path, _ = folder
    originality.load(str(path))
    written = (path / artefacts.COPY_INDEX).stat().st_mtime_ns
    originality.load(str(path))
    assert (path / artefacts.COPY_INDEX).stat().st_mtime_ns == written
    write_dataset(path, POEMS[:2])
    assert originality.load(str(path)).longest_copy("它飞过海洋，飞过").length < 8
    (path / artefacts.COPY_INDEX).write_bytes(b"POEMCOPY")
    assert originality.load(str(path)).longest_copy("屋顶").snippet == "屋顶"


def test_damaged_index_is_rebuilt(folder):
    """翻了一位的索引不能拿来说“没有抄”。"""
    path, _ = folder
    question = "它飞过海洋，飞过哪里"
    found = originality.load(str(path)).longest_copy(question)
    file = path / artefacts.COPY_INDEX
    whole = file.read_bytes()
    for place in range(len(whole) - 400, len(whole), 40):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        assert originality.load(str(path)).longest_copy(question) == found
    assert file.read_bytes() == whole


def test_no_dataset(tmp_path):
    with pytest.raises(UserError, match="train_dataset_one"):
        originality.load(str(tmp_path))


def test_chat_check_copy(folder, monkeypatch):
    path, _ = folder
    tiny_model.save(path / "best_model.bin")
    monkeypatch.setattr(config, "WORK_DIR", str(path))
    poem = infere.chat("春天", seed=1, max_new_tokens=20, check_copy=True)
    assert isinstance(poem, infere.Poem) and poem.copied.length >= 0
    assert poem == infere.chat("春天", seed=1, max_new_tokens=20)
