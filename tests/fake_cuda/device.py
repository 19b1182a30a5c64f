"""子进程里的假显卡：torch.cuda 的样子，和记下每个算子的 Meter。"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import sys
import types
from pathlib import Path
from typing import Iterator

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from support import hardware
from tests.fake_cuda import graphs

ROOT = Path(__file__).resolve().parent.parent.parent
GIB = 1 << 30

# 这张卡的样子；测试可以改：card.capability = (7, 5)
card = types.SimpleNamespace(
    name="假的 RTX 3060",
    capability=(8, 6),
    total=12 * GIB,
    arches=("sm_75", "sm_80", "sm_86"),
    broken=False,  # True：没有给这张卡编译的核
)
attention_calls: collections.Counter = collections.Counter()
_library = None


def install() -> None:
    """载入假设备，让 torch.cuda 说有一张卡。"""
    global _library
    path = os.environ["FAKE_CUDA_LIBRARY"]
    torch.ops.load_library(path)
    _library = ctypes.CDLL(path)
    for name in ("live", "peak", "to_card", "to_host"):
        getattr(_library, f"fakecuda_{name}").restype = ctypes.c_int64
    _library.fakecuda_set_limit.argtypes = [ctypes.c_int64]
    _patch_cuda()
    _patch_tensors()
    _patch_attention()
    # 假显卡的快慢没有意义，量峰值的大矩阵乘却要 CPU 算几分钟
    hardware.measure_peak = lambda *_, **__: 1e11


# ── 显存 ──────────────────────────────────────────────────────────────


def live() -> int:
    """此刻占着的字节数。"""
    return _library.fakecuda_live()


def peak() -> int:
    """上次 forget_peak 以来最多占过的字节数。"""
    return _library.fakecuda_peak()


def copies() -> tuple:
    """到目前为止 (搬上显卡, 搬回主机) 的次数；搬回主机的每次都要等设备做完。"""
    return _library.fakecuda_to_card(), _library.fakecuda_to_host()


def forget_peak() -> None:
    _library.fakecuda_forget_peak()


def set_limit(size: int | None) -> None:
    """占用超过 size 字节就是显存不足；None = 不限。"""
    _library.fakecuda_set_limit((1 << 62) if size is None else int(size))


# ── torch.cuda 的样子 ─────────────────────────────────────────────────


def _properties(_=None):
    major, minor = card.capability
    return types.SimpleNamespace(
        name=card.name,
        total_memory=card.total,
        major=major,
        minor=minor,
        multi_processor_count=28,
        warp_size=32,
        uuid="GPU-0",
    )


def _patch_cuda():
    cuda = torch.cuda
    plain = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "_lazy_call": lambda *_, **__: None,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
        "get_device_capability": lambda _=None: card.capability,
        "get_device_name": lambda _=None: card.name,
        "get_device_properties": _properties,
        "get_arch_list": lambda: list(card.arches),
        "is_bf16_supported": lambda *_, **__: True,  # 真的 torch 在 T4 上也这样说
        "mem_get_info": lambda _=None: (card.total - live(), card.total),
        "max_memory_allocated": lambda _=None: peak(),
        "max_memory_reserved": lambda _=None: peak(),
        "memory_allocated": lambda _=None: live(),
        "memory_reserved": lambda _=None: live(),
        "reset_peak_memory_stats": lambda _=None: forget_peak(),
        "set_per_process_memory_fraction": lambda share, _=None: set_limit(share * card.total),
        "Event": _Event,
        "CUDAGraph": graphs.CUDAGraph,
        "graph": graphs.graph,
    }
    for name, stand_in in plain.items():
        setattr(cuda, name, stand_in)
    torch._C._cuda_getDevice = lambda: 0  # 编译 CPU 的图时 dynamo 也问一声
    torch.version.cuda = "12.8"


class _Event:
    """计时的事件：假显卡上每个算子做完才返回，所以就是墙上的时间。"""

    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self, stream: object = None) -> None:
        import time

        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        """已经做完了。"""

    def elapsed_time(self, end: _Event) -> float:
        return 1000 * (end.seconds - self.seconds)


def _patch_tensors():
    torch.Tensor.pin_memory = lambda self, *_: self
    torch.UntypedStorage.cpu = _storage_to_host


def _storage_to_host(storage):
    """torch.save 搬显存时用它。"""
    if storage.device.type != "cuda":
        return storage
    whole = torch.empty(0, dtype=torch.uint8, device="cuda")
    return whole.set_(storage, 0, (storage.nbytes(),), (1,)).cpu().untyped_storage()


def _patch_attention():
    """CUDA 的注意力：记下用法，数由数学的写法来算；要数字节时见 flash_memory。"""
    plain = F.scaled_dot_product_attention

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **more):
        if q.device.type != "cuda":
            return plain(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, **more)
        shape = "遮罩" if attn_mask is not None else ("因果" if is_causal else "全看")
        straight = all(x.stride(-1) == 1 for x in (q, k, v))
        attention_calls[str(q.dtype)[6:], shape, q.requires_grad, straight] += 1
        if _flash and attn_mask is None:
            flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return flash(q, k, v, dropout_p, is_causal, scale=scale)[0]
        written_out = torch.ops.aten._scaled_dot_product_attention_math
        with torch.autocast("cuda", enabled=False):  # 自动精度的 fp16 softmax 只有真的 CUDA 有
            return written_out(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)[0]

    F.scaled_dot_product_attention = attention


_flash = []  # 不空时注意力用不留 T² 的实现


@contextlib.contextmanager
def flash_memory() -> Iterator[None]:
    """数字节时：注意力像真的 flash 那样不留下 T × T 的权重。"""
    _flash.append(True)
    try:
        yield
    finally:
        _flash.pop()


# ── 记下每个算子 ──────────────────────────────────────────────────────

_aten = torch.ops.aten
_SYNCS = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default}
_MOVES = {_aten.copy_.default, _aten._to_copy.default, _aten._copy_from.default}
# 真的 CUDA 也收：搬运，和在 CPU 上的下标
_MIXED_IS_FINE = {
    *_MOVES,
    _aten.index.Tensor,
    _aten.index_put_.default,
    _aten.index_put.default,
    _aten.set_.source_Storage_storage_offset,
}
_NO_KERNEL = {  # 不是视图，但也不启动核
    "empty",
    "empty_strided",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "set_",
    "resize_",
    "_unsafe_view",
    "lift_fresh",
    "detach_",
    "_local_scalar_dense",
}


# 估计一个核在 RTX 3060 12 GB 上要多久：峰值的 85% 与 70%（没有量过，见 docs/GPU.md）
BANDWIDTH = 306e9  # 字节/秒
SPEED = {torch.bfloat16: 17.8e12, torch.float16: 17.8e12}  # FLOP/s
_SPEED = 8.9e12  # fp32
LAUNCH = 2e-6  # 启动一个核


class Meter(TorchDispatchMode):
    """kernels 启动的核；syncs 在项目的哪一行等了设备；mixed 混用设备的算子；bytes 读写的字节。

    to_card、to_host 是进入以来搬运的次数：后者每次都等设备；seconds 是在一张 3060 上估计的秒数。
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: collections.Counter = collections.Counter()
        self.syncs: collections.Counter = collections.Counter()
        self.mixed: list = []
        self.bytes = 0
        self.seconds = 0.0
        self._before, self._replays = copies(), 0

    def __enter__(self) -> Meter:
        self._before, self._replays = copies(), graphs.CUDAGraph.replays
        return super().__enter__()

    @property
    def graphs(self) -> int:
        """重放了几次图；图里的核不算在 kernels 里。"""
        return graphs.CUDAGraph.replays - self._replays

    @property
    def to_card(self) -> int:
        return copies()[0] - self._before[0]

    @property
    def to_host(self) -> int:
        return copies()[1] - self._before[1]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if graphs.is_replaying():
            return function(*args, **kwargs)
        given = _tensors((args, kwargs))
        on_card = any(x.device.type == "cuda" for x in given)
        mixed = {x.device.type for x in given if x.dim() > 0} > {"cuda"}
        if on_card and mixed and function not in _MIXED_IS_FINE:
            self.mixed.append(f"{function} {_line()}")
        if on_card and function in _SYNCS:
            self.syncs[_line()] += 1
        out = function(*args, **kwargs)
        made = _tensors(out)
        there = any(x.device.type == "cuda" for x in made)
        if function in _MOVES and _crosses(given, made):
            self.syncs[_line()] += 1
        if (on_card or there) and launches(function):
            self.kernels[function.overloadpacket.__name__] += 1
            moved = sum(x.numel() * x.element_size() for x in (*given, *made))
            self.bytes += moved
            speed = SPEED.get(made[0].dtype, _SPEED) if made else _SPEED
            work = _flops(function, args, kwargs, out) / speed
            self.seconds += max(moved / BANDWIDTH, work) + LAUNCH
        return out

    @property
    def total(self) -> int:
        """一共启动了多少个核。"""
        return sum(self.kernels.values())


def _flops(function, args, kwargs, out):
    """乘加的次数 × 2；表里没有的（注意力只占 3%）是 0。"""
    count = flop_registry.get(function.overloadpacket)
    return count(*args, **kwargs, out_val=out) if count else 0


def _crosses(given, made):
    """从显卡搬回主机。"""
    source = given[-1].device.type if given else ""
    return source == "cuda" and any(x.device.type == "cpu" for x in (*made, *given[:1]))


def _tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def launches(function) -> bool:
    """这个算子在真的显卡上启动核（视图、分配不算）。"""
    name = function.overloadpacket.__name__
    if name in _NO_KERNEL:
        return False
    schema = function._schema
    views = schema.returns and all(
        r.alias_info is not None and not r.alias_info.is_write for r in schema.returns
    )
    return not views


def _line():
    """调用栈里最里面的项目代码：文件:行。"""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        mine = ROOT in path.parents and "site-packages" not in path.parts  # .venv 也在里面
        if mine and path.parent.name != "fake_cuda":
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
