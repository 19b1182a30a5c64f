"""Hugging Face 目录：把检查点写成 Qwen3ForCausalLM 的样子，也能读回来。

需要 safetensors；transformers、vLLM 直接加载写出的目录。
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Callable

import torch

import checkpoint
from gpt import ACTIVATION, GPTConfig
from poems import chat_format
from support import files
from support.console import UserError
from tokenizer import BYTE_CHARS, HFTokenizer

# ── 权重对照：gpt.GPT ↔ Qwen3ForCausalLM ──────────────────────────────


def to_hf(weights: dict, shape: GPTConfig) -> dict[str, torch.Tensor]:
    """本项目的权重 → Qwen3 的权重（fp32、连续、互不共享内存）。输出层与词嵌入共享，不另存。"""
    result = {}
    for ours, _, theirs in shape.weights():
        for name, part in zip(theirs, weights[ours].float().chunk(len(theirs), dim=0)):
            result[name] = part.clone().contiguous()
    return result


def from_hf(tensors: dict, shape: GPTConfig) -> dict[str, torch.Tensor]:
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


def _few(items: list[str]) -> str:
    return "、".join(items[:3]) + (" 等" if len(items) > 3 else "")


# ── 写 ────────────────────────────────────────────────────────────────


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
    """generation_config.json；sampling：config.py 的抽样选项。

    不写重复惩罚：transformers 连提问里的 <|im_end|>、换行与标点一起罚，诗会收不了尾、少换行。
    与 chat() 相同的惩罚在目录的 README.md 里。
    """
    result = {"do_sample": sampling["temperature"] > 0, "eos_token_id": 2, "pad_token_id": 0}
    result["max_new_tokens"] = sampling["max_new_tokens"]
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
        "padding_side": "left",
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

几个问题一起问时加 `padding=True`（填充在左边）。

训练用的项目里，chat() 还有重复惩罚 PENALTY：只罚问题与诗里写过的字词，放过标点、换行与结束符。
generation_config.json 说不出“放过”，所以没有写；要一样就接着：

```python
import torch
from transformers import LogitsProcessor, LogitsProcessorList


class PoemPenalty(LogitsProcessor):
    def __init__(self, question, start, penalty):
        self.asked, self.start, self.penalty = tokenizer(question)["input_ids"], start, penalty

    def __call__(self, input_ids, scores):
        for ids, row in zip(input_ids, scores):
            seen = [t for t in {*self.asked, *ids[self.start:].tolist()} if self.counts(t)]
            kept = row[seen]
            row[seen] = torch.where(kept > 0, kept / self.penalty, kept * self.penalty)
        return scores

    def counts(self, token):
        text = tokenizer.decode([token], skip_special_tokens=True)
        return any(char.isalnum() or char == "\ufffd" for char in text)


start = inputs["input_ids"].shape[1]
penalty = PoemPenalty(question[0]["content"], start, PENALTY)
output = model.generate(**inputs, logits_processor=LogitsProcessorList([penalty]))
print(tokenizer.decode(output[0][start:], skip_special_tokens=True))
```
"""


def write(folder: Path, state: dict, sampling: dict) -> None:
    """把检查点写成 Hugging Face 目录；folder 已存在且为空。"""
    save_file = need("safetensors.torch", "safetensors").save_file
    shape = GPTConfig(**state["model_config"])
    tensors = to_hf(float_weights(state), shape)
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except Exception as error:  # 写不下时 safetensors 抛的不是 OSError
        raise OSError(f"model.safetensors：{error}") from error
    files.write_json(folder / "config.json", hf_config(shape, state.get("prompt_kinds") or []))
    files.write_json(folder / "generation_config.json", generation_config(sampling))
    files.write_json(
        folder / "tokenizer_config.json", tokenizer_config(state["tokenizer"], shape.max_seq_len)
    )
    files.write_text(folder / "tokenizer.json", state["tokenizer"])
    card = _CARD.replace("PENALTY", str(sampling["repetition_penalty"]))
    files.write_text(folder / "README.md", card)


def float_weights(state: dict) -> dict:
    """检查点的 fp32 权重；int8 检查点在这里拒绝（它的权重已经有损）。"""
    if state.get("quantized"):
        raise UserError(
            "这是 quantize.py 量化过的 int8 模型，导出要用原来的 fp32 权重\n"
            "请运行：python export.py --CHECKPOINT=best_model.bin"
        )
    return state["weights"]


def need(module: str, package: str) -> ModuleType:
    """可选包；没有装就说怎么装。"""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"导出需要 {package}，请运行：pip install {package}") from error


# ── 读 ────────────────────────────────────────────────────────────────


def read(folder: Path, say: Callable[[str], None] = print) -> dict:
    """Hugging Face 目录 → 检查点的 state（没有优化器状态，不能接着训练）；say 说出改了什么。"""
    load_file = need("safetensors.torch", "safetensors").load_file
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
    tokenizer = _tokenizer_from_hf(folder, say)
    weights, size = from_hf(tensors, shape), tokenizer.vocab_size
    if size > shape.vocab_size:
        raise UserError(
            f"{folder}/tokenizer.json 有 {size} 个 token，而 config.json 的词表是 "
            f"{shape.vocab_size}\n请在 transformers 里先运行 "
            "model.resize_token_embeddings(len(tokenizer))，两样都保存，再导入一次"
        )
    if size < shape.vocab_size:
        say(f"词嵌入最后 {shape.vocab_size - size} 行没有 token 用到，略去")
        weights["embed.weight"] = weights["embed.weight"][:size].clone()
        shape = dataclasses.replace(shape, vocab_size=size)
    kinds = found.get("prompt_kinds") or ["title"]
    return checkpoint.new_state(shape, weights, tokenizer.to_json(), kinds)


def _shape_from_hf(found: dict, folder: Path) -> GPTConfig:
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


def _unsupported(found: dict) -> list[str]:
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


def _tokenizer_from_hf(folder: Path, say: Callable[[str], None]) -> HFTokenizer:
    path = folder / "tokenizer.json"
    try:
        text, added = _with_added(path.read_text(encoding="utf-8"))
        tokenizer = checkpoint.tokenizer_of({"tokenizer": text})
    except OSError as error:
        raise UserError(f"读不了 {path}：{error}") from error
    except ValueError as error:
        raise UserError(f"{path} 不能用作本项目的分词器：{error}") from error
    if added:
        say(f"后来添加的 token 收进了词表：{_few(added)}。能写出来；读入的文字仍照原来的词切开")
    return tokenizer


def _with_added(text: str) -> tuple[str, list[str]]:
    """在 transformers 里 add_tokens 添的 token 收进词表：特殊的照旧，普通的写成字节级的写法。"""
    try:
        spec = json.loads(text)
        vocab, kept, names = spec["model"]["vocab"], [], []
        for item in spec["added_tokens"]:
            if item["id"] in vocab.values():
                kept.append(item)
                continue
            names.append(item["content"])
            name = item["content"]
            if item["special"]:
                kept.append(item)
            else:
                name = "".join(BYTE_CHARS[byte] for byte in name.encode("utf-8"))
            if name in vocab:
                raise ValueError(f"添加的 token {item['content']!r} 词表里已经有了")
            vocab[name] = item["id"]
    except (TypeError, KeyError, AttributeError):
        return text, []  # 别处会说清哪里不像分词器
    return json.dumps({**spec, "added_tokens": kept}, ensure_ascii=False), names
