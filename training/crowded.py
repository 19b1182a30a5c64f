"""CPU 上旁边有别的程序在忙：一个进程的几个线程要处处互相等；说一句怎样改。"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from support import interpreter, threads
from training.settings import Settings

SOON = 600  # 不到这么多秒就练完的不必换


def advice(settings: Settings, seconds: float, world: int = 1) -> str:
    """分给几个进程、各一个线程的命令（一行）；不必说时为空。

    各进程只在每次更新的末尾互相等，学到的一样（DDP）。seconds：还要练多久；world：现在几个进程。
    """
    cores = torch.get_num_threads()
    count = _processes(settings.accum_steps, cores)
    idle = count < 2 or 2 * count <= cores  # 分不匀，一半的核要闲着
    if seconds < SOON or world > 1 or idle or threads.busy_share() < threads.BUSY:
        return ""
    dropped = "去掉 --RESUME=off，" if settings.resume == "off" else ""
    python = interpreter.typed(Path(sys.executable))
    return (
        "旁边有别的程序在忙，一个进程的几个线程处处互相等；分给几个进程各一个线程，只在每次更新的末尾等，"
        f"学到的一样，两核上量到快四到八成，内存约是 {count} 倍。按 Ctrl-C 停下，换成这个接着练"
        f"（{dropped}别的配置照旧）：OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 "
        f"{python} -m torch.distributed.run --nproc_per_node={count} train_gpt_ddp.py"
    )


def _processes(pieces: int, cores: int) -> int:
    """至多 cores 个进程，把一次更新的 pieces 个微批次分匀。"""
    return max(count for count in range(1, cores + 1) if pieces % count == 0)
