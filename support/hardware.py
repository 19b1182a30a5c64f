"""设备、精度、编译、进程的内存：唯一做选择的地方。"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import re
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, ContextManager, NamedTuple

from support import cuda
from support.console import UserError

if TYPE_CHECKING:
    import torch

# ── 设备与精度 ────────────────────────────────────────────────────────


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """DEVICE 配置 → torch.device；auto 依次试 CUDA、CPU，显卡要真的跑得了一个核才算数。"""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        problem = cuda.kernel_problem(0) if name == "cuda" else None
        if problem:
            say_once(f"有显卡，但用不了，改用 CPU：{problem}")
            name = "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            built = "装的是 CPU 版 PyTorch" if torch.version.cuda is None else "驱动或显卡不可用"
            raise UserError(
                f"DEVICE=cuda，但 CUDA 不可用（{built}）。\n"
                "查看原因：python diagnose.py；先用 CPU：--DEVICE=cpu"
            )
        return _card(local_rank)
    if name == "mps":
        backend = getattr(torch.backends, "mps", None)
        if backend is None or not backend.is_available():
            raise UserError("DEVICE=mps，但这台机器没有可用的 MPS。请用 --DEVICE=cpu")
    return torch.device(name)


def _card(local_rank: int) -> torch.device:
    """本机第 local_rank 个进程用的显卡。"""
    import torch

    count = torch.cuda.device_count()
    index = 0 if cuda.sees_one_of_many(count) else local_rank
    if index >= count:
        raise UserError(
            f"第 {local_rank} 号进程没有显卡可用：本机只有 {count} 张。\n"
            f"请用 --nproc_per_node={count}，或 --DEVICE=cpu；"
            "手工在几台机器上起的，每台再设 LOCAL_RANK=0"
        )
    problem = cuda.kernel_problem(index)
    if problem:
        raise UserError(f"DEVICE=cuda，但显卡用不了：{problem}\n先用 CPU：--DEVICE=cpu")
    cuda.leave_cudnn_attention()
    return torch.device("cuda", index)


@functools.lru_cache(maxsize=None)
def say_once(text: str) -> None:
    """同一句话只说一次。"""
    print(text, file=sys.stderr)


def native_bf16(device: torch.device) -> bool:
    """设备是否有 bf16 的硬件矩阵乘（模拟的不算）。"""
    import torch

    if device.type == "cuda":
        return cuda.has_bf16(device)
    if device.type != "cpu":
        return False
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        probe = getattr(torch.cpu, name, None)
        if probe is not None and probe():
            return True
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
            text = file.read()
            return "avx512_bf16" in text or "amx_bf16" in text
    return False


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """DTYPE 配置 → 计算精度；auto 绝不失败，写明的做不到抛 UserError。"""
    import torch

    if name == "auto":
        if device.type == "cuda":
            half = "fp16" if cuda.has_fast_fp16(device) else "fp32"
            name = "bf16" if native_bf16(device) else half
        else:
            name = "bf16" if native_bf16(device) else "fp32"
    if name == "fp16" and device.type == "cpu" and not hasattr(torch, "get_autocast_dtype"):
        raise UserError(
            f"CPU 上的 fp16 要 PyTorch 2.4 起，这里是 {torch.__version__}；请用 --DTYPE=fp32"
        )
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


DTYPE_NAMES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


def dtype_name(dtype: torch.dtype) -> str:
    """torch.dtype → fp32 | bf16 | fp16。"""
    return DTYPE_NAMES[str(dtype)]


def autocast(device: torch.device, dtype: torch.dtype) -> ContextManager[Any]:
    """fp32 时什么也不做，否则是 torch.autocast。"""
    import torch

    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """此刻 autocast 的精度；没有开启时为 None。"""
    import torch

    if hasattr(torch, "get_autocast_dtype"):  # 2.4 起
        enabled = torch.is_autocast_enabled(device_type)
        return torch.get_autocast_dtype(device_type) if enabled else None
    if device_type == "cuda":
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    if device_type == "cpu" and torch.is_autocast_cpu_enabled():
        return torch.get_autocast_cpu_dtype()
    return None


def compiler_problem(device: torch.device) -> str | None:
    """torch.compile 用不了的原因；能用时为 None。"""
    import torch

    if not hasattr(torch, "compile"):
        return "PyTorch 太旧"
    if device.type == "mps":
        return "MPS 上的编译还不成熟"
    if device.type == "cuda":
        return _triton_problem(device)
    names = ("cl",) if platform.system() == "Windows" else ("g++", "clang++", "c++")
    if os.environ.get("CXX") and shutil.which(os.environ["CXX"]):
        return None
    if not any(shutil.which(name) for name in names):
        return f"没有 C++ 编译器（{' 或 '.join(names)}）"
    return None


def _triton_problem(device: torch.device) -> str | None:
    """CUDA 上的编译要 Triton；它又要够新的卡，在 Linux 上还要 C 编译器。"""
    import importlib.util

    import torch

    if importlib.util.find_spec("triton") is None:
        return "没有 Triton（Windows 上常见）"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 7:
        return f"Triton 不支持 sm_{major}{minor} 的卡"
    compilers = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    if sys.platform.startswith("linux") and not any(filter(None, map(shutil.which, compilers))):
        return "没有 C 编译器（gcc 或 clang）"
    return None


class CompileChoice(NamedTuple):
    """编译吗，以及给人看的理由。"""

    on: bool
    reason: str


def pick_compile(name: str, device: torch.device, long_enough: bool = True) -> CompileChoice:
    """COMPILE 配置 → 是否编译；auto 绝不失败，on 用不了时报错。"""
    problem = compiler_problem(device)
    if name == "off":
        return CompileChoice(False, "COMPILE=off")
    if name == "on":
        if problem:
            raise UserError(f"COMPILE=on，但用不了：{problem}。请用 --COMPILE=auto")
        return CompileChoice(True, "COMPILE=on")
    if problem:
        return CompileChoice(False, problem)
    if not long_enough:
        return CompileChoice(False, "训练太短，编译不划算")
    return CompileChoice(True, "auto")


def measure_peak(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """size³ 矩阵乘达到的最高 FLOP/s，是算 MFU 的分母；约半秒。

    没有硬件支持的精度（如 CPU 上的 fp16）慢上千倍，改用小矩阵估计。
    """
    if kind_of(device) == "cuda":
        _warm_up(device, dtype, size)
        return _product_speed(device, dtype, size, 6, products=20)
    small = size // 8
    speed = _product_speed(device, dtype, small, 8)
    if 2 * size**3 / speed > 3.0:
        return speed
    return max(speed, _product_speed(device, dtype, size, 6))


def kind_of(device: torch.device | str) -> str:
    """设备或它的名字 → cpu | cuda | mps。"""
    import torch

    return torch.device(device).type


def _warm_up(device: torch.device, dtype: torch.dtype, size: int, seconds: float = 0.3) -> None:
    """显卡空闲时频率低，先让它跑起来，否则量到的峰值偏低。"""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        _product_speed(device, dtype, size, 1, products=4)


def _product_speed(
    device: torch.device, dtype: torch.dtype, size: int, repeats: int, products: int = 1
) -> float:
    """每次计时连着算 products 个；取最快的一次。"""
    import torch

    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        _wait(device)
        began = time.perf_counter()
        for _ in range(products):
            a @ b
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 * products / best


def _wait(device: torch.device) -> None:
    import torch

    if kind_of(device) == "cuda":
        torch.cuda.synchronize(device)


# ── 进程的内存 ────────────────────────────────────────────────────────

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h> 里的编号
_KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


_MEMORY_MARKS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",  # Windows 上的 CPU
    "status_alloc_failed",  # cuBLAS、cuDNN
    "cublas_status_not_initialized",  # 显存满了，cuBLAS 起不来
    "cudnn_status_not_initialized",
    "failed to cuda calloc",  # NCCL
)


def is_out_of_memory(error: BaseException) -> bool:
    """显存（或内存）不足。"""
    import torch

    kind = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
    if isinstance(error, (kind, torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return any(mark in text for mark in _MEMORY_MARKS)


def forget_freed_memory(device: torch.device) -> None:
    """出过显存不足以后：把没用的段都还给显卡。

    显卡上的反向在自动求导自己的线程里，异常传出来时它可能还拿着整张图；让它先放手。
    """
    import gc

    import torch

    if device.type != "cuda":
        return
    gc.collect()
    time.sleep(0.05)
    torch.cuda.empty_cache()


def keep_memory() -> None:
    """让训练一直用同一片内存；要在第一次矩阵乘之前调用，只在 Linux 的 CPU 上有作用。

    glibc 照例把大块的内存还给系统，下次再要时每一页都由内核重新清零，能占掉三成时间：这里
    让它留着。oneDNN 给每种形状的矩阵乘留半兆的代码，默认留一千种：这里少留一些。
    """
    for name in _KERNEL_CACHES:
        os.environ.setdefault(name, "64")
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(option, 1 << 30)


def give_back_memory() -> None:
    """把释放了的内存还给系统：keep_memory 之后，用过一次大块内存的准备工作做完时调用。"""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    """glibc 的函数；别的系统、musl 没有，是 None。"""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)


def process_memory() -> dict[str, int]:
    """本进程的常驻内存 {"now", "peak"}，字节；系统不给时抛 OSError。"""
    if sys.platform.startswith("linux"):
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            rows = dict(line.split(":", 1) for line in file if ":" in line)
        return {
            "now": int(rows["VmRSS"].split()[0]) << 10,
            "peak": int(rows["VmHWM"].split()[0]) << 10,
        }
    if sys.platform == "win32":
        return _windows_memory()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS 的单位是字节
    return {"now": peak, "peak": peak}


def _windows_memory() -> dict[str, int]:
    """GetProcessMemoryInfo；没有在 Windows 上跑过。"""
    from ctypes import wintypes

    sizes = ("PeakWorkingSetSize", "WorkingSetSize", *(f"other{i}" for i in range(6)))

    class Counters(ctypes.Structure):
        _fields_ = (
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            *((name, ctypes.c_size_t) for name in sizes),
        )

    counters = Counters(cb=ctypes.sizeof(Counters))
    query = ctypes.windll.kernel32.K32GetProcessMemoryInfo
    query.argtypes = (wintypes.HANDLE, ctypes.POINTER(Counters), wintypes.DWORD)
    current = ctypes.windll.kernel32.GetCurrentProcess
    current.restype = wintypes.HANDLE
    if not query(current(), ctypes.byref(counters), counters.cb):
        raise OSError("GetProcessMemoryInfo 失败")
    return {"now": counters.WorkingSetSize, "peak": counters.PeakWorkingSetSize}


def free_memory() -> int | None:
    """可用内存（字节）；系统不给时为 None。"""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = re.search(r"MemAvailable:\s*(\d+)", file.read())
    except OSError:
        return None
    return int(found.group(1)) << 10 if found else None
