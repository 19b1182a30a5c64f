"""CPU 线程怎样等：与别的程序共用一台机器时，空转着等会拖慢所有人。

一段并行做完，GNU OpenMP（PyTorch 的 Linux 安装包用它）的线程先原地空转约三十万次，几毫秒，再睡下。
机器空闲时省下叫醒的时间（空转得少，训练慢两成、写诗慢三成）；旁边有人在忙时却占着别的线程要用的核，
两个线程会比一个慢十倍。所以开始时看一眼，忙才不空转。
只改快慢，不改结果：线程数不变。
"""

from __future__ import annotations

import os
import time
from pathlib import Path

BUSY = 0.3  # 开始时别的程序已占着这么多 CPU，算忙
_CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_STAT = Path("/proc/stat")


def wait_briefly() -> None:
    """机器忙就不空转。在导入 PyTorch 之前调用；自己设过这两个环境变量之一的照他的。"""
    if not any(os.environ.get(name) for name in _CHOSEN) and busy_share() > BUSY:
        os.environ["GOMP_SPINCOUNT"] = "0"


def busy_share(seconds: float = 0.2, stat: Path = _STAT) -> float:
    """这一小会儿全部 CPU 有多大比例在忙（本进程睡着）；看不到时是 0。"""
    try:
        before = _times(stat)
        time.sleep(seconds)
        after = _times(stat)
    except (OSError, ValueError):  # 不是 Linux
        return 0.0
    spent = [late - early for early, late in zip(before, after)]
    idle = spent[3] + (spent[4] if len(spent) > 4 else 0)  # 空闲与等磁盘
    return 1 - idle / sum(spent) if sum(spent) > 0 else 0.0


def _times(stat: Path) -> list[int]:
    with open(stat, encoding="ascii", errors="replace") as file:
        numbers = [int(word) for word in file.readline().split()[1:9]]
    if len(numbers) < 4:
        raise ValueError(f"{stat} 的第一行不是 CPU 的时间")
    return numbers
