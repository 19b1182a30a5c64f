"""训练用的诗：打开 dataset.bin，第 n 个微批次是哪些文档、各进程算哪几个。"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

import dataset
from support import artefacts
from support.console import UserError
from tokenizer import HFTokenizer
from training.batching import Batch, BatchPlan, assemble
from training.settings import Settings


class Size(NamedTuple):
    """几个微批次一共多大。"""

    tokens: int  # 不含填充的输入
    trained: int  # 其中要训练的


class Corpus:
    """一份打开的数据集和它的微批次安排。"""

    def __init__(self, data: dataset.PoemDataset, settings: Settings) -> None:
        """data：至少有一首训练诗。"""
        self.data = data
        try:
            self.tokenizer = HFTokenizer.from_json(data.tokenizer_json)
        except ValueError as error:
            raise UserError(
                f"dataset.bin 里的分词器不能用：{error}\n请重做数据集：python train_dataset_one.py"
            ) from error
        self.first, _ = data.range("train")
        self.lengths = np.asarray(data.lengths("train")) - 1  # 各文档输入的 token 数
        self.trained = np.asarray(data.trained("train"))  # 各文档要训练的 token 数
        self.plan = BatchPlan(self.lengths, settings.budget, settings.seed)

    @classmethod
    def open(cls, folder: Path, settings: Settings) -> Corpus:
        """WORK_DIR 的 dataset.bin；没有、太长、没有训练诗时抛 UserError。"""
        path = folder / artefacts.DATASET
        if not path.exists():
            raise UserError(
                f"没有找到 {path}。\n请先制作数据集：python train_dataset_one.py"
                "（或 python train_dataset_all.py）"
            )
        data = dataset.load(path)
        if data.header["max_seq_len"] > settings.max_seq_len:
            raise UserError(
                f"dataset.bin 是按 MAX_SEQ_LEN={data.header['max_seq_len']} 做的，"
                f"比现在的 {settings.max_seq_len} 长。\n"
                "请重做数据集：python train_dataset_one.py"
            )
        first, last = data.range("train")
        if last == first:
            raise UserError("dataset.bin 里没有训练诗。请重做数据集：python train_dataset_one.py")
        return cls(data, settings)

    def batch(self, number: int) -> Batch:
        """第 number 个微批次。"""
        chosen = self.plan.documents(number)
        return assemble([self.data.document(self.first + int(index))[:2] for index in chosen])

    def size(self, numbers: range) -> Size:
        """这些微批次一共多大。"""
        chosen = [self.plan.documents(number) for number in numbers]
        return Size(
            tokens=int(sum(self.lengths[documents].sum() for documents in chosen)),
            trained=int(sum(self.trained[documents].sum() for documents in chosen)),
        )

    def deal(self, numbers: range, rank: int, world_size: int) -> list:
        """rank 号进程算的微批次：从费时的到省时的来回发牌，各进程差不多同时算完。"""
        if world_size == 1:
            return list(numbers)
        dealt = sorted(numbers, key=self._cost, reverse=True)
        seats = (rank, 2 * world_size - 1 - rank)
        return sorted(number for i, number in enumerate(dealt) if i % (2 * world_size) in seats)

    def _cost(self, number: int) -> int:
        """一个微批次大概费时多少：每个 token 一份，注意力随长度再加。"""
        documents = self.plan.documents(number)
        longest = int(self.lengths[documents].max())
        return len(documents) * longest * (1000 + longest)

    def validation(self) -> np.ndarray:
        """验证用的文档编号：只给标题的、整首放得下的；没有就退而求其次。"""
        indices = np.arange(*self.data.range("val"))
        whole = [i for i in indices if self.data.whole[i]]
        titled = [i for i in whole if self.data.kind(int(i)) == "title"]
        return np.asarray(titled or whole or indices)
