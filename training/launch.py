"""多进程训练怎样启动：启动器的参数、每个进程的线程数、各进程的会合。"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import signal
import sys
import time
import uuid
from typing import Iterator

import torch
import torch.distributed as dist

from support.console import UserError
from training.distributed import FAILURES, Ranks, start_problem


def drop_launcher_arguments(argv: list) -> list:
    """去掉 torch.distributed.launch 传来的 --local-rank=N / --local_rank N。"""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word in ("--local-rank", "--local_rank"):
            skip = True
        elif not word.startswith(("--local-rank=", "--local_rank=")):
            kept.append(word)
    return kept


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """各进程必然犯同样错误的地方（命令行）：同一台机器上只有一个进程打印。"""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        except SystemExit:
            wait_to_be_ended()
            raise


def wait_to_be_ended() -> None:
    """等启动器来结束本进程：若先退出，启动器会在 0 号进程说完话之前就结束它。"""
    time.sleep(10)


def leave_undisturbed() -> None:
    """被请求停下、已经收好场的进程：先退出的那个会让启动器来催其余的，不理会，照实报退出码。"""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def set_threads() -> None:
    """CPU 核分给本机的进程；torchrun 默认的 OMP_NUM_THREADS=1 不算使用者的意思。

    使用者给了别的 OMP_NUM_THREADS，或给了 MKL_NUM_THREADS，就照他的。
    """
    local_size = _number("LOCAL_WORLD_SIZE", 1)
    given = os.environ.get("OMP_NUM_THREADS", "1") != "1" or "MKL_NUM_THREADS" in os.environ
    if local_size == 1 or given:
        return
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // local_size))


# ── 会合 ──────────────────────────────────────────────────────────────


def start(resume: str, minutes: float) -> Ranks:
    """按环境变量（torchrun 或手工设置的 RANK、WORLD_SIZE、MASTER_ADDR）会合。

    没有这些变量就是单进程。端口被占、等不到其他进程时抛 UserError。
    """
    world_size = _number("WORLD_SIZE", 1)
    rank = _number("RANK", 0)
    local_rank = _number("LOCAL_RANK", rank if world_size > 1 else 0)
    ranks = Ranks(rank, world_size, local_rank, minutes)
    if resume == "off":
        ranks.again = "重新运行，不带 --RESUME=off（有它就从头再来）"
    if world_size == 1:
        return ranks
    if not 0 <= rank < world_size:
        raise UserError(f"RANK={rank} 应当在 0 到 WORLD_SIZE-1={world_size - 1} 之间。")
    if not dist.is_available():
        raise UserError("这份 PyTorch 不带 torch.distributed，只能单进程：python train_gpt.py")
    if resume == "off" and _number("TORCHELASTIC_MAX_RESTARTS", 0):
        _refuse_restarts(ranks)
    for name, default in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        os.environ.setdefault(name, default)
    os.environ.setdefault(_blocking_wait(), "1")  # 超时变成异常，而不是由 NCCL 直接中止进程
    if sys.platform == "win32":
        os.environ.setdefault("USE_LIBUV", "0")  # Windows 的安装包里没有 libuv
    set_threads()
    try:
        ranks.store = _meet(rank, world_size, datetime.timedelta(minutes=minutes))
    except (*FAILURES, ValueError) as error:
        raise UserError(start_problem(error, "TCPStore", minutes)) from error
    return ranks


def _blocking_wait() -> str:
    """这个环境变量在 2.2 里改了名字；再用旧名字，每个进程都要警告一次。"""
    old = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 2)
    return "NCCL_BLOCKING_WAIT" if old else "TORCH_NCCL_BLOCKING_WAIT"


def _refuse_restarts(ranks: Ranks) -> None:
    ranks.refuse(
        "--RESUME=off 不能与 --max-restarts 同用：每次自动重启都会从头开始。\n"
        "什么都没有改动。要另起一次训练，请换一个空的 --WORK_DIR。"
    )


def _meet(rank: int, world_size: int, patience: datetime.timedelta) -> dist.Store:
    """各进程都在场的、这一轮专用的存储。

    torchrun 重启进程时可能仍用原来的存储，里面有上一轮的键。所以各进程报上随机的名字，
    0 号据此点名：名单上都是这一轮的名字，且人人应了，才用这份名单的前缀开始。
    """
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", rank, world_size, timeout=patience))
    store.set_timeout(patience)
    name = uuid.uuid4().hex
    deadline = time.monotonic() + patience.total_seconds()
    store.set(f"name/{rank}", name)
    roll = _call_roll if rank == 0 else _answer_roll
    prefix = roll(store, rank, world_size, name, deadline)
    return dist.PrefixStore(prefix, store)


def _call_roll(store: dist.Store, rank: int, world_size: int, name: str, deadline: float) -> str:
    """0 号进程点名，返回这一轮的前缀。"""
    called, number, prefix = None, 0, ""
    while time.monotonic() < deadline:
        names = [store.get(f"name/{other}").decode() for other in range(world_size)]
        if names != called:
            called, number = names, number + 1
            prefix = f"{name}/{number}"
            _set_roll(store, prefix, names, go=False)
        if store.add(f"{prefix}/here", 0) == world_size - 1:
            _set_roll(store, prefix, names, go=True)
            return prefix
        time.sleep(0.02)
    raise RuntimeError("timed out: not every process answered")


def _answer_roll(store: dist.Store, rank: int, world_size: int, name: str, deadline: float) -> str:
    """其余进程应答，直到 0 号说开始。"""
    answered = None
    while time.monotonic() < deadline:
        roll = json.loads(store.get("roll"))
        if len(roll["names"]) == world_size and roll["names"][rank] == name:
            if roll["go"]:
                return roll["prefix"]
            if answered != roll["prefix"]:
                answered = roll["prefix"]
                store.add(f"{answered}/here", 1)
        time.sleep(0.02)
    raise RuntimeError("timed out: rank 0 did not call this process")


def _set_roll(store: dist.Store, prefix: str, names: list, go: bool) -> None:
    store.set("roll", json.dumps({"prefix": prefix, "names": names, "go": go}))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"环境变量 {name}={text!r} 应当是整数。") from error
