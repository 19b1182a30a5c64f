"""训练用的诗：打开 dataset.bin，第 n 个微批次是哪些文档、各进程算哪几个。"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

import dataset
from support import artefacts, files
from support.console import UserError
from tokenizer import HFTokenizer, fingerprint
from training.batching import Batch, BatchPlan, assemble
from training.replay import Replay, places
from training.settings import Settings


class Size(NamedTuple):
    """几个微批次一共多大。"""

    tokens: int  # 不含填充的输入
    trained: int  # 其中要训练的


class Corpus:
    """一份打开的数据集和它的微批次安排；old 是旧诗的数据集，按 REPLAY_SHARE 混进来。

    微批次里的编号：先是自己的训练文档，后是旧诗的。
    """

    def __init__(
        self, data: dataset.PoemDataset, settings: Settings, old: Corpus | None = None
    ) -> None:
        """data：至少有一首训练诗。"""
        self.data, self.old = data, old
        try:
            self.tokenizer = HFTokenizer.from_json(data.tokenizer_json)
        except ValueError as error:
            raise UserError(f"dataset.bin 里的分词器不能用：{error}\n{remake(settings)}") from error
        self.first, _ = data.range("train")
        self.lengths = np.asarray(data.lengths("train")) - 1  # 各文档输入的 token 数
        self.trained = np.asarray(data.trained("train"))  # 各文档要训练的 token 数
        self.replay: Replay | None = None
        self._lengths, self._trained, planned = self.lengths, self.trained, self.lengths
        if old is not None and settings.replay_share:
            count = places(len(self.lengths), settings.replay_share, len(old.lengths))
            self.replay = Replay(old.lengths, count, settings.seed)
            planned = np.concatenate([self.lengths, self.replay.longest])
            self._lengths = np.concatenate([self.lengths, old.lengths])
            self._trained = np.concatenate([self.trained, old.trained])
        self.plan = BatchPlan(planned, settings.budget, settings.seed)

    @classmethod
    def open(cls, folder: Path, settings: Settings) -> Corpus:
        """WORK_DIR 的 dataset.bin 与旧诗；没有、太长、没有训练诗时抛 UserError。"""
        path = folder / artefacts.DATASET
        if not path.exists():
            raise UserError(
                f"没有找到 {path}。\n请先制作数据集：python train_dataset_one.py"
                f"{_same_from(settings)}（或 python train_dataset_all.py）"
            )
        data = _usable(path, settings, remake(settings))
        old = None
        if settings.replay_data:
            old = cls(_old_poems(data, settings), settings)
        return cls(data, settings, old)

    def files(self) -> dict[str, dataset.PoemDataset]:
        """用到的数据集：给人看的名字 → 数据集。"""
        old = {"REPLAY_DATA 的旧诗": self.old.data} if self.old is not None else {}
        return {artefacts.DATASET: self.data, **old}

    def documents(self, number: int) -> np.ndarray:
        """第 number 个微批次是哪些文档。"""
        chosen = self.plan.documents(number)
        if self.replay is None:
            return chosen
        fresh = len(self.lengths)
        turn = fresh + self.replay.documents(number // self.plan.per_epoch)
        return np.where(chosen < fresh, chosen, turn[np.maximum(chosen - fresh, 0)])

    def document(self, index: int) -> tuple:
        """编号 → (ids, mask)。"""
        if index < len(self.lengths):
            return self.data.document(self.first + index)[:2]
        return self.old.data.document(self.old.first + index - len(self.lengths))[:2]

    def batch(self, number: int) -> Batch:
        """第 number 个微批次。"""
        return assemble([self.document(int(index)) for index in self.documents(number)])

    def size(self, numbers: range) -> Size:
        """这些微批次一共多大。"""
        chosen = [self.documents(number) for number in numbers]
        return Size(
            tokens=int(sum(self._lengths[documents].sum() for documents in chosen)),
            trained=int(sum(self._trained[documents].sum() for documents in chosen)),
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
        documents = self.documents(number)
        longest = int(self._lengths[documents].max())
        return len(documents) * longest * (1000 + longest)

    def validation(self) -> np.ndarray:
        """验证用的文档编号：只给标题的、整首放得下的；没有就退而求其次。"""
        indices = np.arange(*self.data.range("val"))
        whole = [i for i in indices if self.data.whole[i]]
        titled = [i for i in whole if self.data.kind(int(i)) == "title"]
        return np.asarray(titled or whole or indices)


def remake(settings: Settings) -> str:
    """怎样重做 dataset.bin。"""
    return f"请重做数据集：python train_dataset_one.py{_same_from(settings)}"


def _same_from(settings: Settings) -> str:
    """给了 FROM 时，建数据集的命令也要带上：它的分词器在那个模型里。"""
    return f" --FROM={settings.from_}" if settings.from_ else ""


def _usable(path: Path, settings: Settings, mend: str) -> dataset.PoemDataset:
    """打开一份放得进模型、有训练诗的数据集。"""
    data = dataset.load(path)
    if data.header["max_seq_len"] > settings.max_seq_len:
        raise UserError(
            f"{path.name} 是按 MAX_SEQ_LEN={data.header['max_seq_len']} 做的，"
            f"比现在的 {settings.max_seq_len} 长。\n{mend}"
        )
    first, last = data.range("train")
    if last == first:
        raise UserError(f"{path.name} 里没有训练诗。{mend}")
    return data


def _old_poems(data: dataset.PoemDataset, settings: Settings) -> dataset.PoemDataset:
    """REPLAY_DATA 指的旧诗；分词器必须与 data 的相同。"""
    given = f"REPLAY_DATA={settings.replay_data}"
    path = files.find_input(settings.replay_data, settings.work_dir)
    if path is None:
        raise UserError(
            f"没有找到 {given}（当前目录和 {settings.work_dir} 里都没有）。\n"
            f"请写 {artefacts.DATASET} 或它所在的目录；不要就去掉 REPLAY_DATA 与 REPLAY_SHARE"
        )
    mend = f"{given} 要与 dataset.bin 用同一个分词器、同样的长度来做，什么都没有改动"
    old = _usable(path / artefacts.DATASET if path.is_dir() else path, settings, mend)
    try:
        same = fingerprint(old.tokenizer_json) == fingerprint(data.tokenizer_json)
    except ValueError as error:
        raise UserError(f"{given} 或 dataset.bin 里的分词器不能用：{error}\n{mend}") from error
    if not same:
        raise UserError(f"{given} 与 dataset.bin 的分词器不同。\n{mend}")
    return old
