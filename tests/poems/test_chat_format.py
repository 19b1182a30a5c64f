"""chat_format.py：对话格式逐字对照手写的样子，长诗拆分不漏不重，系统一段只在这里加。"""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from poems import chat_format
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
        chat_format.body(POEM),
        "user\nassistant\n写一首诗，题目是《清早》",
        "风吹过来。\n\n雨停了，",
    ]
    return tiny_tokenizer.train(texts * 3, 420)


def spell(tok, ids):
    """ids → 文字，特殊符号写出名字：不经过 chat_format.py 的对照。"""
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
    [(ids, mask)] = chat_format.documents(tok, "清早", chat_format.body(POEM), 512)
    by_hand = (
        "<|im_start|>user\n清早\n<|im_end|>\n<|im_start|>assistant\n"
        "月亮落在河里\n天还没有亮\n\n卖豆浆的人推开了雾\n月亮跟着他走<|im_end|>"
    )
    assert spell(tok, ids) == by_hand
    # tokenizers 自己认特殊符号、按它们切开再编码，应得到同样的编号
    assert Tokenizer.from_str(tok.to_json()).encode(by_hand).ids == ids
    assert len(mask) == len(ids)


def test_only_body_and_last_end_are_trained(tok):
    text = chat_format.body(POEM)
    [(ids, mask)] = chat_format.documents(tok, "清早", text, 512)
    head = chat_format.render(tok, "清早")
    assert mask == [0] * len(head) + [1] * (len(ids) - len(head))
    assert trained_ids([(ids, mask)]) == [*tok.encode(text), tok.end_id]


def test_render_is_what_training_saw(tok):
    [(ids, _)] = chat_format.documents(tok, "写一首诗", "风", 512)
    head = chat_format.render(tok, "写一首诗")
    assert ids[: len(head)] == head
    assert spell(tok, head).endswith("<|im_start|>assistant\n")


def test_lookalikes_in_text_never_become_special(tok):
    [(ids, _)] = chat_format.documents(tok, LOOKALIKES, LOOKALIKES, 512)
    assert [token for token in ids if token < 3] == [1, 2, 1, 2]
    assert spell(tok, ids).count("<|padding|>") == 2


def test_a_poem_that_just_fits_is_one_document(tok):
    [(ids, _)] = chat_format.documents(tok, "清早", LINES, 1 << 20)
    assert len(chat_format.documents(tok, "清早", LINES, len(ids))) == 1
    assert len(chat_format.documents(tok, "清早", LINES, len(ids) - 1)) == 2


# ── 长诗 ──────────────────────────────────────────────────────────────

LINES = "\n".join(f"第{i}行写的是风吹过来又吹过去" for i in range(60))
GIANT = "没有换行的长长一行" * 80
STANZAS = "\n\n".join(["风\n雨\n雪"] * 50)


@pytest.mark.parametrize("text", [LINES, GIANT, STANZAS, "a" * 700, "😀" * 200])
@pytest.mark.parametrize("max_len", [64, 97, 200])
def test_long_poem_trains_every_token_exactly_once(tok, text, max_len):
    head = chat_format.render(tok, "清早")
    parts = chat_format.documents(tok, "清早", text, max_len)
    assert len(parts) > 1
    assert trained_ids(parts) == [*tok.encode(text), tok.end_id]
    for number, (ids, mask) in enumerate(parts):
        assert len(ids) == len(mask) <= max_len
        assert ids[: len(head)] == head
        assert (ids[-1] == tok.end_id) == (number == len(parts) - 1)
        assert sum(mask) > 0
        assert mask == sorted(mask)  # 先是不训练的，后是训练的


def test_later_parts_open_with_last_lines_of_the_part_before(tok):
    parts = chat_format.documents(tok, "清早", LINES, 200)
    head = len(chat_format.render(tok, "清早"))
    for (before, _), (ids, mask) in zip(parts, parts[1:]):
        context = ids[head : mask.index(1)]
        assert context and before[-len(context) :] == context
        text = tok.decode(context)
        assert text.startswith("第") and text.endswith("\n")  # 整行地重述，断在行尾


def test_giant_line_is_cut_between_characters(tok):
    for ids, mask in chat_format.documents(tok, "清早", "龘" * 300, 64):
        text = tok.decode([token for token, m in zip(ids, mask) if m and token > 2])
        assert set(text) == {"龘"}


def test_prompt_longer_than_context_is_cut(tok):
    title = "很长的题目" * 200
    text = chat_format.body(POEM)
    parts = chat_format.documents(tok, title, text, 120)
    assert all(len(ids) <= 120 for ids, _ in parts)
    assert trained_ids(parts) == [*tok.encode(text), tok.end_id]
    assert "<|im_start|>user\n很长的题目" in spell(tok, parts[0][0])
    assert len(chat_format.render(tok, title, 120)) <= 60
    assert chat_format.render(tok, "清早", 512) == chat_format.render(tok, "清早")


def test_hopelessly_short_context_is_explained(tok):
    with pytest.raises(UserError, match="MAX_SEQ_LEN"):
        chat_format.documents(tok, "清早", LINES, 12)


def test_odd_texts_do_not_crash(tok):
    for text in ("", "\n", "\x00", "\ud800坏", "👨‍👩‍👧", " " * 50):
        for ask in ("", "\n\n", "\ud800"):
            parts = chat_format.documents(tok, ask, text, 64)
            assert trained_ids(parts) == [*tok.encode(text), tok.end_id]


# ── 别的工具的模板、系统一段 ──────────────────────────────────────────

MARKS = ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize("system", ["", "你是诗人，\n只写'诗'"])
def test_one_description_of_turns(tok, monkeypatch, system):
    """训练、提问、Jinja 模板、Ollama 模板写出同样的开头，有没有系统一段都一样。"""
    monkeypatch.setattr(chat_format, "SYSTEM", system)
    opening = f"<|im_start|>system\n{system}\n<|im_end|>\n" if system else ""
    by_hand = f"{opening}<|im_start|>user\n清早\n<|im_end|>\n<|im_start|>assistant\n"
    assert chat_format.asked("清早", *MARKS) == by_hand
    head = chat_format.render(tok, "清早")
    assert Tokenizer.from_str(tok.to_json()).encode(by_hand).ids == head
    for ids, mask in chat_format.documents(tok, "清早", LINES, 200):
        assert ids[: len(head)] == head and not any(mask[: len(head)])
    assert by_hand.replace("清早", "{{ $m.Content }}") in chat_format.ollama_template(*MARKS)
    template = pytest.importorskip("jinja2").Template(chat_format.jinja_template(*MARKS))
    messages = [{"role": "user", "content": "旧的"}, {"role": "assistant", "content": "风"}]
    messages.append({"role": "user", "content": "清早"})
    assert template.render(messages=messages, add_generation_prompt=True) == by_hand
    answered = [*messages, {"role": "assistant", "content": "雨"}]
    assert template.render(messages=answered) == by_hand + "雨<|im_end|>"


def test_document_is_the_whole_poem(tok):
    question, answer = tok.encode(chat_format.question_text("清早")), tok.encode(LINES)
    [whole] = chat_format.documents(tok, "清早", LINES, 1 << 20)
    assert chat_format.ChatFormat(tok).document(question, answer) == whole
