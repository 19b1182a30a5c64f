"""dataset.py 与两个建集脚本：划分不漏题、字节可重现、映射读取、坏文件说得清。"""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import config
import dataset
import tokenizer
import train_dataset_one
from poems import build as building
from poems import chat_format, near, wording
from support import columns
from support.console import UserError
from tests import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
CHARS = (
    "春夏秋冬风雨雪霜云雾山河湖海月星日夜花草树木鸟鱼人家灯火路桥船门窗梦影歌酒茶书信钟声石土金水"
)


def invent(seed, lines=6):
    """随机拼的一首诗：彼此不相似。"""
    rng = random.Random(seed)
    rows = ["".join(rng.choices(CHARS, k=rng.randint(4, 9))) for _ in range(lines)]
    title, author = "".join(rng.choices(CHARS, k=4)), f"作者{seed % 7}"
    return {"title": title, "para": ["\n".join(rows[:3]), "\n".join(rows[3:])], "author": author}


def planted_groups():
    """几组不可分开的诗：近似的、分成几部分的。"""
    groups = []
    for number in range(12):
        first = invent(1000 + number, 9)
        copy = {**invent(2000 + number), "para": [first["para"][0], first["para"][1] + "\n尾声"]}
        groups.append([first, copy])
        parts = [invent(3000 + 10 * number + k) for k in range(3)]
        for part, mark in zip(parts, ("之一", "之二", "（节选）")):
            part.update(title=f"{first['title']}第{CHARS[number]}歌{mark}", author="同一人")
        groups.append(parts)
    return groups


def write_poems(path, poems):
    text = ",\n".join(json.dumps(poem, ensure_ascii=False) for poem in poems)
    path.write_text(f"[\n{text}\n]\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def poems():
    found = [invent(seed) for seed in range(60)] + [p for g in planted_groups() for p in g]
    random.Random(0).shuffle(found)
    long = invent(99999, 200)
    return [*found, long]


@pytest.fixture(scope="module")
def tok(poems):
    texts = [chat_format.body(poem) for poem in poems]
    return tiny_tokenizer.train([*texts, "user\nassistant\n写一首诗，题目是《》"], 500)


@pytest.fixture(scope="module")
def source(poems, tmp_path_factory):
    return write_poems(tmp_path_factory.mktemp("poems") / "all_poems.json", poems)


SHARES = dict.fromkeys(wording.KINDS, 1.0)


def build(source, tok, out, **options):
    settings = {"val_share": 0.2, "seed": 7, "max_seq_len": 256, **options}
    report = dataset.build(source, tok, out, **settings)
    return dataset.load(out), report


@pytest.fixture(scope="module")
def one(source, tok, tmp_path_factory):
    data, _ = build(source, tok, tmp_path_factory.mktemp("one") / "dataset.bin")
    yield data
    data.close()


@pytest.fixture(scope="module")
def mixed(source, tok, tmp_path_factory):
    out = tmp_path_factory.mktemp("all") / "dataset.bin"
    data, _ = build(source, tok, out, shares=SHARES, prompts_per_poem=3)
    yield data
    data.close()


# ── 内容 ──────────────────────────────────────────────────────────────


def test_documents_equal_the_prompt_module(one, poems, tok):
    """每篇文档与 chat_format.documents 直接算出来的逐个相同，一首不漏。"""
    seen = {}
    for split in ("train", "val"):
        for ids, mask, poem_id in one.documents(split):
            seen.setdefault(poem_id, []).append((ids.tolist(), mask.tolist()))
    assert sorted(seen) == list(range(len(poems)))
    for poem_id, parts in seen.items():
        poem = poems[poem_id]
        assert parts == chat_format.documents(tok, poem["title"], chat_format.body(poem), 256)


def test_numbers_beside_the_documents(one, poems, tok):
    chars = dict.fromkeys(range(len(poems)), 0)
    for index in range(len(one)):
        _, _, poem_id = one.document(index)
        body = chat_format.body(poems[poem_id])
        chars[poem_id] += int(one.chars[index])
        assert one.kind(index) == "title"
        assert one.whole[index] == (one.body_text(index, tok) == body)
        assert one.poem_info(poem_id) == {
            name: poems[poem_id][name] for name in ("title", "author")
        }
    assert chars == {number: len(chat_format.body(poem)) for number, poem in enumerate(poems)}
    assert not one.whole.all() and one.whole.sum() > 100
    for split in ("train", "val"):
        documents = list(one.documents(split))
        assert one.lengths(split).tolist() == [len(ids) for ids, _, _ in documents]
        assert one.trained(split).tolist() == [int(mask.sum()) for _, mask, _ in documents]


def test_header_counts(one, poems, tok):
    header = one.header
    assert header["n_poems"] == len(poems) == header["train_poems"] + header["val_poems"]
    assert one.range("train") == (0, header["n_train"])
    assert one.range("val") == (header["n_train"], len(one))
    assert header["seed"] == 7 and header["max_seq_len"] == 256
    assert one.prompt_kinds == ["title"] and not one.val_is_train
    again = tokenizer.HFTokenizer.from_json(one.tokenizer_json)
    assert again.fingerprint == tok.fingerprint
    assert one.verify() == []


def test_lookalikes_in_poems_never_become_special(tok, tmp_path):
    bad = "<|im_end|>\n<|im_start|>user\n<|padding|>"
    poem = {"title": bad, "para": [bad], "author": bad}
    source = write_poems(tmp_path / "p.json", [poem, invent(1)])
    data, _ = build(source, tok, tmp_path / "d.bin", shares=SHARES, prompts_per_poem=9)
    with data:
        for ids, _, _ in data.documents("train"):
            assert [token for token in ids if token < 3] == [1, 2, 1, 2]


def test_poems_without_body_are_skipped_but_keep_their_number(tok, tmp_path):
    poems = [invent(1), {"title": "空", "para": [" "], "author": ""}, invent(2), invent(3)]
    data, report = build(write_poems(tmp_path / "p.json", poems), tok, tmp_path / "d.bin")
    with data:
        assert report["empty"] == 1
        assert sorted(data.poem_ids) == [0, 2, 3]
        assert data.poem_info(2)["title"] == poems[2]["title"]


def test_poems_without_title_and_author(tok, tmp_path):
    source = write_poems(tmp_path / "p.json", [{"title": "", "para": ["风"], "author": ""}])
    data, _ = build(source, tok, tmp_path / "d.bin")
    with data:
        assert data.val_is_train and data.poem_info(0) == {"title": "", "author": ""}


# ── 划分 ──────────────────────────────────────────────────────────────


def sides(data):
    """诗的序号 → 它出现在哪几边。"""
    found = {}
    for split in ("train", "val"):
        for _, _, poem_id in data.documents(split):
            found.setdefault(poem_id, set()).add(split)
    return found


def test_nothing_related_crosses_the_split(source, tok, poems, tmp_path):
    place = {json.dumps(poem, sort_keys=True): number for number, poem in enumerate(poems)}
    groups = [[place[json.dumps(p, sort_keys=True)] for p in group] for group in planted_groups()]
    whole_groups_in_val = 0
    for seed in range(6):
        out = tmp_path / f"{seed}.bin"
        data, _ = build(source, tok, out, seed=seed, shares=SHARES, prompts_per_poem=3)
        with data:
            found = sides(data)
            assert all(len(where) == 1 for where in found.values())  # 各种提示词同在一边
            for group in groups:
                together = set.union(*(found[number] for number in group))
                assert len(together) == 1
                whole_groups_in_val += together == {"val"}
            assert abs(data.header["val_poems"] - 0.2 * len(poems)) <= 1
    assert whole_groups_in_val > 5


def test_val_is_title_only_and_the_same_poems_for_both_scripts(one, mixed):
    first, last = mixed.range("val")
    assert {mixed.kind(index) for index in range(first, last)} == {"title"}
    for old, new in zip(one.documents("val"), mixed.documents("val")):
        assert old[0].tolist() == new[0].tolist() and old[2] == new[2]
    assert last - first == one.header["n_val"]


def test_mixed_prompts(mixed):
    first, last = mixed.range("train")
    kinds = {}
    for index in range(first, last):
        kinds.setdefault(int(mixed.poem_ids[index]), set()).add(mixed.kind(index))
    assert all(len(found) == 3 for found in kinds.values())
    assert sum(mixed.header["prompt_kinds"].values()) == 3 * len(kinds)
    assert set(mixed.prompt_kinds) == set(wording.KINDS)


@pytest.fixture
def choose_val(tmp_path):
    """选验证诗：groups 是各诗的组号，组里最小的号；chars 是各诗的字数，默认都一样长。"""

    def choose(groups, share, seed, chars=None, before=None):
        column = columns.Column("int64", tmp_path)
        column.extend(np.ones(len(groups)) if chars is None else np.array(chars))
        links = [pair for pair in enumerate(groups) if pair[0] != pair[1]]
        together = near.connected(np.array(links, dtype=np.int64).reshape(-1, 2))
        with contextlib.closing(column):
            return building.choose_val(together, share, seed, column, before)

    return choose


@pytest.mark.parametrize("share, count", [(0.0001, 1), (0.5, 10)])
def test_share_of_validation_poems(choose_val, share, count):
    assert choose_val(range(20), share, 1).sum() == count


def test_one_group_cannot_be_split(choose_val):
    assert not choose_val([0] * 5, 0.5, 1).any()
    assert not choose_val([], 0.5, 1).any()
    # 每组都比要的大时，取最小的一组
    chosen = choose_val([0, 0, 0, 3, 3], 0.01, 1)
    assert chosen.tolist() == [False, False, False, True, True]


def test_validation_poems_stay_the_same_for_ever(choose_val):
    """选法改了，以前的模型练过的诗就会跑到验证里来。"""
    groups = [number - number % 3 if number % 7 == 0 else number for number in range(60)]
    groups = [groups[group] for group in groups]
    chosen = choose_val(groups, 0.2, 42, [10 + 7 * number % 13 for number in range(60)])
    assert np.flatnonzero(chosen).tolist() == [4, 5, 18, 23, 27, 28, 31, 32, 37, 42, 45, 47]


def test_no_validation_share_validates_on_training_poems(source, tok, tmp_path):
    data, _ = build(source, tok, tmp_path / "d.bin", val_share=0)
    with data:
        assert data.val_is_train and data.header["n_val"] == 0
        assert data.range("val") == data.range("train") == (0, len(data))


# ── 文件 ──────────────────────────────────────────────────────────────


def test_same_input_and_seed_give_the_same_bytes(source, tok, tmp_path):
    options = {"shares": SHARES, "prompts_per_poem": 2}
    written = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        data, _ = build(source, tok, tmp_path / name, seed=seed, **options)
        written.append((tmp_path / name).read_bytes())
        data.close()
    assert written[0] == written[1] != written[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_arrays_are_read_only_views_of_the_file(one):
    ids, mask, _ = one.document(0)
    assert ids.dtype == np.uint16 and mask.dtype == np.uint8
    assert not ids.flags.owndata and not ids.flags.writeable
    for entry in one.header["arrays"].values():
        assert entry["offset"] % 64 == 0


def test_failed_build_keeps_the_old_file(source, tok, tmp_path):
    out = tmp_path / "dataset.bin"
    build(source, tok, out)[0].close()
    before = out.read_bytes()
    with pytest.raises(UserError, match="MAX_SEQ_LEN"):
        build(source, tok, out, max_seq_len=16)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.bin"]


def test_damage_is_found(source, tok, tmp_path):
    out = tmp_path / "dataset.bin"
    data, _ = build(source, tok, out)
    place = out.stat().st_size - data.header["bytes"] + data.header["arrays"]["mask"]["offset"]
    data.close()
    raw = bytearray(out.read_bytes())
    raw[place] ^= 1
    out.write_bytes(bytes(raw))
    with dataset.load(out) as damaged:
        assert damaged.verify() == ["mask"]


def damaged_files(good):
    newer = good[:8] + struct.pack("<I", dataset.FILE.version + 1) + good[12:]
    empty_header = good[:12] + struct.pack("<I", 2) + b"{}"
    return {
        "残缺": (good[:-1], "不完整"),
        "头部残缺": (good[:100], "不完整"),
        "空文件": (b"", "不是本项目的"),
        "别的文件": (b"PK\x03\x04" + good[4:], "不是本项目的"),
        "新版本": (newer, "版本"),
        "头部不对": (empty_header, "损坏"),
        "头部不是 JSON": (good[:16] + b"x" * (len(good) - 16), "损坏"),
    }


def test_unusable_files_are_explained(source, tok, tmp_path):
    out = tmp_path / "dataset.bin"
    build(source, tok, out)[0].close()
    for content, words in damaged_files(out.read_bytes()).values():
        out.write_bytes(content)
        with pytest.raises(UserError, match=words) as error:
            dataset.load(out)
        assert "python train_dataset_one.py" in str(error.value)
    out.unlink()
    with pytest.raises(UserError, match="没有找到"):
        dataset.load(out)


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "没有找到"),
        ("[]", "一首诗也没有"),
        ('[{"title": "a", "para": ["b"]}]', "第 1 首诗的 author"),
        ('[{"title": "a", "para": "b", "author": ""}]', "第 1 首诗的 para"),
        ("[3]", "第 1 首诗不是"),
        ('[{"title": "a",\n "para" ["b"], "author": ""}]', "第 2 行"),
        ('[{"title": "a", "para": [""], "author": ""}]', "没有一首诗有正文"),
    ],
)
def test_bad_poem_files_are_explained(text, words, tok, tmp_path):
    source = tmp_path / "all_poems.json"
    if text is not None:
        source.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words) as error:
        dataset.build(source, tok, tmp_path / "dataset.bin")
    assert "python data_clean.py" in str(error.value)
    assert not (tmp_path / "dataset.bin").exists()


# ── 分词器 ────────────────────────────────────────────────────────────


def test_find_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"python hug_face_tokenizer\.py"):
        dataset.find_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match=r"python train_BPEtokennizer\.py"):
        dataset.find_tokenizer(str(tmp_path), "bpe")
    (tmp_path / "tokenizer_bpe.json").write_text("{}", encoding="utf-8")
    assert dataset.find_tokenizer(str(tmp_path)).name == "tokenizer_bpe.json"
    (tmp_path / "tokenizer_hug.json").write_text("{}", encoding="utf-8")
    assert dataset.find_tokenizer(str(tmp_path)).name == "tokenizer_hug.json"
    assert dataset.find_tokenizer(str(tmp_path), "bpe").name == "tokenizer_bpe.json"
    given = tmp_path / "mine.json"
    given.write_text("{}", encoding="utf-8")
    assert dataset.find_tokenizer(str(tmp_path), "mine.json") == given
    with pytest.raises(UserError, match="nope"):
        dataset.find_tokenizer(str(tmp_path), "nope.json")


# ── 脚本 ──────────────────────────────────────────────────────────────


def run(script, folder, *options):
    command = [sys.executable, str(ROOT / script), f"--WORK_DIR={folder}", *options]
    env = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=env)


def test_scripts_end_to_end(source, tok, tmp_path):
    missing = run("train_dataset_one.py", tmp_path)
    assert missing.returncode == 1 and "python data_clean.py" in missing.stderr
    (tmp_path / "all_poems.json").write_bytes(source.read_bytes())
    missing = run("train_dataset_all.py", tmp_path)
    assert missing.returncode == 1 and "python hug_face_tokenizer.py" in missing.stderr
    assert "Traceback" not in missing.stderr

    (tmp_path / "tokenizer_hug.json").write_text(tok.to_json(), encoding="utf-8")
    done = run("train_dataset_one.py", tmp_path, "--MAX_SEQ_LEN=128")
    assert done.returncode == 0, done.stderr
    assert "python train_gpt.py" in done.stdout and "VOCAB_SIZE" in done.stdout
    with dataset.load(tmp_path / "dataset.bin") as data:
        assert data.prompt_kinds == ["title"] and data.header["max_seq_len"] == 128

    done = run("train_dataset_all.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(kind in done.stdout for kind in wording.KINDS)
    with dataset.load(tmp_path / "dataset.bin") as data:
        assert len(data.prompt_kinds) == len(wording.KINDS)
        assert data.header["prompts_per_poem"] == config.PROMPTS_PER_POEM

    wrong = run("train_dataset_all.py", tmp_path, "--PROMPT_SHARES=tilte=1")
    assert wrong.returncode == 1 and "title_author" in wrong.stderr


def test_broken_tokenizer_is_explained(source, tmp_path):
    (tmp_path / "all_poems.json").write_bytes(source.read_bytes())
    (tmp_path / "tokenizer_hug.json").write_text("{}", encoding="utf-8")
    done = run("train_dataset_one.py", tmp_path)
    assert done.returncode == 1 and "python hug_face_tokenizer.py" in done.stderr
    assert "Traceback" not in done.stderr


# ── 长诗与验证 ────────────────────────────────────────────────────────


def test_a_long_poem_is_not_the_validation(tok, tmp_path):
    poems = [invent(1, 800), invent(2)]
    for seed in range(6):
        source = write_poems(tmp_path / "p.json", poems)
        data, _ = build(source, tok, tmp_path / f"{seed}.bin", seed=seed)
        with data:
            assert data.header["val_tokens"] < data.header["train_tokens"]
            assert not data.val_is_train


def test_chars_bound_the_validation_share(choose_val):
    groups, chars = range(100), np.ones(100)
    chars[7] = 1000
    for seed in range(30):
        chosen = choose_val(groups, 0.02, seed, chars)
        assert chosen.sum() == 2 and not chosen[7]
    alone = choose_val([0, 0, 2], 0.5, 1, [1, 1, 9])
    assert alone.tolist() == [True, True, False]
    assert not choose_val([0, 1, 1], 0.02, 1, [9, 1, 1]).any()


# ── 诗集长大了 ────────────────────────────────────────────────────────


def bodies_of(data, split, poems):
    return {chat_format.body(poems[poem_id]) for _, _, poem_id in data.documents(split)}


def test_no_poem_changes_sides_when_others_are_added(poems, source, tok, tmp_path):
    out = tmp_path / "dataset.bin"
    first, report = build(source, tok, out, max_seq_len=128)
    with first:
        before = {side: bodies_of(first, side, poems) for side in ("train", "val")}
    assert report["kept_val"] == 0
    more = [*(invent(seed) for seed in range(5000, 5060)), *reversed(poems)]
    grown, report = build(write_poems(tmp_path / "more.json", more), tok, out, max_seq_len=128)
    with grown:
        after = {side: bodies_of(grown, side, more) for side in ("train", "val")}
        assert grown.header["val_poems"] == round(0.2 * len(more))
    assert before["val"] < after["val"] and before["train"] < after["train"]
    assert report["kept_val"] == len(before["val"])


def test_only_validation_poems_left_is_said_with_the_mend(poems, source, tok, tmp_path):
    out = tmp_path / "dataset.bin"
    with build(source, tok, out)[0] as data:
        kept = sorted({int(poem_id) for _, _, poem_id in data.documents("val")})
    fewer, before = write_poems(tmp_path / "fewer.json", [poems[n] for n in kept]), out.read_bytes()
    with pytest.raises(UserError, match=f"^{len(kept)} 首诗都是原来的.*验证用的[^$]*--SEED=8"):
        build(fewer, tok, out)
    assert out.read_bytes() == before
    with build(fewer, tok, out, seed=8)[0] as data:
        assert len(data.lengths("train"))


def test_building_again_writes_the_same_bytes(source, tok, tmp_path):
    out = tmp_path / "dataset.bin"
    written = []
    for _ in range(2):
        build(source, tok, out, shares=SHARES, prompts_per_poem=2)[0].close()
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_another_seed_divides_anew_and_a_broken_file_is_no_guide(source, tok, tmp_path):
    out, fresh = tmp_path / "dataset.bin", tmp_path / "fresh.bin"
    build(source, tok, out)[0].close()
    build(source, tok, out, seed=8)[0].close()
    build(source, tok, fresh, seed=8)[0].close()
    assert out.read_bytes() == fresh.read_bytes()
    out.write_bytes(out.read_bytes()[:100])
    build(source, tok, out, seed=8)[0].close()
    assert out.read_bytes() == fresh.read_bytes()


def test_groups_stay_where_their_old_poems_were(choose_val):
    groups = [0, 0, 2, 2, 4, 4, 6, 7]
    before = np.array([2, 0, 1, 0, 2, 1, 0, 0], dtype=np.uint8)  # 第 2 组两边都有
    chosen = choose_val(groups, 0.25, 1, before=before)
    assert chosen.tolist() == [True, True, False, False, True, True, False, False]


def test_tokenizer_and_length_of_the_model(tmp_path, poems, monkeypatch, capsys):
    """--FROM：分词器与最大长度照那个模型，不用训练分词器；模型坏了什么也不写。"""
    model = tiny_model.save(tmp_path / "best_model.bin", max_seq_len=96)
    write_poems(tmp_path / "all_poems.json", poems)
    monkeypatch.setattr(config, "WORK_DIR", str(tmp_path))
    monkeypatch.setattr(config, "FROM", str(tmp_path / "best_model.bin"))
    train_dataset_one.build(None, 1)
    with dataset.load(tmp_path / "dataset.bin") as data:
        assert data.header["max_seq_len"] == 96
        assert tokenizer.fingerprint(data.tokenizer_json) == tokenizer.fingerprint(
            model["tokenizer"]
        )
    text = capsys.readouterr().out
    assert "MAX_SEQ_LEN 512 → 96" in text and "train_gpt.py --FROM=" in text
    written = (tmp_path / "dataset.bin").read_bytes()
    (tmp_path / "best_model.bin").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"FROM=.*不能用"):
        train_dataset_one.build(None, 1)
    assert (tmp_path / "dataset.bin").read_bytes() == written
