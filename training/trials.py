"""还没有进产品的做法：只有 benchmark.py study 用它们，量出好处的才写进训练。

每一种是一个 Trial：在循环的几个时刻插进来，不改训练的代码。没有好处的也留着，
docs/LOG.md 里的数才能重做。
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gpt import GPT
from tokenizer import BPETokenizer
from training import loop, prepare
from training.batching import Batch, assemble
from training.corpus import Corpus
from training.distributed import Ranks
from training.keeper import Keeper
from training.run import Run
from training.schedule import ByUpdates
from training.settings import Settings
from training.teacher import Teacher

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


class Taught(Trial):
    """蒸馏：同样的配方、另一个种子先练一个老师，再由它教；strength 是老师占的份。"""

    def begin(self, run: Run) -> Run:
        run.gradients.teacher = Teacher([_taught_before(run, 0, 1.0)], self.strength)
        return run


class Teachers(Trial):
    """几个老师一起教：strength 是几个；老师只练学生的六成长，往后是过拟合。"""

    _LENGTH = 0.6

    def begin(self, run: Run) -> Run:
        numbers = range(int(self.strength))
        models = [_taught_before(run, number, self._LENGTH) for number in numbers]
        run.gradients.teacher = Teacher(models) if models else None
        return run


def _taught_before(run: Run, number: int, length: float) -> GPT:
    """第 number 个老师：同样的配方，别的种子，练 length 那么长。"""
    values = {
        **run.values,
        "SEED": run.settings.seed + _OTHER_SEED + number,
        "TRAIN_ITER": max(1, round(length * run.settings.train_iter)),
    }
    teacher = prepare.open_run(values, Ranks())
    if loop.fit(teacher, ByUpdates(teacher.settings), Keeper(teacher))["stopped"]:
        raise KeyboardInterrupt
    return teacher.model


class DroppedAt(Trial):
    """只在一处丢弃（配方里写 DROPOUT=0）：strength 是丢弃率。"""

    def __init__(self, strength: float, place: str) -> None:
        super().__init__(strength)
        self.place = place

    def begin(self, run: Run) -> Run:
        for module in self._modules(run.model):
            module.register_forward_hook(self._drop)
        return run

    def _modules(self, model: GPT) -> list:
        if self.place == "embed":
            return [model.embed]
        return [
            block.attn.out if self.place == "attention" else block.mlp for block in model.blocks
        ]

    def _drop(self, module: nn.Module, _: tuple, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, self.strength, module.training)


class DroppedBlock(Trial):
    """整块的丢弃：一首诗在一块里原样通过的概率是 strength（Huang et al. 2016）。"""

    def begin(self, run: Run) -> Run:
        for block in run.model.blocks:
            block.register_forward_hook(self._drop)
        return run

    def _drop(self, block: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if not block.training:
            return output
        x, layout = inputs[:2]  # x、output：(N, C)
        kept = (torch.rand(layout.rows, device=x.device) >= self.strength).to(x.dtype)
        kept = kept.repeat_interleave(layout.length)  # (B,) -> (B·T,)
        kept = F.pad(kept, (0, x.size(0) - kept.numel())).unsqueeze(1)  # -> (N, 1)
        return x + (output - x) * kept / (1 - self.strength)


@dataclasses.dataclass(frozen=True)
class _GrowingSettings(Settings):
    """一次更新的微批次由 1 个渐渐加到 ACCUM_STEPS 个；学习率照更新的次数走。"""

    growing: float = 0.5  # 走过全程的这么多时加到头

    @functools.cached_property
    def _ends(self) -> list:
        """各次更新做完时是第几次迭代。"""
        ends = [0]
        while ends[-1] < self.train_iter:
            share = ends[-1] / (self.growing * self.train_iter) if self.growing else 1.0
            count = self.accum_steps ** min(1.0, share)  # 一直乘同样的倍数
            ends.append(min(self.train_iter, ends[-1] + round(count)))
        return ends

    @property
    def updates(self) -> int:
        return len(self._ends) - 1

    def iteration(self, update: int) -> int:
        return self._ends[min(update, self.updates)]

    def micro_batches(self, update: int) -> range:
        return range(self.iteration(update), self.iteration(update + 1))


class GrowingBatch(Trial):
    """批次渐大：strength 是走过全程的多少时加到 ACCUM_STEPS 个微批次。"""

    def begin(self, run: Run) -> Run:
        known = {
            field.name: getattr(run.settings, field.name) for field in dataclasses.fields(Settings)
        }
        settings = _GrowingSettings(**known, growing=self.strength)
        return dataclasses.replace(run, settings=settings)


class _SplitCorpus(Corpus):
    """多字的词随机拆成合并以前的两半，拆出来的可以再拆；输入与目标都拆。"""

    _TIMES = 2

    def __init__(self, run: Run, share: float) -> None:
        super().__init__(run.corpus.data, run.settings)
        self._share, self._seed, self._longest = share, run.settings.seed, run.settings.max_seq_len
        bpe = BPETokenizer.from_json(run.corpus.data.tokenizer_json)
        texts = [bpe.decode([token]) for token in range(bpe.vocab_size)]
        self._halves = np.zeros((bpe.vocab_size, 2), dtype=np.int64)  # 没有两半的是 0、0
        for (left, right), made in bpe.merges.items():
            if all("\ufffd" not in texts[token] for token in (left, right, made)):
                self._halves[made] = left, right

    def batch(self, number: int) -> Batch:
        rng = np.random.default_rng((self._seed, number, 2))
        documents = [self.document(int(index)) for index in self.documents(number)]
        return assemble([self._split(*document, rng) for document in documents])

    def _split(self, ids: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple:
        for _ in range(self._TIMES):
            chosen = (self._halves[ids, 0] > 0) & (rng.random(len(ids)) < self._share)
            ends = np.cumsum(1 + chosen)
            out = np.repeat(ids.astype(np.int64), 1 + chosen)
            out[ends[chosen] - 2], out[ends[chosen] - 1] = self._halves[ids[chosen]].T
            ids, mask = out, np.repeat(mask, 1 + chosen)
        return ids[: self._longest + 1], mask[: self._longest + 1]


class Split(Trial):
    """拆词（BPE-dropout 的近亲，Provilkov et al. 2020）：strength 是拆开的比例。"""

    def begin(self, run: Run) -> Run:
        return dataclasses.replace(run, corpus=_SplitCorpus(run, self.strength))


# 配方里的小写名字 → 做法
TRIALS = {
    "noise": Noise,
    "average": Average,
    "embed_decay": EmbedDecay,
    "cautious_decay": functools.partial(MatrixDecay, cautious=True),
    "steady_decay": functools.partial(MatrixDecay, steady=True),
    "taught": Taught,
    "teachers": Teachers,
    "drop_embed": functools.partial(DroppedAt, place="embed"),
    "drop_attention": functools.partial(DroppedAt, place="attention"),
    "drop_mlp": functools.partial(DroppedAt, place="mlp"),
    "drop_block": DroppedBlock,
    "growing": GrowingBatch,
    "split": Split,
}
