"""没有显卡也能测的：这张卡该不该用、用什么精度、能不能编译、显存不足的各种说法。"""

from __future__ import annotations

import shutil
import sys
import types

import pytest
import torch

from support import bootstrap, cuda, hardware
from support.console import UserError

NO_IMAGE = "CUDA error: no kernel image is available for execution on the device"


@pytest.fixture
def card(monkeypatch):
    """一张说得出自己是谁的卡；跑得了核。"""
    found = types.SimpleNamespace(capability=(8, 6), name="RTX 3060", count=1)
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: found.count,
        "get_device_capability": lambda _=None: found.capability,
        "get_device_name": lambda _=None: found.name,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(cuda, "kernel_problem", lambda index: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return found


def old_wheel(monkeypatch):
    """驱动、卡都在，PyTorch 没有给它编译的核。"""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (6, 1))

    def ones(*size, device=None):
        raise RuntimeError(NO_IMAGE)

    monkeypatch.setattr(torch, "ones", ones)
    cuda.kernel_problem.cache_clear()


def test_c4_auto_does_not_take_a_card_that_runs_no_kernel(monkeypatch, capsys):
    old_wheel(monkeypatch)
    hardware.say_once.cache_clear()
    assert hardware.pick_device("auto").type == "cpu"
    assert hardware.pick_device("auto").type == "cpu"
    said = capsys.readouterr().err
    assert said.count("改用 CPU") == 1 and "sm_61" in said
    cuda.kernel_problem.cache_clear()


def test_c4_asking_for_such_a_card_names_the_wheel(monkeypatch):
    old_wheel(monkeypatch)
    with pytest.raises(UserError, match="cu126"):
        hardware.pick_device("cuda")
    cuda.kernel_problem.cache_clear()


@pytest.mark.parametrize(
    ("driver", "capability", "build"),
    [
        ((12, 8), (8, 6), "cu128"),
        ((12, 8), None, "cu128"),
        ((12, 8), (6, 1), "cu126"),
        ((13, 0), (7, 0), "cu126"),
        ((12, 4), (6, 1), "cu121"),
    ],
)
@pytest.mark.skipif(sys.version_info < (3, 9), reason="Python 3.8 只有 cu121")
def test_c4_bootstrap_installs_a_wheel_that_has_kernels_for_the_card(driver, capability, build):
    assert bootstrap.cuda_build(driver, capability) == build


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", True),
        ("NCCL error: Failed to CUDA calloc async 608 bytes", True),
        ("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9", True),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory", True),
        ("CUDA error: device-side assert triggered", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_c5_texts_of_out_of_memory(text, short):
    assert hardware.is_out_of_memory(RuntimeError(text)) == short


def test_c6_one_visible_card_for_each_rank(card, monkeypatch):
    with pytest.raises(UserError, match=r"第 1 号进程没有显卡.*\n.*LOCAL_RANK=0"):
        hardware.pick_device("cuda", local_rank=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert hardware.pick_device("cuda", local_rank=1) == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "name", "dtype"),
    [
        ((8, 6), "NVIDIA GeForce RTX 3060", "bf16"),
        ((9, 0), "NVIDIA H100", "bf16"),
        ((7, 5), "NVIDIA GeForce RTX 2060", "fp16"),
        ((7, 5), "Tesla T4", "fp16"),
        ((7, 0), "Tesla V100", "fp16"),
        ((7, 5), "NVIDIA GeForce GTX 1660 Ti", "fp32"),
        ((7, 5), "NVIDIA GeForce MX450", "fp32"),
        ((7, 5), "NVIDIA T1000", "fp32"),
        ((6, 1), "NVIDIA GeForce GTX 1080 Ti", "fp32"),
    ],
)
def test_w2_fp16_only_where_the_card_is_good_at_it(card, capability, name, dtype):
    card.capability, card.name = capability, name
    assert hardware.dtype_name(hardware.pick_dtype("auto", torch.device("cuda"))) == dtype


def test_w6_half_precision_sums_stay_in_fp32(monkeypatch):
    matmul = types.SimpleNamespace()
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    cuda.set_up(torch.device("cuda"))
    assert matmul.allow_bf16_reduced_precision_reduction is False
    assert matmul.allow_fp16_reduced_precision_reduction is False


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_attention_does_not_plan_every_shape_anew(card, monkeypatch, name):
    asked = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", asked.append, raising=False)
    hardware.pick_device(name)
    assert asked == [False]


def test_older_pytorch_has_no_such_switch(card, monkeypatch):
    monkeypatch.delattr(torch.backends.cuda, "enable_cudnn_sdp", raising=False)
    assert hardware.pick_device("cuda").type == "cuda"


def test_windows_may_not_spill_into_ram(monkeypatch):
    asked = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(torch.backends.cuda, "matmul", types.SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _=None: (9 << 30, 12 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _=None: 0)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, _=None: asked.append(share)
    )
    cuda.set_up(torch.device("cuda"))
    assert asked == [pytest.approx(0.70)]


@pytest.mark.parametrize(
    ("triton", "capability", "compiler", "problem"),
    [
        (True, (8, 6), True, None),
        (False, (8, 6), True, "Triton"),
        (True, (6, 1), True, "sm_61"),
        (True, (8, 6), False, "C 编译器"),
    ],
)
def test_compiling_needs_triton_a_new_card_and_a_c_compiler(
    card, monkeypatch, triton, capability, compiler, problem
):
    import importlib.util

    card.capability = capability
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/cc" if compiler else None)
    found = hardware.compiler_problem(torch.device("cuda"))
    assert (found is None) if problem is None else problem in found


@pytest.mark.parametrize(
    ("release", "name"), [("2.13.0", "PYTORCH_ALLOC_CONF"), ("2.4.1", "PYTORCH_CUDA_ALLOC_CONF")]
)
def test_segments_grow_on_linux_unless_the_user_said_otherwise(monkeypatch, release, name):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    environment = {}
    monkeypatch.setattr(cuda.os, "environ", environment)
    monkeypatch.setattr(cuda.importlib.metadata, "version", lambda _: release)
    monkeypatch.setattr(sys, "platform", "win32")
    cuda.allow_growing_segments()
    assert not environment
    monkeypatch.setattr(sys, "platform", "linux")
    cuda.allow_growing_segments()
    assert environment == {name: "expandable_segments:True"}
    environment.clear()
    environment[names[0]] = "max_split_size_mb:64"
    cuda.allow_growing_segments()
    assert list(environment.values()) == ["max_split_size_mb:64"]


def test_peak_is_measured_after_a_warm_up(monkeypatch):
    """显卡空闲时频率低：先跑一会儿，再一次计时二十个乘积。"""
    calls = []
    monkeypatch.setattr(hardware, "kind_of", lambda device: "cuda")
    monkeypatch.setattr(hardware, "_warm_up", lambda *_: calls.append("warm"))

    def speed(device, dtype, size, repeats, products=1):
        calls.append(products)
        return 1e12

    monkeypatch.setattr(hardware, "_product_speed", speed)
    assert hardware.measure_peak(torch.device("cuda"), torch.bfloat16) == 1e12
    assert calls == ["warm", 20]
