"""训练进程之间的事：启动、约定、汇总。单进程时同样的调用什么也不做。

引擎是 torch.distributed：CUDA 用 NCCL，CPU 与 Windows 用 gloo。NCCL 路径没有在显卡上跑过。
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys

import torch
import torch.distributed as dist

from common import UserError


class Ranks:
    """本进程的编号与总数；world 为 1 时没有任何通信。"""

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0, minutes: float = 5.0):
        self.rank, self.world, self.local_rank = rank, world, local_rank
        self.minutes = minutes

    @property
    def first(self) -> bool:
        """只有 0 号进程写文件、说话。"""
        return self.rank == 0

    def sum(self, values: list, device) -> list:
        """各进程同位置的数相加（float64）。"""
        if self.world == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=device)
        with self.talking():
            dist.all_reduce(total)
            return total.tolist()

    def agree(self, facts: dict) -> None:
        """各进程的 facts 必须逐项相同，否则全体以同一条消息退出。"""
        if self.world == 1:
            return
        everyone = [None] * self.world
        with self.talking():
            dist.all_gather_object(everyone, facts)
        problems = [
            f"  · {name}：0 号进程是 {everyone[0].get(name)!r}，{rank} 号进程是 {other.get(name)!r}"
            for rank, other in enumerate(everyone)
            for name in facts
            if other.get(name) != everyone[0].get(name)
        ]
        if problems:
            raise UserError(
                "各进程不一致，还没有开始训练：\n"
                + "\n".join(problems)
                + "\n请让每台机器用同样的配置、dataset.bin、分词器和检查点，再重新启动。"
            )

    def share(self, value):
        """0 号进程的 value 传给所有进程。"""
        if self.world == 1:
            return value
        box = [value]
        with self.talking():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextlib.contextmanager
    def talking(self):
        """通信失败（进程死掉、断网、超时）→ 一条中文消息。"""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not lost_peer(error):
                raise
            raise UserError(
                f"{self.rank} 号进程与其他进程失去联系（等待上限 {self.minutes:g} 分钟，"
                "见 DIST_TIMEOUT）。\n检查点是完好的；查明那台机器或进程为何退出后，"
                f"重新运行同一条命令就会接着训练。\n（{_first_line(error)}）"
            ) from error

    def close(self) -> None:
        if self.world > 1 and dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


_LOST_MARKS = (
    "connection",
    "timed out",
    "timeout",
    "gloo",
    "nccl",
    "peer",
    "socket",
    "broken pipe",
    "store",
)


def lost_peer(error: BaseException) -> bool:
    """这个异常是不是通信失败。"""
    kinds = (getattr(dist, "DistBackendError", ()), getattr(dist, "DistNetworkError", ()))
    if any(kind and isinstance(error, kind) for kind in kinds):
        return True
    text = str(error).lower()
    return any(mark in text for mark in _LOST_MARKS)


def _first_line(error) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


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


def start(device_name: str, minutes: float) -> Ranks:
    """按环境变量（torchrun 或手工设置的 RANK、WORLD_SIZE、MASTER_ADDR）加入进程组。

    没有这些变量就是单进程。端口被占、后端缺失、等不到其他进程时抛 UserError。
    """
    world = _number("WORLD_SIZE", 1)
    rank = _number("RANK", 0)
    local_rank = _number("LOCAL_RANK", rank if world > 1 else 0)
    if world == 1:
        return Ranks(minutes=minutes)
    if not dist.is_available():
        raise UserError("这份 PyTorch 不带 torch.distributed，只能单进程：python train_gpt.py")
    for name, default in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        os.environ.setdefault(name, default)
    backend = _backend(device_name)
    timeout = datetime.timedelta(minutes=minutes)
    try:
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise UserError(_start_problem(error, backend, minutes)) from error
    return Ranks(rank, world, local_rank, minutes)


def _number(name, default):
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"环境变量 {name}={text!r} 应当是整数。") from error


def _backend(device_name):
    cuda = device_name == "cuda" or (device_name == "auto" and torch.cuda.is_available())
    if not cuda or sys.platform == "win32":
        return "gloo"
    if not dist.is_nccl_available():
        raise UserError(
            "这份 PyTorch 没有 NCCL，多卡训练不能用显卡通信。\n"
            "请安装带 CUDA 的 PyTorch，或先用 CPU：--DEVICE=cpu"
        )
    return "nccl"


def _start_problem(error, backend, minutes):
    text = str(error).lower()
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if "address already in use" in text or "eaddrinuse" in text:
        return f"端口 {where} 已被占用。请换一个：torchrun --master-port=29501 …（或等旧进程退出）"
    if "libuv" in text:
        return (
            "这份 PyTorch 的 torchrun 需要 libuv（Windows 上没有）。\n"
            "请手工设置 RANK、WORLD_SIZE、MASTER_ADDR、MASTER_PORT，"
            "再直接运行 python train_gpt_ddp.py"
        )
    return (
        f"分布式启动失败（{backend}，{where}，等待上限 {minutes:g} 分钟）：{_first_line(error)}\n"
        "请确认所有进程都已启动、地址互相能连通；"
        "多网卡时设置 GLOO_SOCKET_IFNAME 或 NCCL_SOCKET_IFNAME。"
    )
