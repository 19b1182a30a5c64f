"""还没有进产品的做法：只有 benchmark.py study 用它们，量出好处的才写进训练。

每一种是一个 Trial：在循环的几个时刻插进来，不改训练的代码。没有好处的也留着，
docs/LOG.md 里的数才能重做。
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from gpt import GPT
from training import loop, prepare
from training.batching import Batch
from training.corpus import Corpus
from training.distributed import Ranks
from training.gradients import Gradients
from training.keeper import Keeper
from training.run import Run
from training.schedule import ByUpdates

_OTHER_SEED = 1000  # 老师的种子与学生的差这么多


class Trial:
    """一种做法；强度是配方里写的数。"""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def begin(self, run: Run) -> Run:
        """第一次更新之前；可以换掉 run 的部件。"""
        return run

    def updated(self, run: Run, lr_scale: float) -> None:
        """做完了一次更新。"""

    @contextlib.contextmanager
    def scoring(self, run: Run) -> Iterator[None]:
        """在里面验证、取权重。"""
        yield


class _NoisyCorpus(Corpus):
    """输入里有一部分 token 换成随便哪一篇里的；目标不变。"""

    def __init__(self, run: Run, share: float) -> None:
        super().__init__(run.corpus.data, run.settings)
        self._share, self._seed = share, run.settings.seed
        self._pool = np.asarray(run.corpus.data.stream("train")[0])

    def batch(self, number: int) -> Batch:
        batch = super().batch(number)
        rng = np.random.default_rng((self._seed, number, 1))
        chosen = (batch.targets >= 0) & (rng.random(batch.inputs.shape) < self._share)
        others = self._pool[rng.integers(0, len(self._pool), int(chosen.sum()))]
        batch.inputs[chosen] = others
        return batch


class Noise(Trial):
    """输入噪声：strength 是换掉的比例。"""

    def begin(self, run: Run) -> Run:
        return dataclasses.replace(run, corpus=_NoisyCorpus(run, self.strength))


class Average(Trial):
    """权重的指数平均：strength 是衰减，起初小些（预热）；验证与留下的是平均。"""

    def __init__(self, strength: float) -> None:
        super().__init__(strength)
        self._means, self._count = [], 0

    def begin(self, run: Run) -> Run:
        self._means = [param.detach().clone() for param in run.model.parameters()]
        return run

    def updated(self, run: Run, lr_scale: float) -> None:
        self._count += 1
        keep = min(self.strength, (1 + self._count) / (10 + self._count))
        params = [param.detach() for param in run.model.parameters()]
        torch._foreach_lerp_(self._means, params, 1 - keep)

    @contextlib.contextmanager
    def scoring(self, run: Run) -> Iterator[None]:
        params = [param.data for param in run.model.parameters()]
        kept = [param.clone() for param in params]
        torch._foreach_copy_(params, self._means)
        try:
            yield
        finally:
            torch._foreach_copy_(params, kept)


class EmbedDecay(Trial):
    """词嵌入也衰减：strength 同 WEIGHT_DECAY，乘学习率 LEARNING_RATE。"""

    @torch.no_grad()
    def updated(self, run: Run, lr_scale: float) -> None:
        lr = run.settings.learning_rate * lr_scale
        run.model.embed.weight.mul_(1 - lr * self.strength)


class MatrixDecay(Trial):
    """矩阵的衰减，代替产品里的（配方里写 WEIGHT_DECAY=0）：strength 乘 Muon 的学习率。

    cautious：只衰减那些更新也在变小的数；steady：不随学习率降。
    """

    def __init__(self, strength: float, cautious: bool = False, steady: bool = False) -> None:
        super().__init__(strength)
        self.cautious, self.steady = cautious, steady
        self._params, self._before = [], []

    def begin(self, run: Run) -> Run:
        self._params = [p.data for p in run.model.blocks.parameters() if p.dim() == 2]
        self._before = [param.clone() for param in self._params]
        return run

    def updated(self, run: Run, lr_scale: float) -> None:
        amount = run.settings.muon_lr * (1.0 if self.steady else lr_scale) * self.strength
        for param, before in zip(self._params, self._before):
            shrink = amount * before
            if self.cautious:
                shrink = torch.where((param - before) * before < 0, shrink, torch.zeros(()))
            param -= shrink
            before.copy_(param)


class TaughtGradients(Gradients):
    """损失 =（1 − share）× 交叉熵 + share × 与老师的概率的交叉熵（Hinton et al. 2015，温度 1）。"""

    def __init__(self, run: Run, teacher: GPT, share: float) -> None:
        super().__init__(run.model, run.machine, run.settings, run.ranks, run.voice)
        self._teacher, self._share = teacher, share

    def backward(self, part: tuple, weight: float, seed: int) -> torch.Tensor:
        inputs, where, labels = (self.machine.tensor(array) for array in part)
        torch.manual_seed(seed)
        with self.machine.autocast():
            with torch.no_grad():
                taught = self._logits(self._teacher, inputs, where).softmax(-1)  # (n, V)
            logits = self._logits(self.model, inputs, where)
        hard = F.cross_entropy(logits, labels, reduction="sum")
        soft = F.cross_entropy(logits, taught, reduction="sum")
        ((hard + self._share * (soft - hard)) * weight).backward()
        return hard.detach()

    @staticmethod
    def _logits(model: GPT, inputs: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        hidden = model.hidden(inputs).flatten(0, 1).index_select(0, where)  # (B, T, C) -> (n, C)
        return model.head(hidden).float()  # (n, V)


class Taught(Trial):
    """蒸馏：同样的配方、另一个种子先练一个老师，再由它教；strength 是老师占的份。"""

    def begin(self, run: Run) -> Run:
        teacher = prepare.open_run({**run.values, "SEED": run.settings.seed + _OTHER_SEED}, Ranks())
        if loop.fit(teacher, ByUpdates(teacher.settings), Keeper(teacher))["stopped"]:
            raise KeyboardInterrupt
        gradients = TaughtGradients(run, teacher.model.eval(), self.strength)
        return dataclasses.replace(run, gradients=gradients)


def _cautious(strength: float) -> Trial:
    return MatrixDecay(strength, cautious=True)


def _steady(strength: float) -> Trial:
    return MatrixDecay(strength, steady=True)


# 配方里的小写名字 → 做法
TRIALS = {
    "noise": Noise,
    "average": Average,
    "embed_decay": EmbedDecay,
    "cautious_decay": _cautious,
    "steady_decay": _steady,
    "taught": Taught,
}
