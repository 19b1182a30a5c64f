"""测速时并排的别的程序：同样形状、同样权重，写同样多的 token。没有安装的为 None。"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable

import torch

import checkpoint
from support.console import UserError
from tokenizer import BYTE_CHARS
from writing import gguf_file

if TYPE_CHECKING:
    from gpt import GPT, GPTConfig

Runner = Callable[[int, int], None]  # run(首数, token 数)
SPECIAL = ("<|padding|>", "<|im_start|>", "<|im_end|>")


def transformers_runner(
    model: GPT, prompt: list[int], dtype: torch.dtype | None = None
) -> Runner | None:
    """transformers 的 generate，dtype 默认 fp32。"""
    try:
        from transformers import Qwen3Config, Qwen3ForCausalLM
    except ImportError:
        print("没有安装 transformers，不比。", file=sys.stderr)
        return None
    shape, device = model.config, model.embed.weight.device
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=shape.vocab_size,
            hidden_size=shape.dim,
            intermediate_size=shape.ff,
            num_hidden_layers=shape.n_block,
            num_attention_heads=shape.n_head,
            num_key_value_heads=shape.n_head,
            head_dim=shape.head_dim,
            max_position_embeddings=shape.max_seq_len,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    theirs = theirs.to(device, dtype).eval()

    def run(rows: int, count: int) -> None:
        ids = torch.tensor([prompt] * rows, device=device)
        with torch.inference_mode():
            theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=0.7,
                top_k=20,
                repetition_penalty=1.4,
                min_new_tokens=count,
                max_new_tokens=count,
            )
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


# ── llama.cpp ─────────────────────────────────────────────────────────


def llama_runner(
    model: GPT, prompt: list[int], sampling: dict, rows: int, kind: str
) -> Runner | None:
    """llama.cpp 读我们写的 GGUF（kind：F16 | Q8_0），同时写至多 rows 首，线程数与 PyTorch 相同。"""
    try:
        import llama_cpp as llama
    except ImportError:
        print("没有安装 llama-cpp-python，不与 llama.cpp 比。", file=sys.stderr)
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        try:
            gguf_file.write_file(path, _plain_state(model), sampling, kind)
            return Llama(llama, path, model.config, prompt, sampling, rows).run
        except (AttributeError, ImportError, UserError) as error:
            print(f"装着的 llama.cpp 与 gguf 不能用，不比：{error}", file=sys.stderr)
            return None


def _plain_state(model: GPT) -> dict:
    """能导出的检查点；词表是凑数的，每个 token 一两个字节。"""
    size = model.config.vocab_size
    chars = [BYTE_CHARS[byte] for byte in range(256)]
    pairs = (a + b for a in chars for b in chars)
    words = [*SPECIAL, *chars][:size]
    words += [next(pairs) for _ in range(size - len(words))]
    spec = {
        "model": {"vocab": {word: index for index, word in enumerate(words)}, "merges": ["a b"]},
        "added_tokens": [{"id": index, "content": word} for index, word in enumerate(SPECIAL)],
    }
    weights = {name: value.cpu() for name, value in checkpoint.weights_of(model).items()}
    return checkpoint.new_state(model.config, weights, json.dumps(spec), ["title"])


class Llama:
    """llama.cpp 的低层接口：没有 Python 的包装拖慢它。几首同写就是一批里的几个序列。"""

    def __init__(
        self,
        llama: ModuleType,
        path: Path,
        shape: GPTConfig,
        prompt: list[int],
        sampling: dict,
        rows: int,
    ) -> None:
        self.llama, self.prompt, self.sampling = llama, prompt, sampling
        self.vocab_size = shape.vocab_size
        # 由它的包装来载入：包装管着日志，也管着模型什么时候放掉；文件读完就删，所以不映射
        self.owner = llama.Llama(str(path), n_ctx=32, use_mmap=False, verbose=False)
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max = rows * shape.max_seq_len, rows
        params.n_batch = params.n_ubatch = max(512, rows * len(prompt))
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        self.context = llama.llama_init_from_model(self.owner.model, params)
        self.batch = llama.llama_batch_init(params.n_batch, 0, 1)
        if not self.context:
            raise UserError("载入不了")

    def run(self, rows: int, count: int) -> None:
        """从头写 rows 首，各 count 个 token。"""
        llama = self.llama
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        samplers = [self._sampler(row) for row in range(rows)]
        last = len(self.prompt) - 1
        self._decode(
            (token, place, row, place == last)
            for row in range(rows)
            for place, token in enumerate(self.prompt)
        )
        places = [row * len(self.prompt) + last for row in range(rows)]
        for done in range(count):
            tokens = [
                llama.llama_sampler_sample(sampler, self.context, place)
                for sampler, place in zip(samplers, places)
            ]
            if done + 1 < count:
                self._decode(
                    (token, last + 1 + done, row, True) for row, token in enumerate(tokens)
                )
                places = range(rows)
        for sampler in samplers:
            llama.llama_sampler_free(sampler)

    def _decode(self, entries: Any) -> None:
        """前向：各个 (token, 位置, 第几首, 要不要对数几率)。"""
        batch = self.batch
        batch.n_tokens = 0
        for index, (token, place, row, wanted) in enumerate(entries):
            batch.token[index], batch.pos[index] = token, place
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = wanted
            batch.n_tokens = index + 1
        if self.llama.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode 没有成功")

    def _sampler(self, seed: int) -> Any:
        """与写诗的默认值同样的几步：出现惩罚、最小 p、温度。"""
        llama, chosen = self.llama, self.sampling
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        penalties = [512, chosen["repetition_penalty"], 0.0, chosen["presence_penalty"]]
        if len(llama.llama_sampler_init_penalties.argtypes) == 5:  # 新版先要词表的大小
            penalties.insert(0, self.vocab_size)
        parts = [llama.llama_sampler_init_penalties(*penalties)]
        if chosen["top_k"]:
            parts.append(llama.llama_sampler_init_top_k(chosen["top_k"]))
        if chosen["min_p"]:
            parts.append(llama.llama_sampler_init_min_p(chosen["min_p"], 1))
        parts.append(llama.llama_sampler_init_temp(chosen["temperature"]))
        parts.append(llama.llama_sampler_init_dist(seed))
        for part in parts:
            llama.llama_sampler_chain_add(chain, part)
        return chain
