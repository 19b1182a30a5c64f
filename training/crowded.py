"""CPU 上旁边有别的程序在忙：一个进程的几个线程要处处互相等；说一句怎样改。"""

from __future__ import annotations

import torch

from support import threads
from training.settings import Settings

SOON = 600  # 不到这么多秒就练完的不必换


def advice(settings: Settings, seconds: float, world: int = 1) -> str:
    """分给几个进程、各一个线程的命令（一行）；不必说时为空。

    各进程只在每次更新的末尾互相等，学到的一样（DDP）。seconds：还要练多久；world：现在几个进程。
    """
    count = min(torch.get_num_threads(), settings.accum_steps)
    if seconds < SOON or world > 1 or count < 2 or threads.busy_share() < threads.BUSY:
        return ""
    return (
        "旁边有别的程序在忙，一个进程的几个线程处处互相等；分给几个进程各一个线程，只在每次更新的末尾等，"
        f"快四成到八成，学到的一样，内存约是 {count} 倍。按 Ctrl-C 停下，"
        f"换成这个接着练，后面的配置照旧：torchrun --nproc_per_node={count} train_gpt_ddp.py"
    )
