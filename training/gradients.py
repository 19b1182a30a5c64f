"""一次更新的梯度从哪里来：微批次逐份前向反向，显存不够就分得更细重来，最后各进程相加。

第 n 个微批次（含 dropout）只由（种子、更新、n）决定；各进程先算完自己的，确认没有谁显存不足、
没有谁被请求停下，再一起做唯一的一次 all-reduce，所以出错时没有半途的通信。
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kernels.cross_entropy import Candidates
from support import hardware
from support.console import UserError
from training.batching import split_for
from training.distributed import Ranks
from training.machine import Machine
from training.sampled import Sampler
from training.settings import Settings
from training.stop import StopSignal
from training.teacher import Teacher
from training.voice import Voice


def micro_seed(seed: int, number: int, part: int) -> int:
    """第 number 个微批次第 part 份的随机数种子。"""
    state = np.random.SeedSequence((seed, number, part)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def _from_compiler(error: BaseException) -> bool:
    """编译器（或它编出的代码）抛出的错误。"""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))


class FlatGradients:
    """全部梯度排在一块连续的 fp32 里，各参数的 grad 是其中一段：一次 all-reduce 就汇总好。"""

    def __init__(self, model: nn.Module) -> None:
        self.params = list(model.parameters())
        total = sum(param.numel() for param in self.params)
        self.flat = torch.zeros(total, device=self.params[0].device)
        pieces = self.flat.split([param.numel() for param in self.params])
        self._views = [piece.view_as(param) for piece, param in zip(pieces, self.params)]

    def clear(self) -> None:
        """全部归零；没分到微批次的进程梯度就是 0。"""
        self.flat.zero_()
        for param, view in zip(self.params, self._views):
            param.grad = view if param.requires_grad else None


class Gradients:
    """算出一个模型的梯度，放在各参数的 grad 里。"""

    def __init__(
        self, model: nn.Module, machine: Machine, settings: Settings, ranks: Ranks, voice: Voice
    ) -> None:
        self.model, self.machine, self.ranks, self.voice = model, machine, ranks, voice
        self.seed = settings.seed
        self.may_fall_back = settings.compile == "auto"  # 编译好了的，换了形状也会再编译、再出错
        self.split = split_for(settings.budget, machine.device.type)  # 一个微批次分几份算
        self.teacher: Teacher | None = None  # 见 TEACHER
        self.sampler: Sampler | None = None  # 见 SAMPLED_SOFTMAX
        self._together = FlatGradients(model) if ranks.world_size > 1 else None

    def compute(self, batches: list, trained: int, scale: float, stop: StopSignal) -> float:
        """全体每 token 的平均损失；batches：本进程的 [(编号, 微批次), …]。

        trained：这次更新全体要训练的 token 数；scale：损失放大几倍。有谁收到信号时抛 Interrupted。
        """
        weight = scale / max(1, trained)
        while True:
            self.clear()
            total, short = self._attempt(batches, weight, stop)
            total, shorts, *marks = self.ranks.sum([total, short, *stop.marks()])
            stop.check_marks(marks)
            if not shorts:
                break
            self._split_more(batches)
        if self._together is not None:
            self.ranks.sum_gradients(self._together.flat)
        return total / max(1, trained)

    def clear(self) -> None:
        """忘掉上一次的梯度。"""
        if self._together is not None:
            self._together.clear()
        else:
            self.model.zero_grad(set_to_none=True)

    def backward(self, part: tuple, weight: float, seed: int) -> torch.Tensor:
        """一份微批次的前向与反向；返回损失之和（不求导的标量）。"""
        part, candidates = self._sampled(part, seed)
        inputs, where, labels = (self.machine.tensor(array) for array in part)
        torch.manual_seed(seed)
        with self.machine.autocast():
            soft = self.teacher.soft(inputs, where) if self.teacher is not None else None
            loss = self.model(inputs, where, labels, soft, candidates)
        (loss * weight).backward()
        return loss.detach()

    def flops_per_token(self, whole: bool = False) -> int:
        """训练一个 token 要算多少：没有抽到的词不数，停着的块也不数（whole 时数）。"""
        words = self.sampler.words if self.sampler is not None else None
        return self.model.flops_per_token(words, whole)

    def _sampled(self, part: tuple, seed: int) -> tuple:
        """(换成抽样里的编号的一份微批次, 抽到的词)；算全部的词时原样、None。"""
        inputs, where, labels = part
        drawn = self.sampler and self.sampler.draw(np.asarray(labels), seed)
        if drawn is None:
            return part, None
        words = Candidates(self.machine.tensor(drawn.rows), self.machine.tensor(drawn.bias))
        return (inputs, where, drawn.labels), words

    def _attempt(self, batches: list, weight: float, stop: StopSignal) -> tuple:
        """本进程的 (损失之和, 显存是否不足)。"""
        try:
            return self._local(batches, weight, stop), 0
        except (RuntimeError, MemoryError) as error:
            if hardware.is_out_of_memory(error):
                return 0.0, 1
            if not (self.may_fall_back and self.machine.compiled and _from_compiler(error)):
                raise
            why = f"编译的一步出错（{type(error).__name__}）"
        self.machine.stop_compiling(self.model, why)
        self.voice.say(f"{why}，从这里起不编译，重做这次更新；结果只差舍入。")
        self.clear()
        return self._attempt(batches, weight, stop)

    def _local(self, batches: list, weight: float, stop: StopSignal) -> float:
        total = torch.zeros((), device=self.machine.device)
        for number, batch in batches:
            if self.ranks.world_size == 1:  # 几个进程时，要停就一起停
                stop.check()
            for index, part in enumerate(batch.parts(self.split)):
                total += self.backward(part, weight, micro_seed(self.seed, number, index))
        return total.item()  # 一次更新只在这里等一次设备

    def _split_more(self, batches: list) -> None:
        rows = max((len(batch.inputs) for _, batch in batches), default=0)
        rows = self.ranks.largest(rows)
        if self.split >= rows:
            raise UserError(
                "显存不够：一次只算一首诗也放不下。最近的检查点是完好的。\n"
                "可以：--GRAD_CHECKPOINT=on，或减小 MAX_SEQ_LEN、GPT_DIM（要重新训练）。"
            )
        self.split *= 2
        self.clear()
        hardware.forget_freed_memory(self.machine.device)
        same = "梯度不变" if self.sampler is None else "各抽各的词，梯度的期望不变"
        self.voice.say(f"显存不够，改成每个微批次分 {self.split} 份计算（{same}），重做这次更新。")
