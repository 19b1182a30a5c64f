"""训练进程之间的事：会合、约定、汇总。单进程时同样的调用什么也不做。

次序是：start 会合（只用 TCP 存储）→ together、agree 对齐文件与配置 → connect 建立通信 →
share 传检查点 → 训练中 sum 与 DDP。对不上的、没有显卡的，都在第一次集合通信之前就说清楚。
引擎是 torch.distributed：CUDA 用 NCCL，CPU 与 Windows 用 gloo。NCCL 路径没有在显卡上跑过。
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import re
import sys
import time
import uuid
from typing import Any, Callable, Iterator

import torch
import torch.distributed as dist

from support.console import UserError

_PIECE = 1 << 26  # 传检查点时一段的字节数


class LostPeer(UserError):
    """与其他进程失去联系。"""


class Told(Exception):
    """训练不能进行，0 号进程已经说明原因，本进程安静退出。"""


class Ranks:
    """本进程的编号与总数；world 为 1 时没有任何通信。"""

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0, minutes: float = 5.0):
        self.rank, self.world, self.local_rank = rank, world, local_rank
        self.minutes = minutes
        self.writer = 0  # 写文件的进程：通常是 0 号，见 trainer 里检查点的选取
        self.store = None
        self.start_clock()  # self.seconds：花在等待最慢进程、汇总梯度上的时间
        self._talks = 0
        self._lost = False

    @property
    def first(self) -> bool:
        """只有这一个进程写文件、说话。"""
        return self.rank == self.writer

    @property
    def reads_files(self) -> bool:
        """每台机器有一个进程读检查点、报告共同的错误。"""
        return self.rank == 0 or self.local_rank == 0 or not _launched()

    # ── 开始之前：经由存储，不需要显卡 ────────────────────────────────

    def everyone(self, value) -> list:
        """各进程的 value（能写成 JSON 的），按编号排列。"""
        if self.world == 1:
            return [value]
        self._talks += 1
        with self.talking():
            self.store.set(f"{self._talks}/{self.rank}", json.dumps(value))
            keys = [f"{self._talks}/{rank}" for rank in range(self.world)]
            return [json.loads(self.store.get(key)) for key in keys]

    def together(self, work: Callable[[], Any]):
        """各进程都做 work()，返回自己的结果；有谁抛 UserError，全体以一条消息退出。"""
        if self.world == 1:
            return work()
        result, problem = None, None
        try:
            result = work()
        except UserError as error:
            problem = str(error)
        problems = self.everyone(problem)
        different = dict.fromkeys(text for text in problems if text)
        if len(different) == 1 and all(problems):
            self._refuse(problem)
        if different:
            self._refuse("\n".join(f"{_who(text, problems)}：{text}" for text in different))
        return result

    def agree(self, facts: dict) -> None:
        """各进程的 facts 必须逐项相同，否则全体以同一条消息退出。"""
        everyone = self.everyone(facts)
        problems = [
            f"  · {name}：0 号进程是 {wanted!r}，{rank} 号进程是 {other.get(name)!r}"
            for rank, other in enumerate(everyone)
            for name, wanted in everyone[0].items()
            if other.get(name) != wanted
        ]
        if problems:
            self._refuse(
                "各进程不一致，还没有开始训练，什么都没有改动：\n"
                + "\n".join(problems)
                + "\n请让每台机器用同样的配置、dataset.bin（里面有分词器）和设备，再重新启动。"
            )

    def _refuse(self, message):
        if self.reads_files:
            raise UserError(message)
        raise Told

    # ── 训练之中 ──────────────────────────────────────────────────────

    def connect(self, device: torch.device) -> None:
        """建立进程组；device 是本进程的设备。后端缺失或连不通时抛 UserError。"""
        if self.world == 1:
            return
        backend = self.together(lambda: _backend(device))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("group", self.store),
                rank=self.rank,
                world_size=self.world,
                timeout=datetime.timedelta(minutes=self.minutes),
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(_start_problem(error, backend, self.minutes)) from error

    def share(self, value, source: int, device):
        """source 号进程的 value（普通类型与张量）传给所有进程。"""
        if self.world == 1:
            return value
        mine = self.rank == source
        data = torch.empty(0, dtype=torch.uint8)
        if mine:
            buffer = io.BytesIO()
            torch.save(value, buffer)
            data = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        size = int(self.sum([len(data)], device)[0])
        pieces = []
        for start in range(0, size, _PIECE):
            piece = torch.empty(min(_PIECE, size - start), dtype=torch.uint8, device=device)
            if mine:
                piece.copy_(data[start : start + _PIECE])
            with self.talking():
                dist.broadcast(piece, src=source)
            pieces.append(piece.cpu())
        if mine:
            return value
        whole = io.BytesIO(torch.cat(pieces).numpy().tobytes())
        return torch.load(whole, map_location="cpu", weights_only=True)

    def sum(self, values: list, device) -> list:
        """各进程同位置的数相加（float64）。"""
        if self.world == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=device)
        with self.talking():
            dist.all_reduce(total)
            return total.tolist()

    @contextlib.contextmanager
    def talking(self, kind: str = "wait") -> Iterator[None]:
        """通信的时间记在 kind 名下；失败（进程死掉、断网、超时）→ 一条中文消息。"""
        began = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not lost_peer(error):
                raise
            self._lost = True
            if not self._speaks_of_loss():
                raise Told from error
            raise LostPeer(
                f"{self.rank} 号进程与其他进程失去联系（等待上限 {self.minutes:g} 分钟，"
                "见 DIST_TIMEOUT）。\n检查点是完好的；查明那台机器或进程为何退出后，"
                f"重新运行同一条命令就会接着训练。\n（{_first_line(error)}）"
            ) from error
        finally:
            self.seconds[kind] += time.perf_counter() - began

    def _speaks_of_loss(self):
        """一台机器上只由一个进程报告；该说话的进程正是死掉的那个时，由还在的说。"""
        key = f"told/{os.environ.get('GROUP_RANK', '')}"
        try:
            if self.reads_files:
                self.store.set(key, "1")
                return True
            self.store.wait([key], datetime.timedelta(seconds=2))
        except RuntimeError:
            return True
        return False

    def start_clock(self) -> None:
        """从现在起重新计时。"""
        self._began = time.perf_counter()
        self.seconds = {"wait": 0.0, "reduce": 0.0}

    def report(self) -> str:
        """start_clock 以来进程间通信占的时间（一行，前面带换行）；单进程为空。"""
        if self.world == 1:
            return ""
        total = time.perf_counter() - self._began
        wait, reduce = (self.seconds[kind] / total for kind in ("wait", "reduce"))
        return f"\n进程之间：等最慢的进程 {wait:.1%} 的时间，汇总梯度 {reduce:.1%}"

    def close(self) -> None:
        if self.world > 1 and dist.is_initialized() and not self._lost:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def _who(text, problems):
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


def _first_line(error) -> str:
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\]\s*", "", line).split(". This")[0][:160]


# ── 启动器 ────────────────────────────────────────────────────────────


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


def _launched() -> bool:
    """由 torchrun 一类的启动器启动，同一个终端里有几个进程。"""
    return "LOCAL_RANK" in os.environ


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


def set_threads() -> None:
    """CPU 核分给本机的进程；torchrun 默认的 OMP_NUM_THREADS=1 不算使用者的意思。

    使用者给了别的 OMP_NUM_THREADS，或给了 MKL_NUM_THREADS，就照他的。
    """
    local_world = _number("LOCAL_WORLD_SIZE", 1)
    given = os.environ.get("OMP_NUM_THREADS", "1") != "1" or "MKL_NUM_THREADS" in os.environ
    if local_world == 1 or given:
        return
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // local_world))


# ── 会合 ──────────────────────────────────────────────────────────────


def start(resume: str, minutes: float) -> Ranks:
    """按环境变量（torchrun 或手工设置的 RANK、WORLD_SIZE、MASTER_ADDR）会合。

    没有这些变量就是单进程。端口被占、等不到其他进程时抛 UserError。
    """
    world = _number("WORLD_SIZE", 1)
    rank = _number("RANK", 0)
    local_rank = _number("LOCAL_RANK", rank if world > 1 else 0)
    ranks = Ranks(rank, world, local_rank, minutes)
    if world == 1:
        return ranks
    if not 0 <= rank < world:
        raise UserError(f"RANK={rank} 应当在 0 到 WORLD_SIZE-1={world - 1} 之间。")
    if not dist.is_available():
        raise UserError("这份 PyTorch 不带 torch.distributed，只能单进程：python train_gpt.py")
    if resume == "off" and _number("TORCHELASTIC_MAX_RESTARTS", 0):
        _refuse_restarts(ranks)
    for name, default in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        os.environ.setdefault(name, default)
    for name in ("TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT"):
        os.environ.setdefault(name, "1")  # 超时变成异常，而不是由 NCCL 直接中止进程
    if sys.platform == "win32":
        os.environ.setdefault("USE_LIBUV", "0")  # Windows 的安装包里没有 libuv
    set_threads()
    try:
        ranks.store = _meet(rank, world, datetime.timedelta(minutes=minutes))
    except (RuntimeError, ValueError) as error:
        raise UserError(_start_problem(error, "TCPStore", minutes)) from error
    return ranks


def _refuse_restarts(ranks):
    ranks._refuse(
        "--RESUME=off 不能与 --max-restarts 同用：每次自动重启都会从头开始。\n"
        "什么都没有改动。要另起一次训练，请换一个空的 --WORK_DIR。"
    )


def _meet(rank, world, patience):
    """各进程都在场的、这一轮专用的存储。

    torchrun 重启进程时可能仍用原来的存储，里面有上一轮的键。所以各进程报上随机的名字，
    0 号据此点名：名单上都是这一轮的名字，且人人应了，才用这份名单的前缀开始。
    """
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", rank, world, timeout=patience))
    store.set_timeout(patience)
    name = uuid.uuid4().hex
    deadline = time.monotonic() + patience.total_seconds()
    store.set(f"name/{rank}", name)
    roll = _call_roll if rank == 0 else _answer_roll
    prefix = roll(store, rank, world, name, deadline)
    return dist.PrefixStore(prefix, store)


def _call_roll(store, rank, world, name, deadline):
    """0 号进程点名，返回这一轮的前缀。"""
    called, number, prefix = None, 0, ""
    while time.monotonic() < deadline:
        names = [store.get(f"name/{other}").decode() for other in range(world)]
        if names != called:
            called, number = names, number + 1
            prefix = f"{name}/{number}"
            _set_roll(store, prefix, names, go=False)
        if store.add(f"{prefix}/here", 0) == world - 1:
            _set_roll(store, prefix, names, go=True)
            return prefix
        time.sleep(0.02)
    raise RuntimeError("timed out: not every process answered")


def _answer_roll(store, rank, world, name, deadline):
    """其余进程应答，直到 0 号说开始。"""
    answered = None
    while time.monotonic() < deadline:
        roll = json.loads(store.get("roll"))
        if len(roll["names"]) == world and roll["names"][rank] == name:
            if roll["go"]:
                return roll["prefix"]
            if answered != roll["prefix"]:
                answered = roll["prefix"]
                store.add(f"{answered}/here", 1)
        time.sleep(0.02)
    raise RuntimeError("timed out: rank 0 did not call this process")


def _set_roll(store, prefix, names, go):
    store.set("roll", json.dumps({"prefix": prefix, "names": names, "go": go}))


def _number(name, default):
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"环境变量 {name}={text!r} 应当是整数。") from error


def _backend(device):
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


def _start_problem(error, backend, minutes):
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
        f"分布式启动失败（{backend}，{where}，等待上限 {minutes:g} 分钟）：{_first_line(error)}\n"
        "请确认所有进程都已启动、地址互相能连通；"
        "多网卡时设置 GLOO_SOCKET_IFNAME 或 NCCL_SOCKET_IFNAME。"
    )
