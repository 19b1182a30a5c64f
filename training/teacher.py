"""老师：一个练好的模型，它的概率当一半的目标（蒸馏，Hinton et al. 2015，温度 1）。

诗少、要读许多遍时有用：同样练出的老师也教得出更好的学生（docs/LOG.md 的“许多遍”）。
"""

from __future__ import annotations

import torch

import checkpoint
from gpt import GPT
from kernels.cross_entropy import Soft, default_chunks
from support.console import UserError
from tokenizer import fingerprint
from training.corpus import Corpus
from training.machine import Machine
from training.settings import Settings
from writing import origin

SHARE = 0.5  # 软目标占的份


class Teacher:
    """在学生读的同样的诗上说出自己的看法。"""

    def __init__(self, model: GPT, share: float = SHARE) -> None:
        self.model, self.share = model.eval().requires_grad_(False), share

    @torch.no_grad()
    def soft(self, inputs: torch.Tensor, where: torch.Tensor) -> Soft:
        """inputs (B, T)，where (n,) 是要训练的位置 → 这些位置的软目标。"""
        hidden = self.model.hidden(inputs).flatten(0, 1).index_select(0, where)  # -> (n, C)
        return Soft(hidden, self.model.embed.weight.detach(), self.share)

    def bytes(self) -> int:
        """它要占的内存：权重，和一块概率。"""
        weight = self.model.embed.weight
        chunk = default_chunks(weight.device.type).rows * len(weight)
        return 4 * (sum(param.numel() for param in self.model.parameters()) + chunk)

    def told(self, path: str) -> str:
        """开场说的一行。"""
        return f"老师：{path}，它的概率占目标的 {self.share:.0%}；每次更新多它的一次前向"


def find(settings: Settings, corpus: Corpus, machine: Machine) -> Teacher | None:
    """TEACHER 指的老师，在训练的设备上；没有给时为 None，不合用时抛 UserError。"""
    given = settings.teacher
    if not given:
        return None
    saved = origin.open_model(given, settings.work_dir, "TEACHER")
    if fingerprint(saved["tokenizer"]) != corpus.tokenizer.fingerprint:
        raise UserError(
            f"TEACHER={given} 的分词器与 dataset.bin 的不同，"
            "同一个编号不是同一个字（什么都没有改动）。\n"
            "请用同一份 dataset.bin 练出的模型当老师。"
        )
    model, _ = checkpoint.rebuild(saved, str(machine.device))
    if model.config.max_seq_len < settings.max_seq_len:
        raise UserError(
            f"TEACHER={given} 只读得下 {model.config.max_seq_len} 个 token，"
            f"短于 MAX_SEQ_LEN={settings.max_seq_len}（什么都没有改动）。\n"
            "请换一个 MAX_SEQ_LEN 不小于它的模型当老师。"
        )
    return Teacher(model)
