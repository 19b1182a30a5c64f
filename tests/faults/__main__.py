"""故障演习：python -m tests.faults [--SECONDS=120] [--SEED=0] [--ONLY=kills,disk] [--TIMES=5]

每个会写的脚本在随机的时刻被杀死、被信号打断、遇上坏磁盘、两个一起写；每一种文件被弄坏、被换成
恶意的；每个脚本的选项、接口与 chat() 的每个字段乱写；外来的诗乱拼。最后是一张表：试了几次，
说明白几次，照常几次；丢失、回溯、悄悄错应当都是 0，有一个就以 1 退出。
时间分给各项（给了 TIMES 就各做这么多次）。第 n 次尝试由（种子、项、n）决定，
只有按时间杀死的时刻随机器快慢。manual 要 pip install schemathesis，没有就不做。
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # 小模型多线程反而慢，分出来的进程也只认一个
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from support import console  # noqa: E402
from tests.faults import (  # noqa: E402
    asks,
    commands,
    damage,
    foreign,
    hostile,
    kills,
    manual,
    troubles,
)
from tests.faults.tally import Tally  # noqa: E402
from tests.faults.workshop import CAN_FORK, Workshop  # noqa: E402

# 项 → 占多少份时间；要 fork 的在别的系统上不做
SHARES = {
    "kills": 30,
    "signals": 8,
    "early": 3,
    "disk": 12,
    "two": 6,
    "spoiled": 6,
    "scripts": 6,
    "hostile": 6,
    "mistyped": 5,
    "options": 3,
    "commands": 6,
    "foreign": 4,
    "parse": 2,
    "chat": 4,
    "served": 6,
    "manual": 6,
}
_STRIDE = 8  # 与步数互素：少做几次时也轮到各种脚本
_FORKING = ("disk", "two", "scripts", "hostile", "mistyped", "commands")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--SECONDS", type=float, default=120.0)
    parser.add_argument("--SEED", default="0")
    parser.add_argument("--ONLY", default=",".join(SHARES))
    parser.add_argument("--TIMES", type=int, default=0)
    given = parser.parse_args()
    chosen = [name for name in given.ONLY.split(",") if name in SHARES]
    if not CAN_FORK:
        chosen = [name for name in chosen if name not in _FORKING]
    if not manual.INSTALLED:
        chosen = [name for name in chosen if name != "manual"]
    print(f"种子 {given.SEED}，{given.SECONDS:g} 秒：{'、'.join(chosen)}", flush=True)
    began, tally = time.monotonic(), Tally()
    try:
        with tempfile.TemporaryDirectory(dir=_quick_disk()) as folder:
            campaign(Workshop(Path(folder)), tally, chosen, given)
    finally:  # 半路停下的也有表
        print(tally.table())
        seconds = console.duration(time.monotonic() - began)
        print(f"\n种子 {given.SEED}，{seconds}，坏的 {tally.bad} 次")
    return 1 if tally.bad else 0


def campaign(shop: Workshop, tally: Tally, chosen: list, given: argparse.Namespace) -> None:
    """各项依次做，时间照份数分，或各做 TIMES 次。"""
    left, seed = given.SECONDS, given.SEED
    for place, name in enumerate(chosen):
        began = time.monotonic()
        share = max(left, 0) * SHARES[name] / sum(SHARES[each] for each in chosen[place:])
        print(f"{name}（{share:.0f} 秒）", file=sys.stderr, flush=True)
        if name == "served":
            asks.Served(_folder(shop, name), tally).run(share, seed)
            continue
        if name == "manual":
            number = random.Random(f"{seed} {name}").randrange(1 << 31)
            manual.ask(_folder(shop, name), tally, share, number)
            continue
        one, number = deed(name, shop, tally), 0
        while _goes_on(number, given.TIMES, time.monotonic() - began, share):
            one(number, f"{seed} {name} {number}")
            number += 1
        left -= time.monotonic() - began


def _goes_on(number: int, times: int, seconds: float, share: float) -> bool:
    return number < times if times else number == 0 or seconds < share


def deed(name: str, shop: Workshop, tally: Tally) -> object:
    """一项 → 做一次的函数，收下第几次与它的种子。"""
    by_case = {
        "kills": kills.kill,
        "signals": kills.signals,
        "disk": troubles.disk,
        "two": troubles.two_writers,
    }
    if name in by_case:
        cases, one = shop.cases, by_case[name]
        return lambda number, seed: one(
            shop, tally, cases[number * _STRIDE % len(cases)], random.Random(seed)
        )
    one = {
        "early": lambda: lambda rng: kills.early_interrupt(shop, tally, rng),
        "spoiled": lambda: damage.Spoiled(shop, tally).one,
        "scripts": lambda: lambda rng: damage.scripts(shop, tally, rng),
        "hostile": lambda: lambda rng: hostile.one(shop, tally, rng),
        "mistyped": lambda: lambda rng: hostile.mistyped(shop, tally, rng),
        "options": lambda: commands.Options(tally).one,
        "commands": lambda: lambda rng: commands.scripts(shop, tally, rng),
        "foreign": lambda: foreign.Foreign(_folder(shop, name), tally).one,
        "parse": lambda: lambda rng: asks.parse(tally, rng),
        "chat": lambda: asks.Chats(_folder(shop, name), tally).one,
    }[name]()
    return lambda number, seed: one(random.Random(seed))


def _quick_disk() -> str | None:
    """内存盘：落盘不用等，同样的时间多试几倍。没有就用平常的临时目录。"""
    memory = "/dev/shm"
    return memory if os.access(memory, os.W_OK) and "TMPDIR" not in os.environ else None


def _folder(shop: Workshop, name: str) -> Path:
    folder = shop.folder / name
    folder.mkdir()
    return folder


if __name__ == "__main__":
    console.run(main)
