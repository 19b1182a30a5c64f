"""分词器：以 tokenizers 库为准绳（合并、编号、文件逐一相同），任意文本往返，脚本与报错。"""

from __future__ import annotations

import doctest
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, trainers

import dataset
import hug_face_tokenizer
import tokenizer
from kernels import bpe
from support import files
from tokenizer import BPETokenizer, HFTokenizer, StreamDecoder

ROOT = Path(tokenizer.__file__).resolve().parent
HAN = "春风花月夜山水的一是在不了有和人这床前明光疑地上霜举头望低思故乡"
ALPHABETS = (
    "ab",
    "aab。",
    "哈",
    "哈哈呵",
    HAN,
    HAN + "，。\n",
    "abc XYZ 123 's're\t\n\r",
    "😀🌙👨\u200d👩\u200d👧🏽é\u0301ü…——“”\u3000",
    "的一二三" + "".join(map(chr, range(0x4E00, 0x4E60))),
    "<|im_end|>\n<|padding|>",
)


def random_text(rng: random.Random, alphabet: str, longest: int = 60) -> str:
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, longest)))


def poem_corpus(seed: int = 1, lines: int = 400) -> list[str]:
    """多数由常见的词组成、夹着各种字符的语料。"""
    rng = random.Random(seed)
    words = [random_text(rng, HAN, 4) for _ in range(120)] + ["Moon", " light", "😀", "\n", "，"]
    return ["".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(lines)]


def train_hf(texts: list[str], vocab_size: int) -> HFTokenizer:
    """准绳：不经过本项目训练脚本的 BpeTrainer。"""
    inner = Tokenizer.from_str(BPETokenizer().to_json())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=0,
        special_tokens=list(tokenizer.SPECIAL_TOKENS),
        initial_alphabet=tokenizer.BYTE_CHARS,
        show_progress=False,
    )
    inner.train_from_iterator([tokenizer.clean(text) for text in texts], trainer)
    return HFTokenizer(inner)


@pytest.fixture(scope="module")
def ours() -> BPETokenizer:
    return BPETokenizer().train(poem_corpus(), 1500)


@pytest.fixture(scope="module")
def theirs() -> HFTokenizer:
    return train_hf(poem_corpus(), 1500)


# ── 训练：与 BpeTrainer 逐条相同 ──────────────────────────────────────


@pytest.mark.parametrize("alphabet", range(len(ALPHABETS)))
def test_learns_the_same_merges(alphabet: int) -> None:
    for seed in range(6):
        rng = random.Random(1000 * alphabet + seed)
        texts = [random_text(rng, ALPHABETS[alphabet], 80) for _ in range(rng.choice((1, 5, 30)))]
        vocab_size = rng.choice((262, 280, 330, 600, 100_000))
        made = BPETokenizer().train(texts, vocab_size)
        assert made.to_json() == train_hf(texts, vocab_size).to_json()


def test_ties_take_the_smaller_pair() -> None:
    """每一对都只出现一次：次序全由编号决定。"""
    texts = ["".join(map(chr, range(start, start + 40))) for start in range(0x4E00, 0x5000, 40)]
    made = BPETokenizer().train(texts, 700)
    assert made.to_json() == train_hf(texts, 700).to_json()


@pytest.mark.parametrize("word", ["哈" * n for n in range(1, 12)] + ["a" * 33, "abab" * 9])
def test_repeats_merge_from_the_left(word: str) -> None:
    texts = [word, "a" + word, word + "b", word]
    made, judge = BPETokenizer().train(texts, 500), train_hf(texts, 500)
    assert made.to_json() == judge.to_json()
    assert made.encode(word * 3) == judge.encode(word * 3)


def test_mixed_corpus_gives_the_same_file(ours: BPETokenizer, theirs: HFTokenizer) -> None:
    assert ours.to_json() == theirs.to_json()
    assert ours.fingerprint == theirs.fingerprint


def test_count_of_words_matters() -> None:
    """同一个词重复出现，次数要算够。"""
    texts = ["山水"] * 3 + ["风月。"] * 5 + ["山，", "风"]
    made = BPETokenizer().train(texts, 270)
    assert made.to_json() == train_hf(texts, 270).to_json()


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["春"], ["\n\n"], ["ab"] * 3])
def test_running_out_of_pairs_is_no_error(texts: list) -> None:
    made = BPETokenizer().train(texts, 20_000)
    assert made.vocab_size == train_hf(texts, 20_000).vocab_size < 300
    assert made.decode(made.encode("春天 ab")) == "春天 ab"


@pytest.mark.parametrize("vocab_size", [0, 1, 259])
def test_tiny_vocabulary_keeps_all_bytes(vocab_size: int) -> None:
    made = BPETokenizer().train(["春眠不觉晓"], vocab_size)
    assert made.vocab_size == 259
    assert made.merges == {}


def test_long_unbroken_text_is_learnt_in_parts() -> None:
    """没有标点的长文：两种训练先同样地切短，学到的仍逐条相同；一个字也不少。"""
    rng = random.Random(5)
    long = "".join(rng.choices(HAN, k=3 * tokenizer.LONGEST_WORD + 7))
    texts = ["春，" + long + "。秋\ud800", long[:500], " " * 2000 + "月\n" * 900, ""]
    parts = list(tokenizer.short_words(texts))
    assert "".join(parts) == tokenizer.clean("".join(texts))
    words = [word for part in parts for word in tokenizer.split_words(part)]
    assert max(map(len, words)) <= tokenizer.LONGEST_WORD
    made = BPETokenizer().train(texts, 600)
    judge = hug_face_tokenizer.train(texts, 600, tokenizer.SPECIAL_TOKENS)
    assert made.to_json() == judge.to_json()


def test_training_is_deterministic_and_repeatable(ours: BPETokenizer) -> None:
    again = BPETokenizer().train(reversed(poem_corpus()), 1500)
    assert again.to_json() == ours.to_json()
    assert again.train(poem_corpus(), 1500).to_json() == ours.to_json()


def test_on_token_counts_up_to_the_vocabulary() -> None:
    sizes = []
    made = BPETokenizer().train(["看山看山看水"], 264, sizes.append)
    assert sizes == list(range(260, made.vocab_size + 1))


def test_example_in_the_docstring() -> None:
    assert doctest.testmod(tokenizer).failed == 0


# ── 编码：与 tokenizers 相同 ──────────────────────────────────────────


def random_unicode(rng: random.Random, longest: int = 30) -> str:
    """任意合法字符（没有代理码位）。"""
    points = (rng.choice((0x80, 0x800, 0xFFFF, 0x10FFFF)) for _ in range(rng.randint(0, longest)))
    chars = (rng.randint(0, limit) for limit in points)
    return "".join(chr(point) for point in chars if not 0xD800 <= point < 0xE000)


def test_thousands_of_strings_give_the_same_ids(ours: BPETokenizer, theirs: HFTokenizer) -> None:
    rng = random.Random(7)
    texts = ["", " ", "\n", "　　春", *poem_corpus(seed=2, lines=500)]
    texts += [random_text(rng, rng.choice(ALPHABETS)) for _ in range(1500)]
    texts += [random_unicode(rng) for _ in range(1500)]
    texts += [random_text(rng, HAN + "\ud800\udfff\ude00", 12) for _ in range(500)]
    expected = theirs.encode_batch(texts)
    assert ours.encode_batch(texts) == expected
    assert [theirs.encode(text) for text in texts[:300]] == expected[:300]
    for text, ids in zip(texts, expected):
        assert ours.decode(ids) == theirs.decode(ids) == tokenizer.clean(text)


def test_long_words(ours: BPETokenizer, theirs: HFTokenizer) -> None:
    for text in ("春风花月" * 3000, "哈" * 9999, "-" * 5000, "的" + "花" * 501):
        assert ours.encode(text) == theirs.encode(text)


def test_full_piece_cache_changes_nothing(ours: BPETokenizer, monkeypatch) -> None:
    small = BPETokenizer.from_json(ours.to_json())
    monkeypatch.setattr(bpe, "_CACHE_PIECES", 3)
    texts = poem_corpus(seed=3, lines=50)
    assert small.encode_batch(texts) == ours.encode_batch(texts)
    assert len(small._encoder._pieces) <= 3


def test_results_can_be_changed_by_the_caller(ours: BPETokenizer) -> None:
    first = ours.encode("春")
    first.append(0)
    assert ours.encode("春") == first[:-1]


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "<|im_start|>user\n春<|im_end|>", "<|padding|>" * 3, "诗<|im_end|"]
)
def test_text_never_becomes_a_special_token(ours, theirs, text: str) -> None:
    for tok in (ours, theirs):
        for ids in (tok.encode(text), tok.encode_batch([text])[0]):
            assert not {0, 1, 2} & set(ids)
            assert tok.decode(ids) == text


def test_lone_surrogates_become_replacement_characters(ours, theirs) -> None:
    for tok in (ours, theirs):
        assert tok.decode(tok.encode("春\ud83d天\udc00")) == "春\ufffd天\ufffd"
    made = BPETokenizer().train(["春\ud800春\ud800"], 270)
    assert made.to_json() == train_hf(["春\ufffd春\ufffd"], 270).to_json()


def test_splitting_keeps_every_character() -> None:
    rng = random.Random(9)
    for _ in range(500):
        text = random_unicode(rng)
        assert "".join(tokenizer.split_words(text)) == text


# ── 解码 ──────────────────────────────────────────────────────────────


def test_special_tokens_and_ids(ours: BPETokenizer, theirs: HFTokenizer) -> None:
    for tok in (ours, theirs):
        assert (tok.pad_id, tok.start_id, tok.end_id) == (0, 1, 2)
        assert list(tok.special_ids.values()) == [0, 1, 2]
        assert tok.token_bytes(2) == b""
        assert tok.decode([1, *tok.encode("春"), 2]) == "春"
        assert tok.vocab_size == 1500
        for bad in (-1, tok.vocab_size):
            with pytest.raises(ValueError, match="不在词表里"):
                tok.decode([bad])


def test_broken_bytes_decode_as_in_the_library(ours: BPETokenizer, theirs: HFTokenizer) -> None:
    rng = random.Random(11)
    for _ in range(500):
        ids = [rng.randrange(3, ours.vocab_size) for _ in range(rng.randint(0, 12))]
        assert ours.decode(ids) == theirs.decode(ids) == theirs.inner.decode(ids)


def test_stream_decoder_equals_decode(ours: BPETokenizer) -> None:
    rng = random.Random(13)
    for _ in range(500):
        ids = [rng.randrange(ours.vocab_size) for _ in range(rng.randint(0, 12))]
        stream = StreamDecoder(ours)
        pieces = [stream.feed(token) for token in ids]
        assert "".join(pieces) + stream.flush() == ours.decode(ids)


def test_stream_decoder_never_shows_part_of_a_character() -> None:
    plain = BPETokenizer()  # 没有合并：每个字节一个 token
    stream = StreamDecoder(plain)
    text = "春天🌙é"
    pieces = [stream.feed(token) for token in plain.encode(text)]
    assert [piece for piece in pieces if piece] == list(text)
    assert stream.flush() == ""


# ── 文件 ──────────────────────────────────────────────────────────────


def test_each_loads_the_others_file(ours, theirs, tmp_path: Path) -> None:
    ours.save(tmp_path / "ours.json")
    theirs.inner.save(str(tmp_path / "theirs.json"))
    texts = poem_corpus(seed=4, lines=100)
    for name in ("ours.json", "theirs.json"):
        for kind in (BPETokenizer, HFTokenizer):
            loaded = kind.load(tmp_path / name)
            assert loaded.encode_batch(texts) == ours.encode_batch(texts)
            assert loaded.fingerprint == ours.fingerprint
            assert loaded.special_ids == ours.special_ids
            assert kind.from_json(loaded.to_json()).to_json() == loaded.to_json()


def test_merges_of_older_library_versions(ours: BPETokenizer) -> None:
    spec = json.loads(ours.to_json())
    spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    del spec["model"]["ignore_merges"]
    old = BPETokenizer.from_json(json.dumps(spec))
    assert old.merges == ours.merges
    assert old.fingerprint == ours.fingerprint


def test_fingerprint_tells_tokenizers_apart(ours: BPETokenizer) -> None:
    other = BPETokenizer().train(poem_corpus(), 1499)
    assert other.fingerprint != ours.fingerprint
    renamed = BPETokenizer(("<|x|>", "<|im_start|>", "<|im_end|>")).train(poem_corpus(), 1500)
    assert renamed.fingerprint != ours.fingerprint


def _drop(*keys):
    def change(spec):
        for key in keys[:-1]:
            spec = spec[key]
        del spec[keys[-1]]

    return change


def _put(value, *keys):
    def change(spec):
        for key in keys[:-1]:
            spec = spec[key]
        spec[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("model"), "不像 tokenizers 的文件"),
        (_put("WordPiece", "model", "type"), "type"),
        (_put(True, "model", "byte_fallback"), "byte_fallback"),
        (_put({"type": "NFC"}, "normalizer"), "切词规则"),
        (_put({"type": "ByteLevel"}, "pre_tokenizer"), "切词规则"),
        (_put(None, "pre_tokenizer"), "切词规则"),
        (_put([], "added_tokens"), "特殊符号"),
        (_put("x", "added_tokens"), "added_tokens"),
        (_put(7, "added_tokens", 0, "id"), "0、1、2"),
        (_put(5000, "model", "vocab", "a"), "编号"),
        (_put("a", "model", "vocab", "a"), "编号"),
        (_put("5", "model", "vocab", "a"), "编号"),
        (_put([["a", "山"]], "model", "merges"), "词表里没有"),
        (_put([["a"]], "model", "merges"), "merges"),
        (_put([[["a"], ["b"]]], "model", "merges"), "merges"),
        (_put(None, "model", "merges"), "merges"),
    ],
)
@pytest.mark.parametrize("kind", [BPETokenizer, HFTokenizer])
def test_foreign_files_are_refused(ours, tmp_path: Path, kind, change, message: str) -> None:
    spec = json.loads(ours.to_json())
    change(spec)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        kind.load(path)
    assert "broken.json" in str(error.value)


def test_missing_byte_is_named(ours: BPETokenizer) -> None:
    spec = json.loads(ours.to_json())
    vocab = spec["model"]["vocab"]
    vocab["山山"] = vocab.pop("a")
    with pytest.raises(ValueError, match="0x61"):
        BPETokenizer.from_json(json.dumps(spec))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"{}"])
@pytest.mark.parametrize("kind", [BPETokenizer, HFTokenizer])
def test_broken_files_are_refused(tmp_path: Path, kind, content: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json"):
        kind.load(path)


def test_special_tokens_that_look_like_words_are_refused() -> None:
    for tokens in (("PAD", "<|b|>", "<|c|>"), ("<|a|>", "<|a|>", "<|c|>"), ("", "<|b|>", "<|c|>")):
        with pytest.raises(ValueError, match="特殊符号"):
            BPETokenizer(tokens)


# ── 脚本 ──────────────────────────────────────────────────────────────

POEMS = [
    {"title": "看山", "para": ["看山看山\n又看水", "水里有山"], "author": "甲"},
    {"title": "看水", "para": ["看水看水"], "author": "乙"},
]
SCRIPTS = {
    "hug_face_tokenizer.py": "tokenizer_hug.json",
    "train_BPEtokennizer.py": "tokenizer_bpe.json",
}


def run(script: str, folder: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / script), f"--WORK_DIR={folder}", *options],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=120,
    )


def write_poems(folder: Path, text: str | None = None) -> None:
    lines = ",\n".join(json.dumps(poem, ensure_ascii=False) for poem in POEMS)
    (folder / "all_poems.json").write_text(text or f"[\n{lines}\n]\n", encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple:
    """两个脚本先后跑一遍：(目录, {脚本: 输出})。"""
    folder = tmp_path_factory.mktemp("scripts")
    write_poems(folder)
    options = "--VOCAB_SIZE=270", "--VAL_SHARE=0"
    return folder, {script: run(script, folder, *options) for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_train_and_report(trained, script: str) -> None:
    folder, results = trained
    assert results[script].returncode == 0, results[script].stderr
    for word in ("270 个 token", "每个 token", "切碎的字", "最长的 token", "用时"):
        assert word in results[script].stdout
    made = HFTokenizer.load(folder / SCRIPTS[script])
    bodies = ["\n\n".join(poem["para"]) for poem in POEMS]
    texts = [poem[key] for poem in POEMS for key in ("title", "author")] + bodies
    assert made.to_json() == train_hf(texts, 270).to_json()


def test_both_scripts_write_the_same_file(trained) -> None:
    folder, results = trained
    files = [(folder / name).read_bytes() for name in SCRIPTS.values()]
    assert files[0] == files[1]
    assert "逐条相同" in results["train_BPEtokennizer.py"].stdout


def test_a_changed_merge_is_refused() -> None:
    """合并的一半换成别的字，写得出的仍在词表里，原来那个 token 却再没有合并写得出。"""
    made = BPETokenizer().train(["春天春天春天，冬天冬天"] * 3, 300)
    spec = json.loads(made.to_json())
    merges = spec["model"]["merges"]
    merges[2] = merges[1]
    for kind in (BPETokenizer, HFTokenizer):
        with pytest.raises(ValueError, match="没有合并写得出"):
            kind.from_json(json.dumps(spec))


def test_killed_while_replacing_leaves_the_old_tokenizer(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "tokenizer_bpe.json"
    hug_face_tokenizer.save(BPETokenizer(), path)
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "replace", killed)
    other = BPETokenizer().train(["春天"] * 3, 262)
    with pytest.raises(KeyboardInterrupt):
        hug_face_tokenizer.save(other, path)
    assert path.read_bytes() == before


def test_same_tokenizer_is_left_and_another_is_kept_aside(tmp_path: Path, capsys) -> None:
    path = tmp_path / "tokenizer_hug.json"
    first = hug_face_tokenizer.train(["看山看山"], 264, tokenizer.SPECIAL_TOKENS)
    second = hug_face_tokenizer.train(["看水看水"], 264, tokenizer.SPECIAL_TOKENS)
    hug_face_tokenizer.save(first, path)
    hug_face_tokenizer.save(first, path)
    assert "没有改动" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer_hug.json"]
    hug_face_tokenizer.save(second, path)
    assert "改名" in capsys.readouterr().out
    kept = [file for file in tmp_path.iterdir() if file != path]
    assert [file.read_text(encoding="utf-8") for file in kept] == [first.to_json()]
    assert path.read_text(encoding="utf-8") == second.to_json()


def test_small_corpus_says_how_many_were_learnt(tmp_path: Path) -> None:
    write_poems(tmp_path)
    result = run("train_BPEtokennizer.py", tmp_path, "--VOCAB_SIZE=5000")
    made = BPETokenizer.load(tmp_path / "tokenizer_bpe.json")
    assert result.returncode == 0, result.stderr
    assert made.vocab_size < 5000
    assert f"词表：{made.vocab_size} 个 token（不到 VOCAB_SIZE=5000" in result.stdout


def test_indented_poems_are_read_too(tmp_path: Path) -> None:
    write_poems(tmp_path)
    flat = list(hug_face_tokenizer.poem_texts(tmp_path / "all_poems.json"))
    write_poems(tmp_path, json.dumps(POEMS, indent=2))
    assert list(hug_face_tokenizer.poem_texts(tmp_path / "all_poems.json")) == flat
    assert flat[:3] == ["看山", "甲", "看山看山\n又看水\n\n水里有山"]


def test_a_share_of_the_poems_is_spread_evenly(tmp_path: Path) -> None:
    poems = [{"title": str(number), "para": ["春"], "author": "甲"} for number in range(100)]
    write_poems(tmp_path, json.dumps(poems))
    path = tmp_path / "all_poems.json"
    for share in (0.001, 0.1, 0.3, 0.75, 1.0):
        chosen = hug_face_tokenizer.Chosen(share)
        found = [int(title) for title in list(hug_face_tokenizer.poem_texts(path, chosen))[::3]]
        assert found[0] == 0 and len(found) == max(1, round(100 * share))
        gaps = {second - first for first, second in zip(found, found[1:])}
        assert not gaps or max(gaps) - min(gaps) <= 1
    size = path.stat().st_size / 1e6
    assert hug_face_tokenizer.share_for(path, 0) == 1.0
    assert hug_face_tokenizer.share_for(path, 10 * size) == 1.0
    assert hug_face_tokenizer.share_for(path, size / 4) == pytest.approx(0.25)


@pytest.mark.parametrize("script", SCRIPTS)
def test_validation_poems_are_not_looked_at(tmp_path: Path, script: str) -> None:
    """数据集归到验证那边的诗，分词器也没有看过；建了数据集以后再训练，还是那几首。"""
    poems = [
        {"title": f"{word}{n}", "para": [f"{word}{word}\n{word * 3}{n}"], "author": "甲"}
        for n, word in enumerate("春山夜雨江花明月空林白云秋水孤舟远帆归雁落霞")
    ]
    write_poems(tmp_path, json.dumps(poems))
    options = "--VOCAB_SIZE=320", "--VAL_SHARE=0.2", "--SEED=3"
    for _ in range(2):
        result = run(script, tmp_path, *options)
        assert result.returncode == 0, result.stderr
        made = HFTokenizer.load(tmp_path / SCRIPTS[script])
        path, out = tmp_path / "all_poems.json", tmp_path / "dataset.bin"
        dataset.build(path, made, out, val_share=0.2, seed=3)
        with dataset.load(out) as data:
            learnt = {int(data.poem_ids[index]) for index in range(*data.range("train"))}
        assert len(poems) - len(learnt) == 4 and "验证的 4 首不看" in result.stdout
        texts = [
            text
            for number in sorted(learnt)
            for text in (poems[number]["title"], "甲", poems[number]["para"][0])
        ]
        assert made.to_json() == train_hf(texts, 320).to_json()
    left = [poem for number, poem in enumerate(poems) if number not in learnt]
    write_poems(tmp_path, json.dumps(left))  # 训练的诗都拿走了
    result = run(script, tmp_path, *options)
    assert result.returncode == 0 and "验证的" not in result.stdout, result.stderr


def test_a_large_corpus_is_sampled_by_both(tmp_path: Path) -> None:
    """诗集大过 TOKENIZER_MB：说出取了多少，两种训练在同样的那一部分上，仍然相同。"""
    write_poems(tmp_path, json.dumps(POEMS * 40))
    size = (tmp_path / "all_poems.json").stat().st_size
    for script in SCRIPTS:
        result = run(script, tmp_path, "--VOCAB_SIZE=270", f"--TOKENIZER_MB={size / 2e6}")
        assert result.returncode == 0, result.stderr
        assert "均匀取出的 50.00%" in result.stdout
    files = [(tmp_path / name).read_bytes() for name in SCRIPTS.values()]
    assert files[0] == files[1]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["没有找到诗集", "python data_clean.py"]),
        ('[\n{"title": "a",\n "para": "x}]', ["all_poems.json", "第 3 行", "python data_clean.py"]),
        ('[{"title": "a", "para": [1], "author": "b"}]', ["第 1 首", "python data_clean.py"]),
        ("[]", ["一首诗也没有", "python data_clean.py"]),
    ],
)
def test_bad_poems_give_one_message(tmp_path: Path, script: str, content, words: list) -> None:
    if content is not None:
        write_poems(tmp_path, content)
    (tmp_path / SCRIPTS[script]).write_text("旧的", encoding="utf-8")
    result = run(script, tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert (tmp_path / SCRIPTS[script]).read_text(encoding="utf-8") == "旧的"


def test_confusing_special_token_is_one_message(tmp_path: Path) -> None:
    write_poems(tmp_path)
    result = run("hug_face_tokenizer.py", tmp_path, "--PAD=PAD")
    assert result.returncode == 1
    assert "特殊符号 'PAD'" in result.stderr
    assert "Traceback" not in result.stderr
