"""导出的目录在 transformers 里：成批、pipeline、分段的消息、chat() 的惩罚；添过 token 再导回。"""

from __future__ import annotations

import re

import pytest

from support.console import UserError
from tests import tiny_model
from tokenizer import BPETokenizer, HFTokenizer
from writing import gguf_file, hugging_face
from writing.poet import Poet

pytest.importorskip("safetensors", reason="没有安装 safetensors")
transformers = pytest.importorskip(
    "transformers", minversion="4.51", reason="没有安装 transformers 4.51 或更新的版本"
)

SAMPLING = {
    "temperature": 0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.4,
    "no_repeat_ngram": 0,
    "max_new_tokens": 24,
}
QUESTIONS = ("灯", "写一首诗，题目是《春天》，8行的诗", "一只鸟在想方向")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("model") / "tiny.bin", seed=3)


@pytest.fixture(scope="module")
def folder(state, tmp_path_factory):
    made = tmp_path_factory.mktemp("hf")
    hugging_face.write(made, state, SAMPLING)
    return made


@pytest.fixture(scope="module")
def tok(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def asking(question):
    return [{"role": "user", "content": question}]


def write(tok, model, chats):
    inputs = tok.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )
    written = model.generate(**inputs, do_sample=False, max_new_tokens=24)
    length = inputs["input_ids"].shape[1]
    return [tok.decode(row[length:], skip_special_tokens=True) for row in written]


def test_a_batch_gives_what_each_gives_alone(tok, model):
    chats = [asking(question) for question in QUESTIONS]
    assert tok.padding_side == "left"
    assert write(tok, model, chats) == [write(tok, model, [chat])[0] for chat in chats]


def test_pipeline_and_save_pretrained(tok, model, tmp_path):
    expected = write(tok, model, [asking("灯")])
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.padding_side == "left" and write(again, loaded, [asking("灯")]) == expected
    pipe = transformers.pipeline("text-generation", model=loaded, tokenizer=again)
    answer = pipe(asking("灯"), do_sample=False, max_new_tokens=24)
    assert answer[0]["generated_text"][-1] == {"role": "assistant", "content": expected[0]}


def test_content_parts_are_lines(tok):
    parts = [{"type": "text", "text": "春"}, {"type": "text", "text": "天"}]
    render = tok.apply_chat_template
    assert render(asking(parts), tokenize=False) == render(asking("春\n天"), tokenize=False)


# ── 惩罚 ──────────────────────────────────────────────────────────────


def test_the_formats_say_no_penalty_they_cannot_say_right(state):
    assert "repetition_penalty" not in hugging_face.generation_config(SAMPLING)
    text = gguf_file.modelfile(state["tokenizer"], 128, SAMPLING)
    assert "PARAMETER repeat_penalty 1.0\n" in text and "PARAMETER repeat_last_n 0\n" in text


def test_the_penalty_of_the_card_is_that_of_chat(state, folder, monkeypatch):
    """README.md 里的两段代码照抄下来运行，写出的与 chat() 逐 token 相同。"""
    card = (folder / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(folder)
    found = {}
    for code in re.findall(r"```python\n(.*?)```", card, flags=re.S):
        exec(code, found)
    tok = HFTokenizer.from_json(state["tokenizer"])
    network = tiny_model.model(tok.vocab_size, seed=3)
    poet = Poet(network, tok)
    plain, wanted = [], []
    for penalty, out in ((1.0, plain), (1.4, wanted)):
        request = poet.request(
            "一只鸟在想方向", temperature=0, repetition_penalty=penalty, max_new_tokens=24
        )
        out += [row for _, _, row in poet.poems(request)][-1].tokens
    assert found["output"][0, found["start"] :].tolist() == wanted != plain


# ── 添过 token 的目录 ─────────────────────────────────────────────────


def with_added(folder, target, rows=None, **added):
    tok = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tok.add_tokens(added.get("words", []))
    tok.add_tokens(added.get("special", []), special_tokens=True)
    model.resize_token_embeddings(len(tok) if rows is None else rows)
    model.save_pretrained(target)
    tok.save_pretrained(target)
    return model, tok


def test_added_tokens_are_imported(folder, state, tmp_path):
    model, theirs = with_added(folder, tmp_path, words=["<新词>"], special=["<|sep|>"])
    said = []
    back = hugging_face.read(tmp_path, said.append)
    tok = HFTokenizer.from_json(back["tokenizer"])
    before = state["model_config"]["vocab_size"]
    assert tok.vocab_size == back["model_config"]["vocab_size"] == before + 2 == len(theirs)
    assert "<新词>" in said[0] and "<|sep|>" in said[0]
    assert tok.decode([before]) == "<新词>" and tok.decode([before + 1]) == ""
    assert tok.encode("看<新词>") == BPETokenizer.from_json(back["tokenizer"]).encode("看<新词>")
    embed = model.get_input_embeddings().weight
    assert back["weights"]["embed.weight"].equal(embed)
    hugging_face.write(tmp_path, back, SAMPLING)
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path)) == before + 2


def test_rows_without_tokens_are_left_out(folder, state, tmp_path):
    size = state["model_config"]["vocab_size"]
    with_added(folder, tmp_path, rows=size + 7)
    said = []
    back = hugging_face.read(tmp_path, said.append)
    assert back["model_config"]["vocab_size"] == size and "7 行" in said[0]
    assert back["weights"]["embed.weight"].equal(state["weights"]["embed.weight"])


def test_tokens_without_rows_are_refused(folder, state, tmp_path):
    with_added(folder, tmp_path, rows=state["model_config"]["vocab_size"], words=["<新词>"])
    with pytest.raises(UserError, match="resize_token_embeddings"):
        hugging_face.read(tmp_path)


def test_an_added_copy_of_a_word_is_named(folder, tmp_path):
    with_added(folder, tmp_path, words=["春"])
    with pytest.raises(UserError, match="春"):
        hugging_face.read(tmp_path)
