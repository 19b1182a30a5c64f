"""导出模型，让它在别的工具里直接运行；也能把 Hugging Face 目录导回成检查点。

  python export.py --FORMAT=hf           → export_hf/    transformers、vLLM 直接加载
  python export.py --FORMAT=gguf         → export_gguf/  llama.cpp、Ollama 直接加载
  python export.py --FORMAT=checkpoint   → checkpoint_imported.bin（--CHECKPOINT=<hf 目录>）

需要：pip install -r requirements-extra.txt
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import torch

import checkpoint
import config
from gpt import ACTIVATION, GPTConfig
from poems import chat_format
from support import console, files
from support.console import UserError

DEFAULT_OUT = {
    "hf": "export_hf",
    "gguf": "export_gguf",
    "checkpoint": "checkpoint_imported.bin",
}
GGUF_TYPES = ("F32", "F16", "Q8_0")
OLLAMA_TYPE = "F16"  # Modelfile 用的那一个：模型小，F16 几乎无损


# ── 权重对照：gpt.GPT ↔ Qwen3ForCausalLM ──────────────────────────────


def to_hf(weights: dict, shape: GPTConfig) -> dict:
    """本项目的权重 → Qwen3 的权重（fp32、连续、互不共享内存）。输出层与词嵌入共享，不另存。"""
    result = {}
    for ours, _, theirs in shape.weights():
        for name, part in zip(theirs, weights[ours].float().chunk(len(theirs), dim=0)):
            result[name] = part.clone().contiguous()
    return result


def from_hf(tensors: dict, shape: GPTConfig) -> dict:
    """Qwen3 的权重 → 本项目的权重（fp32）；缺一个或形状不对就抛 UserError。"""
    missing = [name for weight in shape.weights() for name in weight.qwen3 if name not in tensors]
    if missing:
        raise UserError(f"Hugging Face 目录里缺少 {len(missing)} 个权重：{_few(missing)}")
    result, wrong = {}, []
    for ours, expected, theirs in shape.weights():
        result[ours] = torch.cat([tensors[name].float() for name in theirs], dim=0).contiguous()
        if tuple(result[ours].shape) != expected:
            wrong.append(f"{ours} {tuple(result[ours].shape)}，应为 {expected}")
    if wrong:
        raise UserError(f"权重的形状与 config.json 不符：{_few(wrong)}")
    return result


def _few(items):
    return "、".join(items[:3]) + (" 等" if len(items) > 3 else "")


# ── Hugging Face 目录 ─────────────────────────────────────────────────


def special_tokens(tokenizer_json: str) -> list:
    """分词器 JSON 里编号 0、1、2 的特殊符号：填充、开始、结束。"""
    added = {item["id"]: item["content"] for item in json.loads(tokenizer_json)["added_tokens"]}
    return [added[index] for index in range(3)]


def chat_template(tokenizer_json: str) -> str:
    """对话格式的 Jinja 模板。"""
    _, start, end = special_tokens(tokenizer_json)
    return chat_format.jinja_template(start, end)


def hf_config(shape: GPTConfig, prompt_kinds: list) -> dict:
    """config.json：Qwen3 结构；prompt_kinds 是本项目多存的，导回时要用。"""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "intermediate_size": shape.ff,
        "num_hidden_layers": shape.n_block,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_head,
        "head_dim": shape.head_dim,
        "hidden_act": ACTIVATION,
        "max_position_embeddings": shape.max_seq_len,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": shape.n_block,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float32",
        "prompt_kinds": list(prompt_kinds),
    }


def generation_config(sampling: dict) -> dict:
    """generation_config.json；sampling 是 sampling_from_config() 的结果。"""
    result = {"do_sample": sampling["temperature"] > 0, "eos_token_id": 2, "pad_token_id": 0}
    result["max_new_tokens"] = sampling["max_new_tokens"]
    result["repetition_penalty"] = sampling["repetition_penalty"]
    if sampling["no_repeat_ngram"]:
        result["no_repeat_ngram_size"] = sampling["no_repeat_ngram"]
    if result["do_sample"]:
        result.update({key: sampling[key] for key in ("temperature", "top_k", "top_p")})
        if sampling["min_p"]:
            result["min_p"] = sampling["min_p"]
    return result


def tokenizer_config(tokenizer_json: str, max_seq_len: int) -> dict:
    """tokenizer_config.json；不写 tokenizer_class 的话 transformers 会换成 Qwen2 自己的设置。"""
    pad, start, end = special_tokens(tokenizer_json)
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        "pad_token": pad,
        "eos_token": end,
        "bos_token": None,
        "unk_token": None,
        "additional_special_tokens": [start],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "added_tokens_decoder": {
            str(index): {"content": token, "special": True, **flags}
            for index, token in enumerate((pad, start, end))
        },
        "chat_template": chat_template(tokenizer_json),
    }


def sampling_from_config() -> dict:
    """config.py 的采样设置。"""
    names = ("TEMPERATURE", "TOP_K", "TOP_P", "MIN_P", "REPETITION_PENALTY", "NO_REPEAT_NGRAM")
    return {name.lower(): getattr(config, name) for name in (*names, "MAX_NEW_TOKENS")}


_CARD = """---
library_name: transformers
pipeline_tag: text-generation
language: zh
---

# 现代诗 GPT

Qwen3 结构，无需 trust_remote_code。一次一个问题，模型没有对话记忆。

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
question = [{"role": "user", "content": "一只鸟在想方向"}]
inputs = tokenizer.apply_chat_template(
    question, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs)
print(tokenizer.decode(output[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""


def write_hf(folder: Path, state: dict, sampling: dict) -> None:
    """把检查点写成 Hugging Face 目录；folder 已存在且为空。"""
    save_file = _need("safetensors.torch", "safetensors").save_file
    shape = GPTConfig(**state["model_config"])
    tensors = to_hf(float_weights(state), shape)
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except Exception as error:  # 写不下时 safetensors 抛的不是 OSError
        raise OSError(f"model.safetensors：{error}") from error
    _write_json(folder / "config.json", hf_config(shape, state.get("prompt_kinds") or []))
    _write_json(folder / "generation_config.json", generation_config(sampling))
    _write_json(
        folder / "tokenizer_config.json", tokenizer_config(state["tokenizer"], shape.max_seq_len)
    )
    _write_text(folder / "tokenizer.json", state["tokenizer"])
    _write_text(folder / "README.md", _CARD)


def float_weights(state: dict) -> dict:
    """检查点的 fp32 权重；int8 检查点在这里拒绝（它的权重已经有损）。"""
    if state.get("quantized"):
        raise UserError(
            "这是 quantize.py 量化过的 int8 模型，导出要用原来的 fp32 权重\n"
            "请运行：python export.py --CHECKPOINT=best_model.bin"
        )
    return state["weights"]


def _write_text(path, text):
    with files.atomic_write(path) as file:
        file.write(text)


def _write_json(path, value):
    _write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def _need(module, package):
    """可选包；没有装就说怎么装。"""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"导出需要 {package}，请运行：pip install {package}") from error


# ── 导回 ──────────────────────────────────────────────────────────────


def read_hf(folder: Path) -> dict:
    """Hugging Face 目录 → 检查点的 state（没有优化器状态，不能接着训练）。"""
    load_file = _need("safetensors.torch", "safetensors").load_file
    found = files.read_json(folder / "config.json")
    shape = _shape_from_hf(found, folder)
    parts = sorted(folder.glob("*.safetensors"))
    if not parts:
        raise UserError(f"{folder} 里没有 .safetensors 权重文件")
    tensors = {}
    for path in parts:  # 大模型会分成几个文件
        try:
            tensors.update(load_file(path))
        except Exception as error:  # safetensors 的异常类型随版本而变
            raise UserError(f"{path} 读不了，可能已损坏：{error}") from error
    return checkpoint.new_state(
        shape,
        from_hf(tensors, shape),
        _tokenizer_from_hf(folder, shape.vocab_size),
        found.get("prompt_kinds") or ["title"],
    )


def _shape_from_hf(found, folder):
    problems = _unsupported(found)
    if problems:
        raise UserError(f"{folder / 'config.json'} 不是本项目能容纳的模型：" + "；".join(problems))
    rope = found.get("rope_parameters") or {}
    return GPTConfig(
        vocab_size=found["vocab_size"],
        max_seq_len=found["max_position_embeddings"],
        dim=found["hidden_size"],
        n_head=found["num_attention_heads"],
        ff=found["intermediate_size"],
        n_block=found["num_hidden_layers"],
        rope_theta=float(rope.get("rope_theta", found.get("rope_theta", 10000.0))),
        norm_eps=found["rms_norm_eps"],
    )


_SIZES = (
    "vocab_size",
    "max_position_embeddings",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "num_hidden_layers",
    "rms_norm_eps",
)


def _unsupported(found):
    """config.json 里本项目的模型表达不了的地方。"""
    if found.get("model_type") != "qwen3":
        return [f"model_type={found.get('model_type')!r}，只支持 'qwen3'"]
    missing = [name for name in _SIZES if name not in found]
    if missing:
        return [f"缺少 {'、'.join(missing)}"]
    heads, dim = found["num_attention_heads"], found["hidden_size"]
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    checks = (
        (found.get("num_key_value_heads", heads) == heads, "分组的键值头（GQA）"),
        (found.get("head_dim", dim // heads) * heads == dim, "head_dim × 头数 ≠ 维度"),
        (found.get("hidden_act", ACTIVATION) == ACTIVATION, f"激活函数 {found.get('hidden_act')}"),
        (found.get("tie_word_embeddings") is True, "不与词嵌入共享的输出层"),
        (not found.get("attention_bias"), "注意力偏置"),
        (not found.get("use_sliding_window"), "滑动窗口注意力"),
        (rope.get("rope_type", rope.get("type", "default")) == "default", "缩放的旋转位置编码"),
    )
    return [f"不支持{reason}" for good, reason in checks if not good]


def _tokenizer_from_hf(folder, vocab_size):
    path = folder / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
        tokenizer = checkpoint.tokenizer_of({"tokenizer": text})
    except OSError as error:
        raise UserError(f"读不了 {path}：{error}") from error
    except ValueError as error:
        raise UserError(f"{path} 不能用作本项目的分词器：{error}") from error
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{path} 有 {tokenizer.vocab_size} 个 token，而 config.json 的词表是 {vocab_size}"
        )
    return tokenizer.to_json()


# ── GGUF 与 Ollama ────────────────────────────────────────────────────


def write_gguf(folder: Path, state: dict, sampling: dict) -> None:
    """写 model-f32.gguf、model-f16.gguf、model-q8_0.gguf 与 Ollama 的 Modelfile。"""
    if not hasattr(_need("gguf", "gguf").MODEL_ARCH, "QWEN3"):
        raise UserError("gguf 太旧，不认识 Qwen3 结构，请运行：pip install -U gguf")
    for kind in GGUF_TYPES:
        write_gguf_file(folder / f"model-{kind.lower()}.gguf", state, sampling, kind)
    text = modelfile(state["tokenizer"], state["model_config"]["max_seq_len"], sampling)
    _write_text(folder / "Modelfile", text)


def write_gguf_file(path: Path, state: dict, sampling: dict, kind: str) -> None:
    """写一个 GGUF 文件；kind：F32 | F16 | Q8_0（只作用于矩阵，归一化权重总是 F32）。"""
    import gguf

    shape = GPTConfig(**state["model_config"])
    writer = gguf.GGUFWriter(str(path), "qwen3")
    try:
        _add_shape(writer, shape, kind)
        _add_sampling(writer, sampling)
        _add_tokenizer(writer, state["tokenizer"])
        _add_tensors(writer, to_hf(float_weights(state), shape), shape.n_block, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_shape(writer, shape, kind):
    import gguf

    file_types = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}
    writer.add_name("base-GPT-Modern-poem")
    writer.add_file_type(gguf.LlamaFileType[file_types[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.max_seq_len)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.n_block)
    writer.add_feed_forward_length(shape.ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)


def _add_sampling(writer, sampling):
    """general.sampling.*：新版 llama.cpp 以此为默认采样；旧的 gguf 包没有就不写。"""
    for method, key in (
        ("add_sampling_temp", "temperature"),
        ("add_sampling_top_k", "top_k"),
        ("add_sampling_top_p", "top_p"),
        ("add_sampling_min_p", "min_p"),
        ("add_sampling_penalty_repeat", "repetition_penalty"),
    ):
        if hasattr(writer, method):
            getattr(writer, method)(sampling[key])


def _add_tokenizer(writer, tokenizer_json):
    import gguf

    data = json.loads(tokenizer_json)
    ids = dict(data["model"]["vocab"])
    ids.update({item["content"]: item["id"] for item in data["added_tokens"]})
    special = {item["id"] for item in data["added_tokens"]}
    tokens = sorted(ids, key=ids.get)  # 编号从 0 连续排到底
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [kinds.CONTROL if index in special else kinds.NORMAL for index in range(len(tokens))]
    )
    merges = data["model"]["merges"]  # 新旧两种写法："a b" 或 ["a", "b"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)  # 不写的话 llama.cpp 取 11 号；add_bos 为假，不会真的加上
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(chat_template(tokenizer_json))


def _add_tensors(writer, tensors, n_block, kind):
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, n_block)
    for name, tensor in tensors.items():
        target = names.get_name(name, try_suffixes=(".weight",))
        data = tensor.numpy()
        dtype = gguf.GGMLQuantizationType[_tensor_type(data.shape, kind)]
        writer.add_tensor(target, gguf.quants.quantize(data, dtype), raw_dtype=dtype)


def _tensor_type(shape, kind):
    if len(shape) == 1:
        return "F32"
    if kind == "Q8_0" and shape[-1] % 32:  # 一块 32 个数，行宽不整除的留作 F16
        return "F16"
    return kind


def modelfile(tokenizer_json: str, max_seq_len: int, sampling: dict) -> str:
    """Ollama 的 Modelfile：只排最后一个问题，与对话模板一致。"""
    _, start, end = special_tokens(tokenizer_json)
    template = chat_format.ollama_template(start, end)
    rows = [f"FROM ./model-{OLLAMA_TYPE.lower()}.gguf", f'TEMPLATE """{template}"""']
    for name, value in (
        ("stop", json.dumps(end, ensure_ascii=False)),
        ("stop", json.dumps(start, ensure_ascii=False)),
        ("temperature", sampling["temperature"]),
        ("top_k", sampling["top_k"]),
        ("top_p", sampling["top_p"]),
        ("min_p", sampling["min_p"]),
        ("repeat_penalty", sampling["repetition_penalty"]),
        ("repeat_last_n", -1),
        ("num_ctx", max_seq_len),
        ("num_predict", sampling["max_new_tokens"]),
    ):
        rows.append(f"PARAMETER {name} {value}")
    return "\n".join(rows) + "\n"


# ── 脚本 ──────────────────────────────────────────────────────────────


@contextlib.contextmanager
def new_folder(target: Path):
    """给出一个临时目录，写完才改名为 target；已有的 target 改名留在旁边，出错时原样不动。"""
    target = Path(target)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        say_aside(files.keep_aside(target))
        files.replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"写不了 {target}：{error}\n旧的输出没有被覆盖。请检查磁盘空间与目录权限，再运行一次"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def say_aside(aside: Path | None) -> None:
    """说明旧文件改名到了哪里。"""
    if aside is not None:
        print(f"原有的同名输出改名为 {aside}")


def export_folder(kind: str, source: Path, target: Path) -> None:
    """检查点 → Hugging Face 目录或 GGUF 目录。"""
    state = checkpoint.load(source)
    checkpoint.rebuild(state)  # 形状、词表对不上的检查点在写出任何东西之前就拒绝
    with new_folder(target) as folder:
        writer = {"hf": write_hf, "gguf": write_gguf}[kind]
        writer(folder, state, sampling_from_config())
    print(f"已把 {source} 导出到 {target}")


def import_folder(source: Path, target: Path) -> None:
    """Hugging Face 目录 → 检查点。"""
    if not (source / "config.json").is_file():
        raise UserError(
            f"{source} 不是 Hugging Face 目录（里面没有 config.json）\n"
            "请运行：python export.py --FORMAT=checkpoint --CHECKPOINT=<目录>"
        )
    state = read_hf(source)
    say_aside(files.keep_aside(target))
    checkpoint.save(target, state)
    print(f"已把 {source} 导入为 {target}\n接下来：python infere.py --CHECKPOINT={target}")


def main() -> None:
    config.load(__doc__)
    kind = config.FORMAT
    target = files.work_path(config.WORK_DIR, config.OUT or DEFAULT_OUT[kind])
    if kind == "checkpoint":
        given = config.CHECKPOINT or DEFAULT_OUT["hf"]
        source = files.find_input(given, config.WORK_DIR)
        if source is None:
            raise UserError(
                f"没有找到 Hugging Face 目录 {given}\n"
                "请运行：python export.py --FORMAT=checkpoint --CHECKPOINT=<目录>"
            )
        return import_folder(source, target)
    export_folder(kind, checkpoint.find(config.WORK_DIR, config.CHECKPOINT), target)
    if kind == "hf":
        print(f'接下来：AutoModelForCausalLM.from_pretrained("{target.as_posix()}")')
    else:
        print(f"接下来：cd {target}，然后 ollama create poem -f Modelfile，ollama run poem")
    return None


if __name__ == "__main__":
    console.run(main)
