"""验收 1–4：卡、核、快慢、注意力。"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import time

import torch
import torch.nn.functional as F

from support import hardware
from tests.gpu.stage import FAIL, PASS, WARN, Outcome, Stage, judge, relative

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_QUERY = "driver_version,power.limit,pcie.link.gen.current,pcie.link.width.current"


def the_card(stage: Stage) -> Outcome:
    """1 这是什么卡，装的 PyTorch 认不认得它，显存空着没有。"""
    device = stage.device
    free, total = torch.cuda.mem_get_info(device)
    major, minor = torch.cuda.get_device_capability(device)
    arches = torch.cuda.get_arch_list()
    known = any(_serves(arch, major, minor) for arch in arches)
    facts = {
        "card": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "arches": " ".join(arches),
        "triton": importlib.util.find_spec("triton") is not None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "memory_mb": total >> 20,
        "free_mb": free >> 20,
        "driver": _driver(),
    }
    measured = f"{facts['card']}，sm_{major}{minor}，{total >> 20} MB 空 {free / total:.0%}"
    return judge(known and free >= 0.8 * total, measured, "认得；空 ≥ 80%", **facts)


def _serves(arch: str, major: int, minor: int) -> bool:
    """arch（sm_86、compute_80）编出的核，这张卡能不能跑：同一代里不比它新，PTX 可以更旧。"""
    kind, _, digits = arch.partition("_")
    digits = digits.rstrip("abcdefghijklmnopqrstuvwxyz")
    theirs = int(digits[:-1]), int(digits[-1])
    if kind == "compute":
        return theirs <= (major, minor)
    return theirs[0] == major and theirs[1] <= minor


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "没有 nvidia-smi"
    command = [tool, f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=20)
    return done.stdout.decode("utf-8", "replace").strip().replace("\n", "；")


def one_kernel(stage: Stage) -> Outcome:
    """2 一个核也跑不了的卡，后面都不必看；矩阵乘对不对。"""
    torch.manual_seed(0)
    a, b = torch.randn(256, 256, dtype=torch.float64), torch.randn(256, 256, dtype=torch.float64)
    bounds = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3}
    errors = {}
    for name, dtype in DTYPES.items():
        product = a.to(stage.device, dtype) @ b.to(stage.device, dtype)
        errors[name] = relative(product, a @ b)
    good = all(errors[name] <= bounds[name] for name in bounds)
    shown = " ".join(f"{name} {error:.1e}" for name, error in errors.items())
    return judge(good, shown, "1e-5 / 1e-2 / 2e-3", **errors)


def speed_of_card(stage: Stage) -> Outcome:
    """3 矩阵乘与搬运有多快；DTYPE=auto 选的是不是最快的。"""
    device = stage.device
    size = stage.pick(2048, 64)
    peaks = {name: hardware.measure_peak(device, dtype, size) for name, dtype in DTYPES.items()}
    copy = _copy_speed(device, stage.pick(1 << 28, 1 << 20))
    chosen = hardware.dtype_name(hardware.pick_dtype("auto", device))
    best = max(peaks, key=lambda name: peaks[name])
    shown = " ".join(f"{name} {peak / 1e12:.1f}" for name, peak in peaks.items())
    outcome = Outcome(
        PASS,
        f"{shown} TFLOP/s，搬运 {copy / 1e9:.0f} GB/s，auto = {chosen}",
        "auto 不比最快的慢一成；3060：bf16 ≥ 15，搬运 ≥ 250",
        {**peaks, "copy": copy, "chosen": chosen},
    )
    if not stage.fake and peaks[chosen] < 0.9 * peaks[best]:
        outcome.state = FAIL
    elif stage.is_3060 and (peaks["bf16"] < 15e12 or copy < 250e9):
        outcome.state = WARN
    return outcome


def _copy_speed(device: torch.device, size: int) -> float:
    """显存里搬一份，每秒读写多少字节。"""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(8):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


def attention(stage: Stage) -> Outcome:
    """4 注意力走不走得通 flash：训练时真的步幅，只许用它；解码的两种形状。"""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device = stage.device
    newer = torch.cuda.get_device_capability(device)[0] >= 8
    backend = SDPBackend.FLASH_ATTENTION if newer else SDPBackend.EFFICIENT_ATTENTION
    dtype = torch.bfloat16 if newer else torch.float16
    worst = 0.0
    for length in stage.pick((17, 190, 511), (5, 17)):
        packed = torch.randn(4, length, 3, 8, 32, device=device)
        exact = [x.float() for x in packed.permute(2, 0, 3, 1, 4).unbind(0)]
        half = packed.to(dtype).permute(2, 0, 3, 1, 4).unbind(0)  # 与 Attention.project 同样的步幅
        with sdpa_kernel([backend]):
            found = F.scaled_dot_product_attention(*half, is_causal=True)
        with sdpa_kernel([SDPBackend.MATH]):
            wanted = F.scaled_dot_product_attention(*exact, is_causal=True)
        worst = max(worst, float((found.float() - wanted).abs().max()))
    _decode_shapes(device)
    name = "flash" if newer else "省内存的（没有 flash 的卡）"
    slowest = _new_shapes(stage)
    good = worst <= 2e-2 and (stage.fake or slowest <= 2e-3)
    shown = f"{name}，误差 {worst:.1e}，没见过的形状 {slowest * 1e3:.1f} 毫秒"
    return judge(good, shown, "2e-2；2 毫秒", error=worst, backend=name, new_shape=slowest)


def _new_shapes(stage: Stage) -> float:
    """训练时每一种没见过的形状平均要几秒（前向与反向）：有的实现每见一种就重新定方案。"""
    device = hardware.pick_device("cuda")
    dtype = hardware.pick_dtype("auto", device)
    lengths = stage.pick(range(100, 121), range(5, 7))
    began = 0.0
    for length in lengths:
        q = torch.randn(4, 8, length, 32, device=device, dtype=dtype, requires_grad=True)
        F.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
        if length == lengths[0]:  # 热身
            torch.cuda.synchronize()
            began = time.perf_counter()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / (len(lengths) - 1)


def _decode_shapes(device: torch.device) -> None:
    """解码：一个 q 看许多 k，各行一样长与长短不一；不出错就行。"""
    q, k = torch.randn(4, 8, 1, 32, device=device), torch.randn(4, 8, 40, 32, device=device)
    F.scaled_dot_product_attention(q, k, k)
    mask = torch.arange(40, device=device) <= torch.tensor([3, 9, 20, 39], device=device)[:, None]
    out = F.scaled_dot_product_attention(q, k, k, attn_mask=mask[:, None, None])
    assert bool(torch.isfinite(out).all()), "解码的注意力不是有限的数"
