"""老师：练好的模型，它的概率当一半的目标（蒸馏，Hinton et al. 2015，温度 1）。

诗少、要读许多遍时有用：同样练出的老师也教得出更好的学生，几个不同种子的一起教更好
（docs/LOG.md 的“老师”）。几个老师的对数几率取平均，也就是概率的几何平均。
"""

from __future__ import annotations

import torch

import checkpoint
from kernels.cross_entropy import Soft, default_chunks
from support.console import UserError
from tokenizer import fingerprint
from training.corpus import Corpus
from training.distributed import Ranks
from training.machine import Machine
from training.settings import Settings
from writing import origin

SHARE = 0.5  # 软目标占的份


class Teacher:
    """在学生读的同样的诗上说出自己的看法；可以是几个模型一起。"""

    def __init__(self, models: list, share: float = SHARE) -> None:
        """models：词表相同的一个或几个模型。"""
        self.models, self.share = [model.eval().requires_grad_(False) for model in models], share
        weights = [model.embed.weight.detach() for model in models]
        self._weight = torch.cat(weights, 1)  # n × (V, C) -> (V, n·C)

    @torch.no_grad()
    def soft(self, inputs: torch.Tensor, where: torch.Tensor) -> Soft:
        """inputs (B, T)，where (n,) 是要训练的位置 → 这些位置的软目标。"""
        hidden = [model.hidden(inputs).flatten(0, 1)[where] for model in self.models]  # 各 (n, C)
        return Soft(torch.cat(hidden, 1) / len(hidden), self._weight, self.share)

    def bytes(self) -> int:
        """它们要占的内存，见 room。"""
        return room([model.config for model in self.models], self._weight.device.type)

    def told(self, where: str) -> str:
        """开场说的一行；where 是 TEACHER 写的。"""
        each = "它的一次前向" if len(self.models) == 1 else "它们各一次前向"
        return f"老师：{where}，概率占目标的 {self.share:.0%}；每次更新多{each}"


def room(shapes: list, device: str) -> int:
    """这些形状（GPTConfig）的老师要占的内存，字节：权重、合在一起的输出层，和一块概率。"""
    if not shapes:
        return 0
    tables = sum(shape.vocab_size * shape.dim for shape in shapes)
    chunk = default_chunks(device).rows * shapes[0].vocab_size
    return 4 * (sum(shape.matrix_parameters() for shape in shapes) + tables + chunk)


def number(given: str) -> int | None:
    """TEACHER 写的是几个老师；写的是路径、没有写时为 None。"""
    return int(given) if given.strip().isdecimal() else None


def paths(given: str) -> list:
    """TEACHER 里的各个路径；写的是数时没有。"""
    if number(given) is not None:
        return []
    return list(filter(None, (path.strip() for path in given.split(","))))


def find(settings: Settings, corpus: Corpus, machine: Machine, ranks: Ranks) -> Teacher | None:
    """TEACHER 指的老师（逗号分开），在训练的设备上；没有给时为 None，不合用时抛 UserError。

    写文件的进程读，传给别的，所以模型只要在一台机器上。
    """
    if number(settings.teacher):
        raise UserError(
            f"TEACHER={settings.teacher} 要先练老师，只有 train_gpt.py 与 train_gpt_ddp.py 会练；"
            "这里请写练好的模型的路径（什么都没有改动）。"
        )
    given = paths(settings.teacher)
    if not given:
        return None
    read = ranks.together(
        lambda: [_open(path, settings, corpus) for path in given] if ranks.is_main else None
    )
    models = [checkpoint.rebuild(saved)[0] for saved in ranks.share(read, ranks.writer)]
    return Teacher([model.to(machine.device) for model in models])


def _open(given: str, settings: Settings, corpus: Corpus) -> checkpoint.Model:
    saved = origin.open_model(given, settings.work_dir, "TEACHER")
    if fingerprint(saved["tokenizer"]) != corpus.tokenizer.fingerprint:
        raise UserError(
            f"TEACHER={given} 的分词器与 dataset.bin 的不同，"
            "同一个编号不是同一个字（什么都没有改动）。\n"
            "请用同一份 dataset.bin 练出的模型当老师。"
        )
    longest = checkpoint.shape_of(saved).max_seq_len
    if longest < settings.max_seq_len:
        raise UserError(
            f"TEACHER={given} 只读得下 {longest} 个 token，"
            f"短于 MAX_SEQ_LEN={settings.max_seq_len}（什么都没有改动）。\n"
            "请换一个 MAX_SEQ_LEN 不小于它的模型当老师。"
        )
    return saved
