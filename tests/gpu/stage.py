"""一项检查站的台子：多大的模型、数据在哪里、怎样起子进程；检查的结论是一个 Outcome。"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import config
import dataset
from gpt import GPT, GPTConfig
from support import files
from tokenizer import BPETokenizer, HFTokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
PASS, WARN, FAIL, SKIP = "PASS", "WARN", "FAIL", "SKIP"
CARD_3060 = "3060"

FULL = {  # README 的形状
    "vocab_size": 20000,
    "max_seq_len": 512,
    "dim": 256,
    "n_head": 8,
    "ff": 1024,
    "n_block": 6,
}
SMALL = {
    "vocab_size": 420,
    "max_seq_len": 64,
    "dim": 32,
    "n_head": 2,
    "ff": 64,
    "n_block": 2,
}


@dataclass
class Outcome:
    """一项检查的结论。"""

    state: str  # PASS | WARN | FAIL | SKIP
    measured: str = ""  # 给人看：量到了什么
    bound: str = ""  # 界限
    numbers: dict = field(default_factory=dict)  # 给机器看的数
    details: str = ""  # 折叠起来的细节

    def to_dict(self) -> dict:
        return asdict(self)


def judge(good: bool, measured: str, bound: str, **numbers) -> Outcome:
    """过或不过。"""
    return Outcome(PASS if good else FAIL, measured, bound, numbers)


def skip(reason: str) -> Outcome:
    return Outcome(SKIP, reason)


@dataclass(frozen=True)
class Stage:
    """fake：在假的显卡上走一遍，模型小、界限照旧，只是不看快慢。"""

    folder: Path
    fake: bool = False

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")

    @property
    def shape(self) -> dict:
        return SMALL if self.fake else FULL

    def pick(self, full, small):
        """真的显卡上用 full，假的上用 small。"""
        return small if self.fake else full

    @property
    def is_3060(self) -> bool:
        return not self.fake and CARD_3060 in torch.cuda.get_device_name()

    def flash(self) -> contextlib.AbstractContextManager:
        """数字节时的注意力：假的显卡上换成不留 T × T 的那种。"""
        if not self.fake:
            return contextlib.nullcontext()
        from tests.fake_cuda import device

        return device.flash_memory()

    def model(self, seed: int = 0, **changes) -> GPT:
        """随机权重的模型，在 CPU 上；输出投影也不是零，梯度才到处都有。"""
        torch.manual_seed(seed)
        model = GPT(GPTConfig(**{**self.shape, **changes}))
        for block in model.blocks:
            for linear in (block.attn.out, block.mlp.down):
                torch.nn.init.normal_(linear.weight, std=0.02)
        return model

    def data(self) -> Path:
        """自带的诗做的 dataset.bin，词表补到模型的大小；做过就用做好的。"""
        folder = self.folder / "data"
        if not (folder / "dataset.bin").exists():
            folder.mkdir(parents=True, exist_ok=True)
            _build_data(folder, self.pick(len(_poems()), 60), self.shape)
        return folder / "dataset.bin"

    def values(self, name: str, **changes) -> dict:
        """一次训练的全部配置：自己的工作目录，形状同 shape。"""
        work = self.folder / name
        if not (work / "dataset.bin").exists():
            work.mkdir(parents=True, exist_ok=True)
            (work / "dataset.bin").write_bytes(self.data().read_bytes())
        shape = self.shape
        return {
            **config.values(),
            "WORK_DIR": str(work),
            "MAX_SEQ_LEN": shape["max_seq_len"],
            "GPT_DIM": shape["dim"],
            "GPT_HEAD": shape["n_head"],
            "GPT_FF": shape["ff"],
            "GPT_BLOCKS": shape["n_block"],
            "BATCH_SIZE": self.pick(8, 2),
            "ACCUM_STEPS": self.pick(8, 2),
            "GROW_AT": 0.0,  # 显存、快慢都照练全部的块量
            "MAX_NEW_TOKENS": self.pick(100, 4),
            "SAVE_EVERY": 1 << 20,
            "EVAL_EVERY": 1 << 20,
            "SAMPLE_EVERY": 1 << 20,
            "DEVICE": "cuda",
            "COMPILE": "off",
            **changes,
        }

    def child(self, module: str, *arguments: str, **environment: str) -> subprocess.Popen:
        """另起一个进程跑 python -m module；假显卡上的孩子也有假显卡。"""
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def trainee(self, values: dict, deterministic: bool = False) -> subprocess.Popen:
        """另起一个进程训练。"""
        path = Path(values["WORK_DIR"]) / "values.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        options = ["--deterministic"] if deterministic else []
        return self.child("tests.gpu.trainee", str(path), *options)


def _poems() -> list:
    return files.read_json(ROOT / "sample_poems.json")


def _build_data(folder: Path, count: int, shape: dict) -> None:
    poems = _poems()[:count]
    path = folder / "all_poems.json"
    path.write_text(json.dumps(poems, ensure_ascii=False), encoding="utf-8")
    texts = ["\n\n".join(poem["para"]) for poem in poems]
    learned = json.loads(BPETokenizer().train(texts, min(2000, shape["vocab_size"])).to_json())
    words = learned["model"]["vocab"]
    for number in range(len(words), shape["vocab_size"]):  # 永远用不到的词，只为输出层一样大
        words[f"ÿ{number}"] = number
    tok = HFTokenizer.from_json(json.dumps(learned))
    dataset.build(
        path, tok, folder / "dataset.bin", max_seq_len=shape["max_seq_len"], val_share=0.1
    )


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """两个张量之差的相对 Frobenius 范数。"""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def farthest(found: dict, wanted: dict) -> tuple:
    """(最大的相对误差, 是谁)。"""
    worst = max(wanted, key=lambda name: relative(found[name], wanted[name]))
    return relative(found[worst], wanted[worst]), worst
