"""导出：对照 transformers、llama.cpp 这两个独立实现，以及导回后权重不变。"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

import checkpoint
import config
import export
from gpt import GPT, GPTConfig
from infere import chat
from poems import chat_format
from support import files
from support.console import UserError
from tokenizer import HFTokenizer
from writing import gguf_file, hugging_face

ROOT = Path(__file__).resolve().parent.parent
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QUESTION = "一只鸟在想方向"
TEXTS = (
    "春天，春天！\n\n 两个  空格",
    "Don't stop 2024年１２月 — café",
    "\r\n\t制表 ，。！？…\n \n",
    "😀👨‍👩‍👧 𠮷野家 ﷽ e\u0301",
    "  前后空白  ",
)
SAMPLING = {
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.4,
    "no_repeat_ngram": 0,
    "max_new_tokens": 400,
}


@pytest.fixture(scope="module")
def poems():
    return json.loads((ROOT / "sample_poems.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer_json(poems):
    """DESIGN 规定的分词器格式，直接用 tokenizers 库训练。"""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = (config.PAD, config.IM_START, config.IM_END)
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=[AddedToken(name, special=True) for name in names],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(("\n\n".join(poem["para"]) for poem in poems[:60]), trainer)
    return tokenizer.to_str()


def random_model(**shape):
    """权重全部随机（起初为零的输出投影也是）且幅度够大的小模型，贪心结果没有并列。"""
    torch.manual_seed(3)
    model = GPT(GPTConfig(**{"vocab_size": 800, "max_seq_len": 256, **shape}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5)
            elif name == "embed.weight":
                weight.normal_(std=0.3)
            else:
                weight.normal_(std=weight.size(1) ** -0.5)
    return model.eval()


SHAPE = {"dim": 64, "n_head": 4, "ff": 96, "n_block": 3, "rope_theta": 5000.0}


@pytest.fixture(scope="module")
def model():
    return random_model(**SHAPE)


@pytest.fixture(scope="module")
def state(model, tokenizer_json):
    return {
        "version": checkpoint.VERSION,
        "model_config": model.config.to_dict(),
        "weights": checkpoint.weights_of(model),
        "optimizer": None,
        "scaler": None,
        "position": {},
        "best": {},
        "tokenizer": tokenizer_json,
        "prompt_kinds": ["title", "author"],
        "config": {},
        "dataset": "",
    }


@pytest.fixture(scope="module")
def hf_folder(state, tmp_path_factory):
    pytest.importorskip("safetensors", reason="没有安装 safetensors")
    folder = tmp_path_factory.mktemp("hf")
    hugging_face.write(folder, state, SAMPLING)
    return folder


@pytest.fixture(scope="module")
def transformers():
    reason = "没有安装 transformers 4.51 或更新的版本（Qwen3 从它开始）"
    return pytest.importorskip("transformers", minversion="4.51", reason=reason)


@pytest.fixture(scope="module")
def hf_model(transformers, hf_folder):
    return transformers.AutoModelForCausalLM.from_pretrained(hf_folder).eval()


@pytest.fixture(scope="module")
def hf_tokenizer(transformers, hf_folder):
    return transformers.AutoTokenizer.from_pretrained(hf_folder)


@pytest.fixture(scope="module")
def reference(tokenizer_json):
    """独立的参照：tokenizers 库，特殊符号照它的习惯识别。"""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(tokenizer_json)


def chat_text(question):
    return f"{config.IM_START}user\n{question}\n{config.IM_END}\n{config.IM_START}assistant\n"


@torch.no_grad()
def greedy(model, ids, count):
    """逐个取最大的 token；同时返回各步第一名与第二名的差距的最小值。"""
    ids, gaps = list(ids), []
    for _ in range(count):
        top = model(torch.tensor([ids]))[0, -1].topk(2)
        gaps.append(float(top.values[0] - top.values[1]))
        ids.append(int(top.indices[0]))
    return ids[-count:], min(gaps)


# ── 权重对照 ──────────────────────────────────────────────────────────


def test_weight_mapping_round_trip(model):
    weights = checkpoint.weights_of(model)
    tensors = hugging_face.to_hf(weights, model.config)
    assert tensors["model.layers.1.self_attn.k_proj.weight"].equal(
        weights["blocks.1.attn.qkv.weight"][64:128]
    )
    back = hugging_face.from_hf(tensors, model.config)
    assert back.keys() == weights.keys()
    assert all(back[name].equal(weights[name]) for name in weights)


def test_missing_or_misshapen_weights_are_named(model):
    tensors = hugging_face.to_hf(checkpoint.weights_of(model), model.config)
    wrong = dict(tensors)
    wrong["model.norm.weight"] = torch.ones(3)
    with pytest.raises(UserError, match=r"norm\.weight"):
        hugging_face.from_hf(wrong, model.config)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    with pytest.raises(UserError, match=r"layers\.2\.mlp\.up_proj"):
        hugging_face.from_hf(tensors, model.config)


# ── transformers ──────────────────────────────────────────────────────


def test_transformers_logits_on_twenty_poems(model, hf_model, hf_tokenizer, poems):
    for poem in poems[:20]:
        text = chat_text(poem["title"]) + "\n\n".join(poem["para"])
        ids = torch.tensor([hf_tokenizer(text)["input_ids"][:256]])
        with torch.no_grad():
            difference = (model(ids) - hf_model(ids).logits).abs().max()
        assert difference < 1e-4


def test_transformers_greedy_200_tokens(model, hf_model, hf_tokenizer):
    ids = hf_tokenizer(chat_text(QUESTION), return_tensors="pt")
    ours, gap = greedy(model, ids["input_ids"][0].tolist(), 200)
    assert gap > 1e-3, "参照模型有并列，换一个随机种子"
    theirs = hf_model.generate(
        **ids,
        do_sample=False,
        max_new_tokens=200,
        min_new_tokens=200,
        eos_token_id=-1,
        repetition_penalty=1.0,
    )
    assert theirs[0, -200:].tolist() == ours


def test_transformers_uses_our_tokenizer_settings(hf_tokenizer, reference, poems):
    texts = [*TEXTS, *("\n\n".join(poem["para"]) for poem in poems)]
    for text in texts:
        ids = hf_tokenizer(text)["input_ids"]
        assert ids == reference.encode(text).ids
        assert hf_tokenizer.decode(ids) == text
    assert (hf_tokenizer.pad_token_id, hf_tokenizer.eos_token_id) == (0, 2)
    assert hf_tokenizer.model_max_length == 256


def test_chat_template_is_the_training_format(hf_tokenizer):
    messages = [{"role": "user", "content": QUESTION}]
    render = hf_tokenizer.apply_chat_template
    assert render(messages, tokenize=False, add_generation_prompt=True) == chat_text(QUESTION)
    answered = [*messages, {"role": "assistant", "content": "飞"}]
    whole = chat_text(QUESTION) + "飞" + config.IM_END
    assert render(answered, tokenize=False) == whole
    again = [*answered, {"role": "user", "content": "再来"}]  # 没有对话记忆：只看最后一个问题
    assert render(again, tokenize=False, add_generation_prompt=True) == chat_text("再来")


@pytest.mark.parametrize("question", [QUESTION, "写一首\n关于春天的诗", " 空格 ", "a\n"])
def test_chat_template_gives_the_ids_of_render(hf_tokenizer, tokenizer_json, question):
    tokenizer = HFTokenizer.from_json(tokenizer_json)
    ids = hf_tokenizer(chat_text(question))["input_ids"]
    assert ids == chat_format.render(tokenizer, question)


def test_generation_config_holds_the_sampling_values(hf_model):
    found = hf_model.generation_config
    assert found.do_sample and found.temperature == 0.7 and found.top_k == 20
    assert found.repetition_penalty in (None, 1.0) and found.max_new_tokens == 400
    assert (found.eos_token_id, found.pad_token_id) == (2, 0)


def test_temperature_zero_means_greedy():
    assert hugging_face.generation_config({**SAMPLING, "temperature": 0})["do_sample"] is False


# ── 导回 ──────────────────────────────────────────────────────────────


def test_import_gives_the_same_weights(hf_folder, state):
    back = hugging_face.read(hf_folder)
    assert back["weights"].keys() == state["weights"].keys()
    assert all(back["weights"][name].equal(state["weights"][name]) for name in back["weights"])
    assert {**back["model_config"], "dropout": 0.0} == state["model_config"]
    assert back["prompt_kinds"] == ["title", "author"]


def test_import_of_a_folder_saved_by_transformers(hf_model, hf_tokenizer, state, tmp_path):
    hf_model.save_pretrained(tmp_path)
    hf_tokenizer.save_pretrained(tmp_path)
    back = hugging_face.read(tmp_path)
    assert all(back["weights"][name].equal(state["weights"][name]) for name in state["weights"])
    assert back["model_config"]["rope_theta"] == 5000.0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"num_key_value_heads": 1}, "GQA"),
        ({"tie_word_embeddings": False}, "输出层"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "旋转"),
        ({"vocab_size": 799}, "embed"),
        ({"vocab_size": 801}, "embed"),
    ],
)
def test_foreign_models_are_refused(hf_folder, tmp_path, change, word):
    for path in hf_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    found = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**found, **change}), encoding="utf-8")
    with pytest.raises(UserError, match=word):
        hugging_face.read(tmp_path)


def test_damaged_weights_are_reported(hf_folder, tmp_path):
    for path in hf_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        hugging_face.read(tmp_path)


# ── GGUF ──────────────────────────────────────────────────────────────


def need_gguf():
    gguf = pytest.importorskip("gguf", reason="没有安装 gguf")
    if not hasattr(gguf.MODEL_ARCH, "QWEN3"):
        pytest.skip("gguf 早于 0.16.2，不认识 Qwen3")


@pytest.fixture(scope="module")
def gguf_folder(state, tmp_path_factory):
    need_gguf()
    folder = tmp_path_factory.mktemp("gguf")
    gguf_file.write(folder, state, SAMPLING)
    return folder


def test_gguf_fields(gguf_folder, tokenizer_json):
    import gguf

    fields = gguf.GGUFReader(gguf_folder / "model-f32.gguf").fields
    expected = {
        "general.architecture": "qwen3",
        "qwen3.context_length": 256,
        "qwen3.attention.key_length": 16,
        "qwen3.attention.value_length": 16,
        "qwen3.rope.dimension_count": 16,
        "qwen3.rope.freq_base": 5000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": hugging_face.chat_template(tokenizer_json),
    }
    assert {name: fields[name].contents() for name in expected} == expected
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[:3] == [config.PAD, config.IM_START, config.IM_END] and len(tokens) == 800
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds == [3, 3, 3] + [1] * 797


@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 0.0), ("f16", 2**-11), ("q8_0", 1 / 127)])
def test_gguf_tensors(gguf_folder, state, model, kind, tolerance):
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 3)
    reader = gguf.GGUFReader(gguf_folder / f"model-{kind}.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    expected = hugging_face.to_hf(state["weights"], model.config)
    assert len(found) == len(expected)
    for name, tensor in expected.items():
        stored = found[names.get_name(name, try_suffixes=(".weight",))]
        value = torch.tensor(gguf.dequantize(stored.data, stored.tensor_type))
        assert (value - tensor).abs().max() <= tolerance * tensor.abs().max()


def test_q8_falls_back_where_rows_do_not_divide():
    assert gguf_file.tensor_type((10, 48), "Q8_0") == "F16"
    assert gguf_file.tensor_type((10, 64), "Q8_0") == "Q8_0"
    assert gguf_file.tensor_type((64,), "F16") == "F32"


def test_modelfile(gguf_folder):
    text = (gguf_folder / "Modelfile").read_text(encoding="utf-8")
    assert chat_text("{{ $m.Content }}") in text
    assert f'PARAMETER stop "{config.IM_END}"' in text
    assert "PARAMETER temperature 0.7" in text and "PARAMETER num_ctx 256" in text
    assert (gguf_folder / text.split()[1]).is_file()


def load_llama(path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="没有安装 llama-cpp-python")
    return llama_cpp.Llama(
        str(path), n_ctx=256, n_threads=1, type_k=0, type_v=0, verbose=False, seed=0
    )


@pytest.fixture(scope="module")
def llama(gguf_folder):
    return load_llama(gguf_folder / "model-f32.gguf")


def test_llama_cpp_tokenizes_the_same(llama, reference, poems):
    for text in [*TEXTS, *("\n\n".join(poem["para"]) for poem in poems)]:
        ids = llama.tokenize(text.encode(), add_bos=True, special=False)
        assert ids == reference.encode(text).ids, text
    chat = chat_text(QUESTION)
    assert llama.tokenize(chat.encode(), add_bos=True, special=True) == reference.encode(chat).ids


def test_llama_cpp_greedy_text(llama, model, reference):
    ids = reference.encode(chat_text(QUESTION)).ids
    ours, gap = greedy(model, ids, 200)
    assert gap > 1e-3, "参照模型有并列，换一个随机种子"
    stream = llama.generate(ids, temp=0.0, repeat_penalty=1.0, top_k=1)
    theirs = [next(stream) for _ in range(200)]
    assert theirs == ours
    text = llama.detokenize(theirs).decode(errors="replace")
    assert text == reference.decode(ours)


def test_llama_cpp_chat_uses_the_template(llama, model, reference):
    answer = llama.create_chat_completion(
        [{"role": "user", "content": QUESTION}], temperature=0, repeat_penalty=1.0, max_tokens=20
    )
    ours, _ = greedy(model, reference.encode(chat_text(QUESTION)).ids, 20)
    text = llama.detokenize(ours).decode(errors="ignore")  # 它也丢掉不完整的字，再多写几个 token
    assert text and answer["choices"][0]["message"]["content"].startswith(text)


def test_llama_cpp_writes_what_chat_writes(llama, state, reference, tmp_path, monkeypatch):
    """同一个问题，贪心：llama.cpp 的对话与 chat() 逐字相同。"""
    checkpoint.save(tmp_path / "best_model.bin", state)
    for name, value in {"WORK_DIR": str(tmp_path), "DEVICE": "cpu", "DTYPE": "fp32"}.items():
        monkeypatch.setattr(config, name, value)
    for question in (QUESTION, "写一首关于雨的诗"):
        ours = chat(
            question, temperature=0, repetition_penalty=1, max_new_tokens=60, steady_marks=False
        )
        ids = llama.tokenize(chat_text(question).encode(), add_bos=True, special=True)
        stream = llama.generate(ids, temp=0.0, repeat_penalty=1.0, top_k=1)
        theirs = list(itertools.islice(itertools.takewhile(lambda token: token != 2, stream), 60))
        assert ours and ours == reference.decode(theirs).replace("\ufffd", "").strip()


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_llama_cpp_loads_the_small_files(gguf_folder, kind):
    llama = load_llama(gguf_folder / f"model-{kind}.gguf")
    assert llama.create_completion("春天", max_tokens=3, temperature=0)["usage"]


# ── 脚本 ──────────────────────────────────────────────────────────────


@pytest.fixture
def work_dir(state, tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "best_model.bin", state)
    for name, value in (("WORK_DIR", str(tmp_path)), ("CHECKPOINT", ""), ("OUT", "")):
        monkeypatch.setattr(config, name, value)
    monkeypatch.setattr(config, "FORMAT", "hf")
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["export.py", *arguments])
    export.main()


def test_script_round_trip_keeps_old_outputs(work_dir, state, monkeypatch, capsys):
    pytest.importorskip("safetensors", reason="没有安装 safetensors")
    run(monkeypatch, "--FORMAT=hf")
    run(monkeypatch, "--FORMAT=hf")
    assert "export_hf.old1" in capsys.readouterr().out
    run(monkeypatch, "--FORMAT=checkpoint", f"--CHECKPOINT={work_dir / 'export_hf.old1'}")
    back = checkpoint.load(work_dir / "checkpoint_imported.bin")
    assert all(back["weights"][name].equal(state["weights"][name]) for name in state["weights"])
    names = {path.name for path in work_dir.iterdir()}
    assert names == {"best_model.bin", "export_hf", "export_hf.old1", "checkpoint_imported.bin"}


def test_script_writes_gguf_where_asked(work_dir, monkeypatch):
    need_gguf()
    run(monkeypatch, "--FORMAT=gguf", "--OUT=ollama")
    names = {path.name for path in (work_dir / "ollama").iterdir()}
    assert names == {"model-f32.gguf", "model-f16.gguf", "model-q8_0.gguf", "Modelfile"}


def test_old_gguf_package_is_explained(work_dir, monkeypatch):
    gguf = pytest.importorskip("gguf", reason="没有安装 gguf")
    monkeypatch.setattr(gguf, "MODEL_ARCH", object())
    with pytest.raises(UserError, match="pip install -U gguf"):
        run(monkeypatch, "--FORMAT=gguf")
    assert {path.name for path in work_dir.iterdir()} == {"best_model.bin"}


def test_failed_export_leaves_the_old_one(work_dir, state, monkeypatch):
    pytest.importorskip("safetensors", reason="没有安装 safetensors")
    run(monkeypatch, "--FORMAT=hf")
    before = (work_dir / "export_hf" / "config.json").stat().st_mtime_ns

    def fail(*_):
        raise UserError("写到一半")

    monkeypatch.setattr(files, "write_json", fail)
    with pytest.raises(UserError):
        run(monkeypatch, "--FORMAT=hf")
    assert (work_dir / "export_hf" / "config.json").stat().st_mtime_ns == before
    assert {path.name for path in work_dir.iterdir()} == {"best_model.bin", "export_hf"}


def test_int8_checkpoint_is_refused(state):
    with pytest.raises(UserError, match="int8"):
        hugging_face.float_weights({**state, "quantized": True})


def test_import_needs_a_folder(work_dir, monkeypatch):
    with pytest.raises(UserError, match="Hugging Face"):
        run(monkeypatch, "--FORMAT=checkpoint")
    with pytest.raises(UserError, match=r"config\.json"):
        run(monkeypatch, "--FORMAT=checkpoint", "--CHECKPOINT=best_model.bin")
