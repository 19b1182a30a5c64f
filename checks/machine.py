"""这台机器：显卡与驱动、设备与精度、编译、线程、磁盘、控制台。"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path

from checks.finding import BAD, OK, WARN, Finding, Findings, Settings, can_print
from checks.memory import planned_config
from support import bootstrap, files, hardware


def check_cuda(settings: Settings) -> Findings:
    """PyTorch 与 CUDA：驱动、构建、显卡是否配得上。"""
    import torch

    driver = bootstrap.driver_cuda()
    built = torch.version.cuda
    name = f"PyTorch {torch.__version__}"
    wanted = settings.DEVICE == "cuda"
    if driver and built is None and getattr(torch.version, "hip", None) is None:
        text = f"有 NVIDIA 显卡（驱动支持到 CUDA {driver[0]}.{driver[1]}），却装了 CPU 版"
        yield Finding(BAD if wanted else WARN, name, text, cuda_install(driver))
    elif torch.cuda.is_available():
        yield from _check_cards(name)
    elif driver:
        text = f"带 CUDA {built}，但显卡用不了；驱动支持到 CUDA {driver[0]}.{driver[1]}"
        mend = f"更新 NVIDIA 驱动后重启；或换一个构建：\n{cuda_install(driver)}"
        yield Finding(BAD if wanted else WARN, name, text, mend)
    elif wanted:
        yield Finding(BAD, name, "DEVICE=cuda，但没有找到 NVIDIA 驱动", "去掉 --DEVICE=cuda")
    else:
        yield Finding(OK, name, "没有 NVIDIA 显卡，用 CPU")


def cuda_install(driver: tuple[int, int]) -> str:
    """与驱动配得上的 PyTorch 的安装命令。"""
    index = bootstrap.TORCH_INDEX + bootstrap.cuda_build(driver)
    return f'{sys.executable} -m pip install --force-reinstall "torch>=2.1,<3" --index-url {index}'


def _check_cards(name: str) -> Findings:
    import torch

    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        built = torch.cuda.get_arch_list()
        text = f"CUDA {torch.version.cuda}，{card.name}，{card.total_memory / 2**30:.1f} GB"
        major = [int(arch.split("_")[1].rstrip("af")) // 10 for arch in built if "_" in arch]
        if major and not min(major) <= card.major <= max(major):
            text += f"；这个构建不支持它的架构 sm_{card.major}{card.minor}"
            yield Finding(WARN, name, text, "换一个 PyTorch 版本（旧卡用旧的，新卡用新的）")
        else:
            yield Finding(OK, name, text)


def check_device(settings: Settings) -> Findings:
    """设备与精度：这台机器上的选择。"""
    device = hardware.pick_device(settings.DEVICE)
    dtype = hardware.dtype_name(hardware.pick_dtype(settings.DTYPE, device))
    native = hardware.native_bf16(device)
    text = f"DEVICE={settings.DEVICE} → {device.type}，DTYPE={settings.DTYPE} → {dtype}；"
    text += "有 bf16 硬件" if native else "没有 bf16 硬件"
    if settings.DTYPE == "bf16" and not native:
        yield Finding(WARN, "设备与精度", text + "，会很慢", "--DTYPE=auto")
    else:
        yield Finding(OK, "设备与精度", text)


def check_compiler(settings: Settings) -> Findings:
    """编译：torch.compile 用不用得了。"""
    problem = hardware.compiler_problem(hardware.pick_device(settings.DEVICE))
    if problem is None:
        yield Finding(OK, "torch.compile", "可用")
    elif settings.COMPILE == "on":
        yield Finding(BAD, "torch.compile", problem, "--COMPILE=auto")
    else:
        mend = "不影响训练，只是慢一些"
        if "C++" in problem:
            mend += "；要快：安装 g++（Linux）或 Visual Studio 的 C++ 生成工具（Windows）"
        elif "Triton" in problem and platform.system() == "Windows":
            mend += "；要快：pip install triton-windows"
        yield Finding(WARN, "torch.compile", f"{problem}，会用普通方式运行", mend)


def check_writing_kernel(settings: Settings) -> Findings:
    """写诗的核：CPU 上编译好的前向。"""
    from kernels import compiler

    problem = compiler.problem()
    if settings.COMPILE == "off":
        yield Finding(OK, "写诗的核", "COMPILE=off，不编译")
    elif compiler.library_path().exists():
        yield Finding(OK, "写诗的核", "编译好了")
    elif problem is None:
        yield Finding(OK, "写诗的核", "还没有编译：写诗时会在后台编，下次启动用上")
    elif settings.COMPILE == "on":
        yield Finding(BAD, "写诗的核", problem, "--COMPILE=auto")
    else:
        yield Finding(OK, "写诗的核", f"{problem}，CPU 上写诗用普通的方式")


def check_threads(_: Settings) -> Findings:
    """线程：有几个可用，用几个。"""
    import torch

    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    used, fixed = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS", "")
    text = f"PyTorch 用 {used} 个，可用 {count} 个逻辑处理器"
    if used > count:
        yield Finding(WARN, "线程", text, f"设环境变量 OMP_NUM_THREADS={count}")
    elif fixed and used * 2 < count:
        yield Finding(WARN, "线程", f"{text}（OMP_NUM_THREADS={fixed}）", "去掉 OMP_NUM_THREADS")
    else:
        yield Finding(OK, "线程", text)


def check_disk(settings: Settings) -> Findings:
    """磁盘：WORK_DIR 能不能写，放不放得下检查点。"""
    folder = Path(settings.WORK_DIR)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        text = f"WORK_DIR={folder} 写不了：{error}"
        yield Finding(BAD, "磁盘", text, "换一个有写权限的目录：--WORK_DIR=…")
        return
    shape = planned_config(settings, settings.VOCAB_SIZE)
    free, one = files.free_bytes(existing), 12 * shape.matrix_parameters()
    text = f"{existing.absolute()} 剩 {free / 1e9:.1f} GB；一个检查点至多约 {one / 1e9:.2f} GB"
    if free < one:
        yield Finding(BAD, "磁盘", text, "腾出空间，或换一个磁盘：--WORK_DIR=…")
    elif free < 4 * one:
        yield Finding(WARN, "磁盘", text, "训练同时会有三四个这样的文件，请腾出空间")
    else:
        yield Finding(OK, "磁盘", text)


def check_console(_: Settings) -> Findings:
    """控制台：写不写得出中文。"""
    encoding = getattr(sys.stdout, "encoding", None) or "未知"
    if can_print("诗：春眠不觉晓✓"):
        yield Finding(OK, "控制台", f"编码 {encoding}")
    else:
        windows = "chcp 65001，再 set PYTHONUTF8=1"
        mend = windows if platform.system() == "Windows" else "export PYTHONUTF8=1 LANG=C.UTF-8"
        yield Finding(WARN, "控制台", f"编码 {encoding} 写不出全部文字，缺的显示为 ?", mend)


CHECKS = (
    check_cuda,
    check_device,
    check_compiler,
    check_writing_kernel,
    check_threads,
    check_disk,
    check_console,
)
