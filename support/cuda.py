"""CUDA 显卡的脾气：这张卡到底能不能算，fp16 快不快，分配器怎样设。"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import socket
import sys
from typing import Any

_SEGMENTS = "expandable_segments:True"
_SPARE = 0.05  # Windows 上留给桌面的显存
_WITH_TENSOR_CORES = ((7, 0), (7, 2))  # 与名字无关，fp16 都有专门的硬件
# sm_75 里没有张量核的：fp16 的矩阵乘比 fp32 慢几十倍
_WITHOUT_TENSOR_CORES = ("GTX 16", "MX", "T400", "T500", "T550", "T600", "T1000", "T1200")


@functools.lru_cache(maxsize=None)
def kernel_problem(index: int) -> str | None:
    """第 index 张卡一个核也跑不了的原因；能跑时为 None。

    驱动在、卡也在，装的 PyTorch 却可能没有给这一代卡编译的核。顺便让 cuBLAS 先占好自己的显存：
    等张量把显存占满再要，它就起不来了。
    """
    import torch

    device = torch.device("cuda", index)
    try:
        ones = torch.ones(8, 8, device=device)
        wrong = float((ones @ ones).sum()) != 8**3
    except RuntimeError as error:
        return _explain(error, device)
    return "矩阵乘的结果不对" if wrong else None


def _explain(error: RuntimeError, device: Any) -> str:
    import torch

    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    if "no kernel image" not in str(error):
        return first
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"这份 PyTorch（CUDA {torch.version.cuda}）没有给 sm_{major}{minor} 的卡编译的核；"
        "老卡请装 cu126 的：--index-url https://download.pytorch.org/whl/cu126"
    )


def has_bf16(device: Any) -> bool:
    """有 bf16 的硬件矩阵乘：Ampere 起；is_bf16_supported() 把模拟的也算上。"""
    import torch

    return torch.cuda.get_device_capability(device)[0] >= 8


def has_fast_fp16(device: Any) -> bool:
    """fp16 比 fp32 快得多：要有张量核。"""
    import torch

    capability = tuple(torch.cuda.get_device_capability(device))
    if capability >= (8, 0) or capability in _WITH_TENSOR_CORES:
        return True
    name = torch.cuda.get_device_name(device)
    return capability == (7, 5) and not any(mark in name for mark in _WITHOUT_TENSOR_CORES)


def card_id(device: Any) -> str | None:
    """这张卡在全体机器里的编号：两个进程不能用同一张卡；不是显卡时为 None。"""
    import torch

    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is None:  # 旧的 PyTorch
        uuid = f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')}/{device.index}"
    return f"{socket.gethostname()}/{uuid}"


def sees_one_of_many(count: int) -> bool:
    """SLURM、docker 的做法：每个进程只看得见自己的那张卡，它总是 0 号。"""
    return count == 1 and bool(os.environ.get("CUDA_VISIBLE_DEVICES"))


def allow_growing_segments() -> None:
    """各微批次的形状都不同，让显存的段能长，少留碎片；要在用显卡之前，只在 Linux 上。"""
    if not sys.platform.startswith("linux"):
        return
    known = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if any(name in os.environ for name in known):
        return
    release = importlib.metadata.version("torch").split(".")[:2]
    newer = tuple(int(part) for part in release) >= (2, 9)
    os.environ[known[0] if newer else known[1]] = _SEGMENTS


def leave_cudnn_attention() -> None:
    """注意力不走 cuDNN：每见一种形状它先花十毫秒定方案，而各批的形状都不同；flash 不必。

    Hopper 起 PyTorch 先选它：H200 上训练因此只有现在的八分之一快。PyTorch 2.5 起才有这个开关。
    """
    import torch

    switch = getattr(torch.backends.cuda, "enable_cudnn_sdp", None)
    if switch is not None:
        switch(False)


def set_up(device: Any) -> None:
    """训练之前：半精度的累加留在 fp32 里；Windows 上显存满了要报错，不许悄悄用内存顶替。"""
    import logging

    import torch

    # 小卡上编译时它总要说一句“SM 不够做 max_autotune”，那个模式这里本来不用
    logging.getLogger("torch._inductor.utils").setLevel(logging.ERROR)
    matmul = torch.backends.cuda.matmul
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False
    if sys.platform == "win32":
        free, total = torch.cuda.mem_get_info(device)
        ours = free + torch.cuda.memory_reserved(device)
        share = min(1.0, max(0.1, ours / total - _SPARE))
        torch.cuda.set_per_process_memory_fraction(share, device)
