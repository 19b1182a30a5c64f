"""验收 17、18：几张卡。"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

import checkpoint
from support import artefacts, hardware
from tests.gpu.model import same_weights
from tests.gpu.stage import ROOT, Outcome, Stage, judge, skip

_ALONE = """
import torch, torch.distributed as dist
device = torch.device({device!r})
dist.init_process_group({backend!r}, init_method="tcp://127.0.0.1:{port}", rank=0, world_size=1)
flat = torch.ones(1 << 20, device=device)
dist.all_reduce(flat)
assert float(flat.sum()) == 1 << 20
dist.destroy_process_group()
"""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def several_cards(stage: Stage) -> Outcome:
    """17 NCCL：一个进程也能汇总；有两张卡时两个进程与一个进程相同，一个被杀另一个会说。"""
    backend, device = ("gloo", "cpu") if stage.fake or sys.platform == "win32" else ("nccl", "cuda")
    code = _ALONE.format(backend=backend, device=device, port=_free_port())
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=stage.pick(60, 240))
    if not stage.fake and torch.cuda.device_count() < 2:
        return skip(f"{backend} 一个进程可以；只有一张卡，两个进程的没有试")
    where = "cpu" if stage.fake else "cuda"
    changes = {
        "DEVICE": where,
        "DTYPE": "fp32",
        "TRAIN_ITER": stage.pick(80, 8),
        "BATCH_SIZE": 2,
        "INIT": "random",
        "SAVE_EVERY": stage.pick(8, 2),
        "DIST_TIMEOUT": 0.5,
    }
    alone, together = stage.values("one", **changes), stage.values("two", **changes)
    codes = [_launch(stage, alone, 1)[0], _launch(stage, together, 2)[0]]
    error = same_weights(_weights(together), _weights(alone)) if codes == [0, 0] else 1.0
    lost = _killed_peer(stage, stage.values("lost", **{**changes, "TRAIN_ITER": 1 << 20}))
    shown = f"退出码 {codes}，误差 {error:.1e}；另一个被杀后 {lost:.0f} 秒退出"
    soon = stage.fake or lost <= 75
    return judge(error <= 1e-5 and soon, shown, "1e-5；75 秒", error=error, lost=lost)


def _weights(values: dict) -> dict:
    return checkpoint.load(Path(values["WORK_DIR"]) / artefacts.CHECKPOINT)["weights"]


def _start(stage: Stage, values: dict, world_size: int) -> list:
    """按手工设环境变量的办法起几个进程。"""
    port = str(_free_port())
    processes = []
    for rank in range(world_size):
        marks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(ROOT / "train_gpt_ddp.py"), *_options(values)],
                cwd=ROOT,
                env={**_plain_environment(), **marks, "MASTER_PORT": port},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
    return processes


def _plain_environment() -> dict:
    """多进程的检查在假显卡上也用 CPU：假设备不会通信。"""
    known = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD",)}
    return {**known, "MASTER_ADDR": "127.0.0.1"}


def _options(values: dict) -> list:
    import config

    defaults = config.values()
    return [f"--{name}={value}" for name, value in values.items() if value != defaults.get(name)]


def _launch(stage: Stage, values: dict, world_size: int) -> tuple:
    """各进程的退出码里最大的，用了几秒。"""
    began = time.monotonic()
    processes = _start(stage, values, world_size)
    codes = [process.wait(timeout=stage.pick(120, 240)) for process in processes]
    return max(codes), time.monotonic() - began


def _killed_peer(stage: Stage, values: dict) -> float:
    """杀掉 1 号进程以后，0 号过几秒自己退出。"""
    first, second = _start(stage, values, 2)
    try:
        target = Path(values["WORK_DIR"]) / artefacts.CHECKPOINT
        deadline = time.monotonic() + stage.pick(90, 240)
        while not target.exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        began = time.monotonic()
        second.kill()
        first.wait(timeout=stage.pick(120, 240))
        return time.monotonic() - began
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


def on_windows(stage: Stage) -> Outcome:
    """18 Windows：没有 Triton 时说清楚不编译；有两张卡时用 gloo 通信（17 已经试过）。"""
    problem = hardware.compiler_problem(stage.device)
    compiled, reason = hardware.pick_compile("auto", stage.device)
    good = compiled == (problem is None) and bool(reason)
    if sys.platform != "win32" and not stage.fake:
        return skip("不是 Windows")
    return judge(good, f"编译：{'能' if compiled else '不能'}（{reason}）", "说了原因")
