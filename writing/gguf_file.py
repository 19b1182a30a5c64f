"""GGUF 文件与 Ollama 的 Modelfile：llama.cpp、Ollama 直接加载。需要 gguf 包。"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gpt import GPTConfig
from poems import chat_format
from support import files
from support.console import UserError
from writing import hugging_face

if TYPE_CHECKING:
    from gguf import GGUFWriter

TYPES = ("F32", "F16", "Q8_0")
OLLAMA_TYPE = "F16"  # Modelfile 用的那一个：模型小，F16 几乎无损


def write(folder: Path, state: dict, sampling: dict) -> None:
    """写 model-f32.gguf、model-f16.gguf、model-q8_0.gguf 与 Ollama 的 Modelfile。"""
    if not hasattr(hugging_face.need("gguf", "gguf").MODEL_ARCH, "QWEN3"):
        raise UserError("gguf 太旧，不认识 Qwen3 结构，请运行：pip install -U gguf")
    for kind in TYPES:
        write_file(folder / f"model-{kind.lower()}.gguf", state, sampling, kind)
    text = modelfile(state["tokenizer"], state["model_config"]["max_seq_len"], sampling)
    files.write_text(folder / "Modelfile", text)


def write_file(path: Path, state: dict, sampling: dict, kind: str) -> None:
    """写一个 GGUF 文件；kind：F32 | F16 | Q8_0（只作用于矩阵，归一化权重总是 F32）。"""
    import gguf

    shape = GPTConfig(**state["model_config"])
    writer = gguf.GGUFWriter(str(path), "qwen3")
    try:
        _add_shape(writer, shape, kind)
        _add_sampling(writer, sampling)
        _add_tokenizer(writer, state["tokenizer"])
        _add_tensors(
            writer,
            hugging_face.to_hf(hugging_face.float_weights(state), shape),
            shape.n_block,
            kind,
        )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_shape(writer: GGUFWriter, shape: GPTConfig, kind: str) -> None:
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


def _add_sampling(writer: GGUFWriter, sampling: dict) -> None:
    """general.sampling.*：新版 llama.cpp 以此为默认采样；旧的 gguf 包没有就不写。

    重复惩罚关掉：llama.cpp、Ollama 连标点、换行与结束符一起罚，说不出 chat() 的“放过”。
    """
    for method, value in (
        ("add_sampling_temp", sampling["temperature"]),
        ("add_sampling_top_k", sampling["top_k"]),
        ("add_sampling_top_p", sampling["top_p"]),
        ("add_sampling_min_p", sampling["min_p"]),
        ("add_sampling_penalty_last_n", 0),
        ("add_sampling_penalty_repeat", 1.0),
    ):
        if hasattr(writer, method):
            getattr(writer, method)(value)


def _add_tokenizer(writer: GGUFWriter, tokenizer_json: str) -> None:
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
    writer.add_chat_template(hugging_face.chat_template(tokenizer_json))


def _add_tensors(writer: GGUFWriter, tensors: dict, n_block: int, kind: str) -> None:
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, n_block)
    for name, tensor in tensors.items():
        target = names.get_name(name, try_suffixes=(".weight",))
        data = tensor.numpy()
        dtype = gguf.GGMLQuantizationType[tensor_type(data.shape, kind)]
        writer.add_tensor(target, gguf.quants.quantize(data, dtype), raw_dtype=dtype)


def tensor_type(shape: tuple, kind: str) -> str:
    """一个张量存成什么：向量总是 F32。"""
    if len(shape) == 1:
        return "F32"
    if kind == "Q8_0" and shape[-1] % 32:  # 一块 32 个数，行宽不整除的留作 F16
        return "F16"
    return kind


def modelfile(tokenizer_json: str, max_seq_len: int, sampling: dict) -> str:
    """Ollama 的 Modelfile：只排最后一个问题，与对话模板一致。"""
    _, start, end = hugging_face.special_tokens(tokenizer_json)
    template = chat_format.ollama_template(start, end)
    rows = [f"FROM ./model-{OLLAMA_TYPE.lower()}.gguf", f'TEMPLATE """{template}"""']
    for name, value in (
        ("stop", json.dumps(end, ensure_ascii=False)),
        ("stop", json.dumps(start, ensure_ascii=False)),
        ("temperature", sampling["temperature"]),
        ("top_k", sampling["top_k"]),
        ("top_p", sampling["top_p"]),
        ("min_p", sampling["min_p"]),
        ("repeat_penalty", 1.0),  # 见 _add_sampling
        ("repeat_last_n", 0),
        ("num_ctx", max_seq_len),
        ("num_predict", sampling["max_new_tokens"]),
    ):
        rows.append(f"PARAMETER {name} {value}")
    return "\n".join(rows) + "\n"
