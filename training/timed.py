"""按秒数的训练：从零训练这么多秒，不写记录也不存检查点；测速与比谁学得快都用它。"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

from support import hardware
from training import loop, prepare
from training.distributed import Ranks
from training.keeper import Keeper
from training.run import Run
from training.schedule import BySeconds


class TimedRun(NamedTuple):
    """按秒数训练过的一次训练。"""

    run: Run
    work: float  # 一共算了多少，FLOP
    peak: float  # 矩阵乘的峰值，FLOP/s

    def speed(self) -> dict:
        """每秒有用 token、MFU、峰值内存。"""
        here, machine = self.run.position, self.run.machine
        speed = here.tokens / here.seconds
        return {
            "useful_tokens_per_s": round(speed, 1),
            "mfu": round(self.work / here.seconds / self.peak, 4),
            "peak_gflops": round(self.peak / 1e9, 1),
            "peak_memory_mb": peak_memory_mb(machine.device),
            "updates": here.update,
            "seconds": round(here.seconds, 2),
            "dtype": machine.dtype_name,
            "device": machine.device.type,
            "compiled": machine.compiled,
        }


class Stopwatch(Keeper):
    """只有进度条。"""

    def __init__(self, run: Run, seconds: float) -> None:
        super().__init__(run)
        self.seconds = seconds
        self.work = 0.0
        self._counted = 0  # 算进 work 的 token

    def start(self) -> None:
        self.run.voice.open_bar(round(self.seconds), "秒")

    def reached(self, row: dict) -> None:
        here = self.run.position
        here.pending = None
        self.work += (here.tokens - self._counted) * self.run.gradients.flops_per_token()
        self._counted = here.tokens
        done = min(round(self.seconds), int(here.seconds))
        self.run.voice.show(done, f"损失 {row['loss']} {row['tokens_per_s']} token/s")


def timed_run(values: dict, seconds: float) -> TimedRun:
    """从零训练这么多秒：学习率随用掉的时间走。values：config.values()。"""
    run = prepare.open_run({**values, "TRAIN_ITER": 1 << 40, "RESUME": "off"}, Ranks())
    peak = hardware.measure_peak(run.machine.device, run.machine.dtype)
    schedule = BySeconds(seconds, run.settings.decay_share)
    watch = Stopwatch(run, seconds)
    loop.fit(run, schedule, watch)
    return TimedRun(
        run, watch.work, max(peak, hardware.measure_peak(run.machine.device, run.machine.dtype))
    )


def peak_memory_mb(device: torch.device) -> int:
    """本进程到目前为止的峰值：CUDA 是分配过的显存，CPU 是常驻内存。"""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20
