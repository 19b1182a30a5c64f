"""各进程的权重应当逐位相同：每次验证、保存之前核对，不同就停下，不让坏的权重进检查点。"""

from __future__ import annotations

import contextlib
import hashlib
import platform

import torch

from training.run import Run

_BITS = 48  # 摘要取这么多位：各进程相加时用的 float64 装得下


class Unison:
    """一次训练里各进程的核对。"""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._rounding = False  # 机器不一样，舍入有差别，已经说过

    def check(self) -> None:
        """各进程一起叫；权重不同时全体以一条消息退出，说出是哪个进程。

        机器不一样（显卡、处理器、库的版本）时舍入本来就会差一点：不停，说一声。
        """
        run = self.run
        if run.ranks.world_size == 1 or self._rounding:
            return
        weights = self._everyone(_digest(run.model))
        if len(set(weights)) == 1:
            return
        if len(set(self._everyone(_shorten(self._machine().encode("utf-8", "replace"))))) > 1:
            self._rounding = True
            run.voice.say("各进程的机器或库不一样，权重已有舍入的差别；以写检查点的进程为准。")
            return
        run.whole = False  # 不知道谁对，离开时也不要存
        run.ranks.refuse(
            f"第 {run.position.update} 次更新以后各进程的权重不再相同：{odd_ones(weights)}。"
            "像是内存或显存出了错；没有保存这些权重，上一个检查点原样还在。\n"
            "请查那台机器（内存、显存、超频），再运行同一条命令，就从检查点接着训练。"
        )

    def _everyone(self, mine: int) -> list:
        """各进程的数，按编号排列。"""
        ranks = self.run.ranks
        return ranks.sum([float(mine) * (rank == ranks.rank) for rank in range(ranks.world_size)])

    def _machine(self) -> str:
        """本机的样子：一样的，算出来的就该逐位相同。"""
        machine = self.run.machine
        cuda = machine.device.type == "cuda"
        name = torch.cuda.get_device_name(machine.device) if cuda else _processor()
        return f"{name} {torch.__version__} {torch.get_num_threads()} {machine.compiled}"


def _digest(model: torch.nn.Module) -> int:
    found = hashlib.sha256()
    for value in model.state_dict().values():
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return _shorten(found.digest())


def _shorten(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest(), "big") >> (256 - _BITS)


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        models = {line for line in file if line.startswith(("model name", "CPU part"))}
        return " ".join(sorted(models))
    return platform.processor()


def odd_ones(weights: list) -> str:
    """与多数不同的进程；分不出多数时都说。"""
    common = max(weights, key=weights.count)
    if 2 * weights.count(common) > len(weights):
        odd = [str(rank) for rank, value in enumerate(weights) if value != common]
        return f"{'、'.join(odd)} 号进程与别的不同"
    groups = {}
    for rank, value in enumerate(weights):
        groups.setdefault(value, []).append(str(rank))
    return "，".join("、".join(group) for group in groups.values()) + " 号进程彼此不同"
