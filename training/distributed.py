"""训练进程之间的事：约定、汇总。单进程时同样的调用什么也不做。

次序是：launch.start 会合（只用 TCP 存储）→ together、agree 对齐文件与配置 → connect 建立通信 →
share 传检查点或起点 → 训练中 sum 与 sum_gradients → close。
对不上的、没有显卡的，都在第一次集合通信之前就说清楚。
引擎是 torch.distributed：CUDA 用 NCCL，CPU 与 Windows 用 gloo。NCCL 只在一张卡上试过一个进程。
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import io
import json
import os
import re
import sys
import time
import traceback
from typing import Any, Callable, Iterator

import torch
import torch.distributed as dist

from support import console, files, hardware
from support.console import UserError

_PIECE = 1 << 26  # 传检查点时一段的字节数
FAILURES = (RuntimeError, TimeoutError)  # 通信失败抛的；后一种是 torch 2.1 连不上 TCPStore 时的


class LostPeer(UserError):
    """与其他进程失去联系。"""


class Told(Exception):
    """训练不能进行，0 号进程已经说明原因，本进程安静退出。"""


class Ranks:
    """本进程的编号与总数；world_size 为 1 时没有任何通信。"""

    def __init__(
        self, rank: int = 0, world_size: int = 1, local_rank: int = 0, minutes: float = 5.0
    ) -> None:
        """minutes：等其他进程多久算失去联系。"""
        self.again = "重新运行同一条命令"  # 怎样接着训练，由 launch.start 定
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank
        self.minutes = minutes
        self.writer = 0  # 写文件的进程：通常是 0 号，见 resume.newest
        self.store: Any = None
        self.device = torch.device("cpu")  # 集合通信用的张量在哪里，由 connect 定
        self.seconds = {}  # 花在等待最慢进程、汇总梯度上的时间
        self._began = 0.0
        self._talks = 0
        self._lost = False
        self.start_clock()

    @property
    def is_main(self) -> bool:
        """只有这一个进程写文件、说话。"""
        return self.rank == self.writer

    @property
    def reads_files(self) -> bool:
        """每台机器有一个进程读检查点、报告共同的错误；没有启动器时每个进程自成一台。"""
        return self.rank == 0 or self.local_rank == 0 or "LOCAL_RANK" not in os.environ

    # ── 开始之前：经由存储，不需要显卡 ────────────────────────────────

    def all_gather(self, value: Any) -> list:
        """各进程的 value（能写成 JSON 的），按编号排列。"""
        if self.world_size == 1:
            return [value]
        self._talks += 1
        with self.talking():
            self.store.set(f"{self._talks}/{self.rank}", json.dumps(value))
            keys = [f"{self._talks}/{rank}" for rank in range(self.world_size)]
            return [json.loads(self.store.get(key)) for key in keys]

    def together(self, work: Callable[[], Any]) -> Any:
        """各进程都做 work()，返回自己的结果；有谁抛 UserError，全体以一条消息退出。"""
        if self.world_size == 1:
            return work()
        result, problem = None, None
        try:
            result = work()
        except UserError as error:
            problem = str(error)
        problems = self.all_gather(problem)
        different = dict.fromkeys(text for text in problems if text)
        if len(different) == 1 and all(problems):
            self.refuse(problem)
        if different:
            self.refuse("\n".join(f"{_who(text, problems)}：{text}" for text in different))
        return result

    def in_turn(self, work: Callable[[], Any]) -> None:
        """0 号进程先做，读文件的别的进程随后：同一块盘上的文件不会两个人同时动。"""
        turns = (self.rank == 0, self.rank != 0 and self.reads_files)
        for mine in turns if self.world_size > 1 else (True,):
            self.together(lambda mine=mine: _explained(work) if mine else None)

    def agree(self, facts: dict) -> None:
        """各进程的 facts 必须逐项相同，否则全体以同一条消息退出。"""
        everyone = self.all_gather(facts)
        problems = [
            f"  · {name}：0 号进程是 {wanted!r}，{rank} 号进程是 {other.get(name)!r}"
            for rank, other in enumerate(everyone)
            for name, wanted in everyone[0].items()
            if other.get(name) != wanted
        ]
        if problems:
            self.refuse(
                "各进程不一致，还没有开始训练，什么都没有改动：\n"
                + "\n".join(problems)
                + "\n请让每台机器用同样的配置、dataset.bin（里面有分词器）和设备，再重新启动。"
            )

    def refuse(self, message: str) -> None:
        """全体都要退出时：一台机器上只由一个进程说明原因。"""
        self._let_others_read()
        if self.reads_files:
            raise UserError(message)
        raise Told

    def _let_others_read(self) -> None:
        """存储可能就在 0 号进程里：它先走，还没读完的别人会以为失去联系。"""
        if self.store is None:
            return
        deadline = time.monotonic() + 5
        with contextlib.suppress(*FAILURES):
            there = self.store.add("refused", 1)
            while self.rank == 0 and there < self.world_size and time.monotonic() < deadline:
                time.sleep(0.02)
                there = self.store.add("refused", 0)

    # ── 训练之中 ──────────────────────────────────────────────────────

    def connect(self, device: torch.device) -> None:
        """建立进程组；device 是本进程的设备。后端缺失或连不通时抛 UserError；建好了就不再建。"""
        if self.world_size == 1 or dist.is_initialized():
            return
        backend = self.together(lambda: backend_for(device))
        if device.type == "cuda":
            torch.cuda.set_device(device)
            self.device = device
        _import_before_the_group()
        try:
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("group", self.store),
                rank=self.rank,
                world_size=self.world_size,
                timeout=datetime.timedelta(minutes=self.minutes),
            )
        except (*FAILURES, ValueError) as error:
            raise UserError(start_problem(error, backend, self.minutes)) from error

    def share(self, value: Any, source: int) -> Any:
        """source 号进程的 value（普通类型与张量）传给所有进程。"""
        if self.world_size == 1:
            return value
        mine = self.rank == source
        data = torch.empty(0, dtype=torch.uint8)
        if mine:
            buffer = io.BytesIO()
            torch.save(value, buffer)
            data = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        size = int(self.sum([len(data)])[0])
        pieces = []
        for start in range(0, size, _PIECE):
            piece = torch.empty(min(_PIECE, size - start), dtype=torch.uint8, device=self.device)
            if mine:
                piece.copy_(data[start : start + _PIECE])
            with self.talking():
                dist.broadcast(piece, src=source)
            pieces.append(piece.cpu())
        if mine:
            return value
        whole = io.BytesIO(torch.cat(pieces).numpy().tobytes())
        return files.read_tensors(whole)

    def sum(self, values: list) -> list:
        """各进程同位置的数相加（float64）。"""
        if self.world_size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        with self.talking():
            dist.all_reduce(total)
            return total.tolist()

    def largest(self, value: float) -> float:
        """各进程的数里最大的。"""
        mine = [value if rank == self.rank else 0.0 for rank in range(self.world_size)]
        return max(self.sum(mine))

    def sum_gradients(self, flat: torch.Tensor) -> None:
        """各进程的梯度 (参数个数,) 就地相加。"""
        if self.world_size == 1:
            return
        with self.talking("reduce"):
            dist.all_reduce(flat)

    @contextlib.contextmanager
    def talking(self, kind: str = "wait") -> Iterator[None]:
        """通信的时间记在 kind 名下；失败（进程死掉、断网、超时）→ 一条中文消息。"""
        began = time.perf_counter()
        try:
            yield
        except FAILURES as error:
            known = self.world_size == 1 or hardware.is_out_of_memory(error)
            if known or not lost_peer(error):
                raise
            self._lost = True
            traceback.clear_frames(error.__traceback__)  # 那里的局部变量握着进程组，close 就拆不掉
            if not self._speaks_of_loss():
                raise Told from error
            raise LostPeer(
                f"{self.rank} 号进程与其他进程失去联系（等待上限 {self.minutes:g} 分钟，"
                "见 DIST_TIMEOUT）。\n检查点是完好的；查明那台机器或进程为何退出后，"
                f"{self.again}就会接着训练。\n（{_first_line(error)}）"
            ) from error
        finally:
            self.seconds[kind] += time.perf_counter() - began

    def _speaks_of_loss(self) -> bool:
        """一台机器上只由一个进程报告；该说话的进程正是死掉的那个时，由还在的说。"""
        key = f"told/{os.environ.get('GROUP_RANK', '')}"
        try:
            if self.reads_files:
                self.store.set(key, "1")
                return True
            self.store.wait([key], datetime.timedelta(seconds=2))
        except FAILURES:
            return True
        return False

    def start_clock(self) -> None:
        """从现在起重新计时。"""
        self._began = time.perf_counter()
        self.seconds = {"wait": 0.0, "reduce": 0.0}

    def report(self) -> str:
        """start_clock 以来进程间通信占的时间（一行，前面带换行）；单进程为空。"""
        if self.world_size == 1:
            return ""
        total = time.perf_counter() - self._began
        wait, reduce = (self.seconds[kind] / total for kind in ("wait", "reduce"))
        return f"\n进程之间：等最慢的进程 {wait:.1%} 的时间，汇总梯度 {reduce:.1%}"

    def wait_for_main(self) -> None:
        """等写文件的进程走到同一处：别的进程先退出的话，启动器会在它写完之前就结束它。"""
        with contextlib.suppress(LostPeer, Told):
            self.sum([0])

    def close(self) -> None:
        """拆掉进程组。gloo 的线程在这里收尾，解释器退出时就没有线程还握着 Python 的对象。

        与别人失去联系以后，NCCL 的拆除可能一直等下去，留给进程退出；gloo 的不会。
        """
        if not (dist.is_available() and dist.is_initialized()) or self.world_size == 1:
            return
        if self._lost and self.device.type == "cuda":
            return
        with contextlib.suppress(*FAILURES):
            dist.destroy_process_group()


def _import_before_the_group() -> None:
    """这个模块的默认参数会记住导入时的进程组，永不放手：要在建立进程组之前导入。

    编译用到的 torch._dynamo 会导入它；用 importlib，免得 torch 成了局部的名字。
    """
    importlib.import_module("torch.distributed.nn.functional")


def _explained(work: Callable[[], Any]) -> None:
    """磁盘满了之类也要让别的进程知道。"""
    try:
        work()
    except OSError as error:
        raise UserError(console.explain(error)) from error


def _who(text: str, problems: list) -> str:
    return "、".join(str(rank) for rank, other in enumerate(problems) if other == text) + " 号进程"


_LOST_MARKS = (
    "connection",
    "timed out",
    "timeout",
    "gloo",
    "nccl",
    "peer",
    "socket",
    "broken pipe",
    "recv",
    "store",
)


def lost_peer(error: BaseException) -> bool:
    """这个异常是不是通信失败。"""
    kinds = (getattr(dist, "DistBackendError", ()), getattr(dist, "DistNetworkError", ()))
    if any(kind and isinstance(error, kind) for kind in kinds):
        return True
    text = str(error).lower()
    return any(mark in text for mark in _LOST_MARKS)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\]\s*", "", line).split(". This")[0][:160]


def backend_for(device: torch.device) -> str:
    """设备 → torch.distributed 的后端；不支持时抛 UserError。"""
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"多进程训练只支持 CPU 与 CUDA，不支持 {device.type}：--DEVICE=cpu")
    if device.type == "cpu" or sys.platform == "win32":
        return "gloo"
    if not dist.is_nccl_available():
        raise UserError(
            "这份 PyTorch 没有 NCCL，多卡训练不能用显卡通信。\n"
            "请安装带 CUDA 的 PyTorch，或先用 CPU：--DEVICE=cpu"
        )
    return "nccl"


def start_problem(error: BaseException, what: str, minutes: float) -> str:
    """建不起通信的原因与办法；what：后端或存储的名字。"""
    text = str(error).lower()
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if "address already in use" in text or "eaddrinuse" in text:
        return f"端口 {where} 已被占用。请换一个：设 MASTER_PORT=29501（或等旧进程退出）"
    if "libuv" in text:
        return (
            "这份 PyTorch 的 torchrun 需要 libuv（Windows 上没有）。\n"
            "请手工设置 RANK、WORLD_SIZE、MASTER_ADDR、MASTER_PORT，"
            "再直接运行 python train_gpt_ddp.py"
        )
    return (
        f"分布式启动失败（{what}，{where}，等待上限 {minutes:g} 分钟）：{_first_line(error)}\n"
        "请确认所有进程都已启动、地址互相能连通；"
        "多网卡时设置 GLOO_SOCKET_IFNAME 或 NCCL_SOCKET_IFNAME。"
    )
