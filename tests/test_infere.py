"""chat()、逐步解码、控制项、连续批处理与对话命令：随机权重的小模型，各有对照。"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings

import pytest
import torch

import checkpoint
import config
import infere
import quantize
from kernels import compiler
from kernels.products import half_problem
from poems import chat_format, wording
from poems.options import merge
from support.console import UserError
from tests import plain_generate, tiny_model
from tests.conftest import ROOT
from writing import engine, origin
from writing.decoder import Decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model.save(path / "best_model.bin")
    return path


@pytest.fixture
def poet(folder, monkeypatch):
    monkeypatch.setattr(config, "WORK_DIR", str(folder))
    monkeypatch.setattr(config, "DEVICE", "cpu")
    monkeypatch.setattr(config, "DTYPE", "fp32")  # 与完整前向逐个 token 相同
    monkeypatch.setattr(config, "MAX_NEW_TOKENS", 60)
    return engine.Poet.load("", str(folder), "cpu", "fp32")


def full_forward(poet, ids):
    """不用缓存的对数几率 (V,)。"""
    with torch.no_grad():
        return poet.model(torch.tensor([ids]))[0, -1]


# ── 解码 ──────────────────────────────────────────────────────────────


def test_decoder_equals_full_forward(poet):
    ids = torch.randint(3, poet.tok.vocab_size, (40,)).tolist()
    with torch.no_grad():
        full = poet.model(torch.tensor([ids]))[0]
    decoder = Decoder(poet.model)
    cache = decoder.new_cache(2)
    assert torch.allclose(decoder.prefill(cache, 0, ids[:10]), full[9], atol=1e-4)
    for place in range(10, 40):
        logits = decoder.step(cache, [ids[place]], [place])
        assert torch.allclose(logits[0], full[place], atol=1e-4)


def test_decoder_rows_of_different_length(poet):
    ids = torch.randint(3, poet.tok.vocab_size, (40,)).tolist()
    with torch.no_grad():
        full = poet.model(torch.tensor([ids]))[0]
    decoder = Decoder(poet.model)
    cache = decoder.new_cache(3)
    for row, length in enumerate((5, 17, 9)):
        decoder.prefill(cache, row, ids[:length])
    for step in range(10):
        places = [length + step for length in (5, 17, 9)]
        logits = decoder.step(cache, [ids[place] for place in places], places)
        assert torch.allclose(logits, full[places], atol=1e-4)


def test_half_precision_weights_stay_close(poet):
    if half_problem(torch.device("cpu")):
        pytest.skip(half_problem(torch.device("cpu")))
    ids = torch.randint(3, poet.tok.vocab_size, (12,)).tolist()
    decoder = Decoder(poet.model, half=True)
    cache = decoder.new_cache(1)
    decoder.prefill(cache, 0, ids[:-1])
    logits = decoder.step(cache, ids[-1:], [len(ids) - 1])
    assert torch.allclose(logits[0], full_forward(poet, ids), atol=0.02)


@pytest.mark.parametrize("question", ["春天", "一只鸟在想方向", "abc🌙"])
def test_greedy_equals_full_forward(poet, question):
    ids = chat_format.render(poet.tok, question)
    expected = list(ids)
    stops = [poet.tok.end_id, poet.tok.pad_id]
    for _ in range(60):
        logits = full_forward(poet, expected)
        if not poet.tok.decode(expected[len(ids) :]).replace("\ufffd", "").strip():
            logits[[*stops, *poet.vocabulary.newlines()]] = -torch.inf  # 不许交白卷
        token = int(logits.argmax())
        if token in stops:
            break
        expected.append(token)
    text = poet.tok.decode(expected[len(ids) :]).replace("\ufffd", "").strip()
    assert infere.chat(question, temperature=0, repetition_penalty=1) == text


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0, "repetition_penalty": 1.5, "no_repeat_ngram": 2},
        {"temperature": 1.2, "top_k": 0, "top_p": 0.9, "min_p": 0.01, "seed": 5},
        {"temperature": 0.8, "seed": 6, "min_new_tokens": 90, "max_new_tokens": 200},
        {"seed": 6, "min_new_tokens": 200, "max_new_tokens": 200, "context": "slide"},
        {"temperature": 0, "repetition_penalty": 1.0, "frequency_penalty": 1.5},
        {"seed": 7, "presence_penalty": 2, "frequency_penalty": -0.5, "max_new_tokens": 150},
        {"seed": 8, "presence_penalty": 0.6, "frequency_penalty": 0.3, "penalize_marks": True},
        {"seed": 8, "steady_marks": False, "repetition_penalty": 1.3, "presence_penalty": 0.5},
        {"seed": 9, "max_new_tokens": 100},
    ],
)
def test_engine_equals_the_plain_generator(poet, given):
    """逐步解码的整条路径，与每步都从头前向的写法逐 token 相同。"""
    wanted = {**config.sampling(), "max_new_tokens": 40, **given}
    request = poet.request("春天的花", **wanted)
    row = [row for _, _, row in poet.poems(request)][-1]
    expected = plain_generate.generate(
        poet.model, poet.tok, request.prompt, request.options, request.seen
    )
    assert [token for token in row.tokens if token not in row.stops] == expected


def test_additive_penalties_count_the_poem_only(poet):
    """同批的别的诗、问题与规定的开头都不受影响。"""
    plain = {**config.sampling(), "frequency_penalty": 0.0, "seed": 3, "max_new_tokens": 40}
    wanted = [
        {**plain, "first_line": "春天的花", "presence_penalty": 1.0},
        plain,
        {**plain, "frequency_penalty": 2.0},
    ]
    requests = [poet.request("花", **given) for given in wanted]
    together = [each.text for each in poet.write_all(requests)]
    assert together == [poet.write_all([request])[0].text for request in requests]
    assert len(set(together)) == 3
    row = poet.row(requests[0], 3)
    spring, flower = poet.tok.encode("春")[0], poet.tok.encode("花")[0]
    assert row.minus(spring) == row.minus(flower) == 0
    row.accept(flower)
    assert row.minus(spring) == 0 and row.minus(flower) == 1.0


def test_marks_and_line_breaks_are_not_penalised(poet):
    row = poet.row(poet.request("春"), 1)
    comma, line_feed = poet.tok.encode("，")[-1], poet.tok.encode("\n")[0]
    assert not row.counts(line_feed) and not row.counts(poet.tok.end_id)
    assert row.counts(poet.tok.encode("花")[0])
    asked = poet.row(poet.request("春", penalize_marks=True), 1)
    assert asked.counts(line_feed) and asked.counts(comma)


# ── 种子、长短、上下文 ────────────────────────────────────────────────


def test_seed_fixes_the_poem(poet):
    first = infere.chat("春天", seed=7, temperature=1.2)
    assert first == infere.chat("春天", seed=7, temperature=1.2)
    others = {infere.chat("春天", seed=seed, temperature=1.2) for seed in range(5)}
    assert len(others) > 1


def test_stream_equals_chat_and_never_splits_a_character(poet):
    for seed in range(6):
        options = {"seed": seed, "temperature": 1.5, "top_k": 0}
        pieces = list(infere.chat_stream("春天", **options))
        assert "".join(pieces) == infere.chat("春天", **options)
        assert all(piece and "\ufffd" not in piece for piece in pieces)


def test_length_limits(poet):
    request = poet.request("春天", max_new_tokens=5, min_new_tokens=5, seed=1)
    rows = [row for _, _, row in poet.poems(request)]
    assert rows[-1].written == 5 and rows[-1].finish_reason == "length"


def test_stop_context_never_exceeds_the_window(poet):
    request = poet.request("春天", max_new_tokens=500, min_new_tokens=500, seed=1)
    row = [row for _, _, row in poet.poems(request)][-1]
    assert row.finish_reason == "length"
    assert len(row.prompt) + len(row.tokens) == poet.config.max_seq_len


def test_slide_context_goes_on(poet):
    options = {"max_new_tokens": 300, "min_new_tokens": 300, "seed": 1, "context": "slide"}
    row = [row for _, _, row in poet.poems(poet.request("春天", **options))][-1]
    assert row.written == 300 and row.place < poet.config.max_seq_len


def test_candidates_are_ranked_and_include_the_single_poem(poet):
    single = infere.chat("春天", seed=3, temperature=1.0)
    several = infere.chat("春天", seed=3, temperature=1.0, n=4)
    assert isinstance(several, list) and len(several) == 4 and single in several
    assert several == infere.chat("春天", seed=3, temperature=1.0, n=4)


# ── 控制项 ────────────────────────────────────────────────────────────


def lines_of(text):
    return wording.verse_lines(text)


@pytest.mark.parametrize("heads", ["春夏秋冬", "龘鸟A月", "山", "🌙花"])
@pytest.mark.parametrize("seed", range(3))
def test_acrostic_is_guaranteed(poet, heads, seed):
    for options in ({}, {"temperature": 0}, {"temperature": 2.0, "top_k": 0}):
        text = infere.chat("季节", acrostic=heads, seed=seed, max_new_tokens=90, **options)
        assert "".join(line[0] for line in text.split("\n") if line.strip()) == heads


@pytest.mark.parametrize("pasted", ["\ufeff春天\u200b", "春\u200d天\u00a0", "\u3000春天\r\n"])
def test_what_the_corpus_never_has_is_taken_off_the_question(poet, pasted):
    clean = poet.request("春天", first_line="花", author="海子")
    found = poet.request(pasted, first_line="\u200b花", author="海\ufe0f子")
    assert (found.prompt, found.prefix, found.seen) == (clean.prompt, clean.prefix, clean.seen)
    with pytest.raises(UserError, match="问题是空的"):
        poet.request("\u200b\ufeff")


def test_controls_win_over_other_bans(poet):
    options = {"no_repeat_ngram": 1, "min_new_tokens": 60, "max_new_tokens": 60, "seed": 1}
    text = infere.chat("季节", acrostic="春春春春", **options)
    assert [line[0] for line in lines_of(text)] == list("春春春春")


def test_diverged_model(tmp_path, poet):
    state = tiny_model.save(tmp_path / "best_model.bin")
    state["weights"]["norm.weight"].fill_(float("nan"))
    checkpoint.save(tmp_path / "best_model.bin", state)
    with pytest.raises(UserError, match="发散"):
        infere.chat("春天", checkpoint=tmp_path / "best_model.bin")


@pytest.mark.parametrize("lines", [1, 2, 5])
def test_number_of_lines(poet, lines):
    for seed in range(3):
        text = infere.chat("春天", lines=lines, seed=seed, max_new_tokens=90, temperature=1.0)
        assert len(lines_of(text)) == lines


def test_first_line(poet):
    text = infere.chat("春天", first_line="月亮照在窗前", seed=1)
    assert text.split("\n")[0] == "月亮照在窗前"


def test_length_is_near(poet):
    for seed in range(4):
        text = infere.chat("春天", length=20, seed=seed, max_new_tokens=110, temperature=1.0)
        assert 14 <= wording.count_chars(text) <= 34


def test_rhyme(tmp_path, poet, monkeypatch):
    pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    from writing import rhyme

    monkeypatch.setattr(config, "SAMPLER", "readme")  # 量的是押韵，不是抽样

    tiny_model.save(tmp_path / "best_model.bin", whole_chars=True)
    monkeypatch.setattr(config, "WORK_DIR", str(tmp_path))
    shares = {}
    for wanted in ("江阳", None):
        ends = []
        for seed in range(3):
            options = {"seed": seed, "lines": 4, "max_new_tokens": 60, "rhyme": wanted}
            text = infere.chat("远方", **options)
            assert text == "".join(infere.chat_stream("远方", **options))
            assert len(lines_of(text)) == 4
            ends += [rhyme.line_group(line) for line in lines_of(text)]
        shares[wanted] = ends.count("江阳") / len(ends)
    assert shares["江阳"] > 0.6 > 0.4 > shares[None]


def test_rhyme_follows_the_first_line(tmp_path, poet, monkeypatch):
    pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    from writing import rhyme

    monkeypatch.setattr(config, "SAMPLER", "readme")  # 量的是押韵，不是抽样
    tiny_model.save(tmp_path / "best_model.bin", whole_chars=True)
    monkeypatch.setattr(config, "WORK_DIR", str(tmp_path))
    options = {"lines": 4, "first_line": "它飞过海洋", "rhyme": True, "max_new_tokens": 60}
    lines = lines_of(infere.chat("远方", seed=2, **options))
    assert [rhyme.line_group(line) for line in lines].count("江阳") >= 3


def test_rhyme_groups():
    pytest.importorskip("pypinyin", reason="没有安装 pypinyin")
    from writing import rhyme

    pairs = ["光方", "花霞", "天边", "心云", "风红", "诗知", "月雪", "海来", "流手", "高桥"]
    assert all(rhyme.group(a) == rhyme.group(b) is not None for a, b in pairs)
    assert rhyme.group("光") != rhyme.group("风") and rhyme.group("a") is None
    assert rhyme.line_group("我在远方。”") == "江阳" and rhyme.line_group("abc") is None


def test_rhyme_without_pypinyin(poet, monkeypatch):
    from writing import rhyme

    rhyme.group.cache_clear()
    monkeypatch.setitem(sys.modules, "pypinyin", None)
    with pytest.raises(UserError, match="pip install pypinyin"):
        infere.chat("春天", rhyme=True)
    rhyme.group.cache_clear()


def test_untrained_control_is_warned_about(tmp_path, monkeypatch):
    tiny_model.save(tmp_path / "best_model.bin", kinds=["title"])
    monkeypatch.setattr(config, "WORK_DIR", str(tmp_path))
    with pytest.warns(UserWarning, match="没有练过"):
        infere.chat("春天", acrostic="春天", max_new_tokens=30, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infere.chat("春天", max_new_tokens=5, seed=1)


# ── 坏输入 ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("question", "options", "words"),
    [
        ("", {}, "空的"),
        ("  \n", {}, "空的"),
        (None, {}, "空的"),
        (3.5, {}, "应当是文字"),
        (["春"], {}, "应当是文字"),
        ("春\x00天", {}, "控制字符"),
        ("春\x1b[2J", {}, "控制字符"),
        ("很长" * 500, {}, "128"),
        ("长" * 10**6, {}, "太长"),
        ("春", {"temperature": -1}, "≥ 0 且 ≤ 10"),
        ("春", {"temperature": float("nan")}, "≥ 0 且 ≤ 10"),
        ("春", {"temperature": "热"}, "应当是数"),
        ("春", {"top_k": 1.5}, "整数"),
        ("春", {"top_p": 0}, "> 0 且 ≤ 1"),
        ("春", {"min_p": 2}, "≤ 1"),
        ("春", {"repetition_penalty": 0}, "≥ 0.1"),
        ("春", {"max_new_tokens": 0}, "≥ 1"),
        ("春", {"n": 0}, "≥ 1"),
        ("春", {"lines": 0}, "≥ 1 且 ≤ 60"),
        ("春", {"length": 1}, "≥ 4"),
        ("春", {"acrostic": "春夏", "lines": 3}, "不符"),
        ("春", {"acrostic": "春 夏"}, "不含空白"),
        ("春", {"acrostic": "春夏秋冬", "max_new_tokens": 10}, "max_new_tokens"),
        ("春", {"acrostic": "春夏", "first_line": "山"}, "不符"),
        ("春", {"context": "jump"}, "stop"),
        ("春", {"rhyme": "xyz"}, "江阳"),
    ],
)
def test_bad_input(poet, question, options, words):
    with pytest.raises(UserError, match=words):
        infere.chat(question, **options)


def test_unknown_option(poet):
    with pytest.raises(UserError, match="temperature"):
        infere.chat_stream("春", temprature=1)


def test_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "WORK_DIR", str(tmp_path))
    with pytest.raises(UserError, match="train_gpt"):
        infere.chat("春天")


def test_damaged_model(tmp_path, monkeypatch):
    path = tmp_path / "best_model.bin"
    tiny_model.save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    monkeypatch.setattr(config, "WORK_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"损坏|校验"):
        infere.chat("春天")


@pytest.mark.parametrize("name", ["author", "first_line", "acrostic", "rhyme"])
def test_lone_surrogates_are_refused(poet, name):
    for question, options in (("春\ud800天", {}), ("春", {name: "\udc8d"})):
        with pytest.raises(UserError, match="代理字符"):
            infere.chat(question, **options)


# ── 载入 ──────────────────────────────────────────────────────────────


def test_import_loads_nothing(tmp_path):
    code = "import sys, infere; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_model_is_loaded_once_and_reloaded_when_it_changes(tmp_path):
    path = tmp_path / "best_model.bin"
    tiny_model.save(path, seed=1)
    first = engine.Poet.load("", str(tmp_path))
    assert engine.Poet.load("", str(tmp_path)) is first
    tiny_model.save(path, seed=2, note="另一次训练")
    assert engine.Poet.load("", str(tmp_path)) is not first


def test_compiled_kernel_is_chosen_by_the_settings(folder, monkeypatch, library):
    """COMPILE 交给 compiler.pick；DTYPE=fp32 时逐位照训练用的模型，不用它。"""
    asked = []
    monkeypatch.setattr(compiler, "pick", lambda choice: asked.append(choice) or library)
    for name, value in {"WORK_DIR": str(folder), "DEVICE": "cpu", "COMPILE": "on"}.items():
        monkeypatch.setattr(config, name, value)
    for dtype, wanted in (("auto", True), ("fp16", True), ("fp32", False)):
        monkeypatch.setattr(config, "DTYPE", dtype)
        assert infere.chat("春天", seed=1, max_new_tokens=9)
        poet = engine.Poet.load("", str(folder), "cpu", dtype, "on")
        assert (poet.decoder.native is not None) == wanted
    assert asked == ["on", "on"]


def test_chat_reads_config_at_call_time(poet, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--TEMPERATURE=oops"])
    monkeypatch.setattr(config, "MAX_NEW_TOKENS", 3)
    short = infere.chat("春天", temperature=0)
    monkeypatch.setattr(config, "MAX_NEW_TOKENS", 40)
    assert len(infere.chat("春天", temperature=0)) > len(short)


# ── 连续批处理 ────────────────────────────────────────────────────────

REQUESTS = [
    ("春天", {"seed": 1}),
    ("一只鸟在想方向", {"seed": 2, "temperature": 1.3, "top_k": 0, "top_p": 0.9}),
    ("月亮", {"seed": 3, "temperature": 0}),
    ("故乡", {"seed": 4, "acrostic": "春夏秋冬", "max_new_tokens": 70}),
    ("雪", {"seed": 5, "max_new_tokens": 7}),
    ("河", {"seed": 6, "lines": 3, "repetition_penalty": 1.0}),
    ("风", {"seed": 7, "no_repeat_ngram": 2, "min_p": 0.05}),
]


def test_engine_equals_chat(poet):
    machine = infere.Engine(poet, max_rows=3)
    try:
        usual = config.sampling()
        handles = [machine.submit(text, **merge(usual, given)) for text, given in REQUESTS]
        results, threads = {}, []
        for index, handle in enumerate(handles):
            read = threading.Thread(
                target=lambda i=index, h=handle: results.update({i: "".join(h)})
            )
            read.start()
            threads.append(read)
        for read in threads:
            read.join(timeout=60)
        for index, (text, given) in enumerate(REQUESTS):
            assert results[index] == infere.chat(text, **given)
            assert handles[index].finish_reason in ("stop", "length")
            assert handles[index].completion_tokens > 0
        assert handles[4].completion_tokens <= 7
        assert handles[0].prompt_tokens == len(chat_format.render(poet.tok, "春天"))
    finally:
        machine.close()


def test_engine_cancels_and_goes_on(poet):
    machine = infere.Engine(poet, max_rows=2)
    long = {**config.sampling(), "max_new_tokens": 110, "min_new_tokens": 110, "seed": 1}
    handles = [machine.submit("春天", **long) for _ in range(3)]
    handles[0].cancel()
    handles[2].cancel()
    "".join(handles[0]), "".join(handles[2])
    assert handles[0].finish_reason == handles[2].finish_reason == "cancelled"
    assert "".join(handles[1]) == infere.chat("春天", **long)
    with pytest.raises(UserError):
        machine.submit("")
    machine.close()
    with pytest.raises(UserError):
        machine.submit("春天")


# ── 对话 ──────────────────────────────────────────────────────────────


def talk(*lines):
    """把几行依次输给对话，返回屏幕上的全部文字。"""
    said, pending = [], list(lines)

    def ask(_):
        if not pending:
            raise EOFError
        line = pending.pop(0)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line

    repl = infere.Repl(ask, said.append)
    repl.run()
    return "".join(said), repl


def test_repl_answers_and_exits(poet):
    text, _ = talk("/种子 7", "春天", "exit", "不会读到")
    assert text.startswith("Chat with GPT (type 'exit' to quit)\n")
    assert "回答：" + infere.chat("春天", seed=7) in text and "不会" not in text


def test_repl_commands(poet):
    text, repl = talk("/温度 0.9", "/前k 5", "/藏头 春夏", "/温度", "/历史", "/选项", "/帮助")
    assert repl.options == {"top_k": 5, "acrostic": "春夏"}
    assert "/重来" in text
    text, repl = talk("/温度 99", "/温度 热", "/没有 1", "", "/重来")
    assert "≥ 0 且 ≤ 10" in text and "应当是数" in text and "/帮助" in text and not repl.options


def test_repl_retry_and_interrupt(poet):
    text, repl = talk("/种子 3", "春天", "/重来", KeyboardInterrupt, "/几首 2", "春天")
    assert text.count(infere.chat("春天", seed=3)) >= 2
    assert "回答 2：" in text and repl.history == ["春天", "春天"]


def test_rewrite_and_titles(poet):
    poem = infere.chat("春天", seed=3, lines=4)
    found = infere.rewrite("春天", poem, 2, n=2, seed=5, lines=4)
    old, new = (text.split("\n") for text in (poem, found))
    assert [*old[:1], *old[2:]] == [*new[:1], *new[2:]] and old[1] != new[1]
    assert found == infere.rewrite("春天", poem, 2, n=2, seed=5, lines=4)
    names = infere.titles("一只鸟在想方向\n天空很长。\n夜色苍茫", n=2)
    assert len(names) == 2 and names == infere.titles("一只鸟在想方向\n天空很长。\n夜色苍茫", n=2)
    with pytest.raises(UserError, match="没有第 9 行"):
        infere.rewrite("春天", poem, 9)
    with pytest.raises(UserError, match="最接近的是 rhyme"):
        infere.rewrite("春天", poem, 1, rhime=True)


def test_repl_rewrites_the_last_poem_and_names_it(poet):
    text, repl = talk(
        "/改 1", "/题目", "/种子 3", "/行数 3", "春天", "/改 2", "/改", "/改 9", "/题目"
    )
    assert text.count("还没有写过诗") == 2 and "要改第几行" in text and "没有第 9 行" in text
    poem = infere.chat("春天", seed=3, lines=3)
    assert repl.poem == infere.rewrite("春天", poem, 2, seed=3, lines=3)
    assert f"回答：{repl.poem}\n" in text
    assert "题目：" + "　".join(infere.titles(repl.poem)) in text


def test_repl_interrupt_stops_the_poem_only(poet, monkeypatch):
    def interrupted(*args, **kwargs):
        yield "春"
        raise KeyboardInterrupt

    monkeypatch.setattr(infere, "chat_stream", interrupted)
    text, _ = talk("春天", "/历史")
    assert "春\n（停下了）" in text and "1. 春天" in text


def test_repl_survives_a_narrow_console(poet, folder):
    done = subprocess.run(
        [sys.executable, "infere.py", f"--WORK_DIR={folder}", "--DEVICE=cpu"],
        input="/种子 1\n春天\nexit\n".encode("gbk"),
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "gbk"},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode("gbk", "replace")
    assert "输入：" in done.stdout.decode("gbk")


def test_script_without_its_model(tmp_path):
    done = subprocess.run(
        [sys.executable, "infere.py", f"--WORK_DIR={tmp_path}", "--CHECKPOINT=mine.bin"],
        capture_output=True,
        cwd=ROOT,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 1 and "没有找到模型" in done.stderr
    assert "Traceback" not in done.stderr


def test_line_missing_in_config_is_named(monkeypatch):
    for name in ("TOP_K", "SEED"):
        monkeypatch.delattr(config, name)
    with pytest.raises(UserError, match=r"缺少 SEED（默认 42）.*缺少 TOP_K"):
        infere.chat("春天")


def test_no_model_names_the_whole_folder_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "WORK_DIR", ".")
    monkeypatch.setattr(infere, "_HERE", tmp_path / "project")
    with pytest.raises(UserError, match="checkpoint=") as caught:
        infere._poet()
    assert str(tmp_path) in str(caught.value) and "config.WORK_DIR" in str(caught.value)
    tiny_model.save(_made(tmp_path / "project") / "best_model.bin")
    assert infere._poet().path == (tmp_path / "project" / "best_model.bin").resolve()


def _made(folder):
    folder.mkdir()
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="没有 fork")
def test_chat_works_after_fork(folder):
    code = f"""
import multiprocessing, os, config
config.WORK_DIR, config.DEVICE = {str(folder)!r}, "cpu"
from infere import chat
def job(seed):
    return chat("春天", seed=seed, max_new_tokens=8)
first = job(1)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(job, [1, 2])[0] == first)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.stdout.strip() == "True", done.stderr


# ── 随附的模型 ────────────────────────────────────────────────────────


@pytest.fixture
def boxed(poet, tmp_path, monkeypatch):
    """WORK_DIR 是空的，随附的是量化过的小模型；返回 WORK_DIR。"""
    box = tmp_path / "weights" / "poem.bin"
    box.parent.mkdir()
    quantize.quantize_file(poet.path, box)
    monkeypatch.setattr(checkpoint, "BOX_FILE", box)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(config, "WORK_DIR", str(empty))
    return empty


def test_the_box_writes_when_there_is_no_model(boxed, capsys):
    poem = infere.chat("春天", seed=1)
    assert poem and infere.chat("春天", seed=1) == poem
    said = capsys.readouterr().err
    assert said.count("用随附的 weights/poem.bin") == 1 and str(boxed) in said


def test_ones_own_model_comes_before_the_box(boxed, capsys):
    tiny_model.save(boxed / "best_model.bin")
    assert infere.chat("春天", seed=1) and "随附" not in capsys.readouterr().err
    with pytest.raises(UserError, match="没有找到模型"):
        infere.chat("春天", checkpoint="nowhere.bin")


def test_training_starts_from_the_box(boxed):
    model = origin.open_model(str(checkpoint.BOX_FILE), str(boxed))
    assert all(weight.dtype == torch.float32 for weight in model["weights"].values())
