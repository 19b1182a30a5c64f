"""验收 9–12：训练的快慢、显存、显存不足、被杀与续训。"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import torch

import checkpoint
from support import artefacts, hardware
from tests.gpu.model import same_weights
from tests.gpu.stage import FAIL, PASS, WARN, Outcome, Stage, judge
from training import loop, memory, timed


def speed(stage: Stage) -> Outcome:
    """9 README 的形状，不编译与编译各练半分钟，再抽样的 softmax 半分钟；三个微批次里显卡忙不忙，
    最费时的十个核。"""
    seconds = stage.pick(30.0, 0.5)
    found = {}
    problem = hardware.compiler_problem(stage.device)
    for way in ("off", "on") if problem is None and not stage.fake else ("off",):
        values = stage.values(f"speed_{way}", COMPILE=way, RESUME="off", INIT="random")
        found[way] = timed.timed_run(values, seconds).speed()
    way = "on" if "on" in found else "off"
    draws = stage.pick(2000, 20)
    values = stage.values("speed_sampled", COMPILE=way, SAMPLED_SOFTMAX=draws, INIT="random")
    sampled = timed.timed_run(values, seconds).speed()["useful_tokens_per_s"]
    times = sampled / found[way]["useful_tokens_per_s"]
    busy, kernels, details = _profile(stage)
    shown = " / ".join(f"{run['useful_tokens_per_s'] / 1e3:.0f}k" for run in found.values())
    mfu = " / ".join(f"{run['mfu']:.2f}" for run in found.values())
    ratio = 1.0
    if len(found) == 2:
        ratio = found["on"]["useful_tokens_per_s"] / found["off"]["useful_tokens_per_s"]
    outcome = Outcome(
        PASS,
        f"不编译 / 编译 {shown} token/s（抽样 {times:.2f} 倍），MFU {mfu}，忙 {busy:.0%}，"
        f"每微批次 {kernels} 个核" + (f"（不能编译：{problem}）" if problem else ""),
        "编译 ≥ 1.4 倍；忙 ≥ 90%；3060：编译的 MFU ≥ 0.30",
        {"runs": found, "ratio": ratio, "sampled": times, "busy": busy, "kernels": kernels},
        details,
    )
    slow = (len(found) == 2 and ratio < 1.4) or busy < 0.9
    if not stage.fake and (slow or (stage.is_3060 and found.get("on", {}).get("mfu", 1) < 0.3)):
        outcome.state = WARN
    return outcome


def _profile(stage: Stage) -> tuple:
    """(显卡忙的时间占多少, 每个微批次几个核, 最费时的核)。"""
    from torch.profiler import ProfilerActivity, profile

    model = stage.model().to(stage.device).train()
    dtype = hardware.pick_dtype("auto", stage.device)
    ids = torch.randint(3, model.config.vocab_size, stage.pick((21, 190), (3, 20))).to(stage.device)
    where = torch.arange(ids.numel(), device=stage.device)

    def micro_batch() -> None:
        with hardware.autocast(stage.device, dtype):
            loss = model(ids, where, ids.flatten())
        loss.backward()

    micro_batch()
    torch.cuda.synchronize()
    if stage.fake:
        return 1.0, 0, ""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        for _ in range(3):
            micro_batch()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    events = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    used = sum(_device_us(event) for event in events) / 1e6
    table = profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=10)
    return min(1.0, used / seconds), len(events) // 3, table


def _device_us(event: object) -> float:
    """一个核用的微秒数；这个属性在新的 PyTorch 里改了名字。"""
    found = getattr(event, "self_device_time_total", None)
    return float(found if found is not None else event.self_cuda_time_total)


def memory_forecast(stage: Stage) -> Outcome:
    """10 一次更新真的占多少显存，与训练前的预测、与留给碎片和上下文的余量比。"""
    numbers, good, shown = {}, True, []
    for way in ("off", "on"):
        peak, forecast = _memory_of(stage, way == "on")
        share = peak / forecast
        numbers[f"grad_checkpoint_{way}"] = {"peak": peak, "forecast": forecast}
        shown.append(f"{peak / 2**20:.0f}/{forecast / 2**20:.0f} MB")
        good = good and 0.9 <= share <= 1.1
    reserved = torch.cuda.max_memory_reserved()
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    most = max(each["peak"] for each in numbers.values())
    numbers.update(reserved=reserved, context=context)
    if not stage.fake:  # 别的程序也占着时，这里会偏大
        good = good and reserved <= memory.needed(most)
    shown.append(f"保留 {reserved / 2**20:.0f} MB，上下文 {context / 2**20:.0f} MB")
    return judge(good, "；".join(shown), "±10%；保留 ≤ 余量以内", **numbers)


def _memory_of(stage: Stage, grad_checkpoint: bool) -> tuple:
    """(真的峰值, 预测)：两个最大的微批次和一步优化器。"""
    from training import optim

    rows, length = 8, stage.shape["max_seq_len"]
    dtype = hardware.pick_dtype("auto", stage.device)
    base = torch.cuda.memory_allocated()
    model = stage.model(dropout=0.1).to(stage.device).train()
    model.configure(grad_checkpoint=grad_checkpoint)
    optimizers = optim.build(model, "muon", 3e-3, 1e-2, 0.1, torch.float32)
    ids = torch.randint(3, model.config.vocab_size, (rows, length)).to(stage.device)
    where = torch.arange(ids.numel(), device=stage.device)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        with stage.flash():
            with hardware.autocast(stage.device, dtype):
                loss = model(ids, where, ids.flatten())
            loss.backward()
        loss = None
        peak = torch.cuda.max_memory_allocated() - base
        optimizers.step(0.0)  # 第二轮起优化器的状态也在
    forecast = memory.predict_peak(
        model.config,
        rows,
        length,
        dtype=hardware.dtype_name(dtype),
        grad_checkpoint=grad_checkpoint,
        device="cuda",
    )
    return peak, forecast


def out_of_memory(stage: Stage) -> Outcome:
    """11 显存只给一半多：行分开算，学到的与不分时一样；编译与不编译都行。"""
    changes = {
        "DTYPE": "fp32",
        "DROPOUT": 0.0,
        "TRAIN_ITER": stage.pick(16, 4),
        "BATCH_SIZE": stage.pick(8, 32),  # 太小的微批次里，补齐的 logits 占大半，分了也省不下
        "RESUME": "off",
        "INIT": "random",
    }
    torch.cuda.reset_peak_memory_stats()
    free_run = _weights_after(stage.values("room", **changes))
    peak = torch.cuda.max_memory_allocated()
    _, total = torch.cuda.mem_get_info()
    worst, ways = 0.0, ["off"]
    if hardware.compiler_problem(stage.device) is None and not stage.fake:
        ways.append("on")
    for way in ways:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(stage.pick(0.6, 0.7) * peak / total)
        try:
            tight = _weights_after(stage.values(f"tight_{way}", **{**changes, "COMPILE": way}))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        worst = max(worst, same_weights(tight, free_run))
    bound = 1e-3 if "on" in ways else 1e-5
    return judge(worst <= bound, f"{'、'.join(ways)}：误差 {worst:.1e}", f"{bound:g}", error=worst)


def _weights_after(values: dict) -> dict:
    loop.train(values)
    return checkpoint.load(Path(values["WORK_DIR"]) / artefacts.CHECKPOINT)["weights"]


def killed_and_resumed(stage: Stage) -> Outcome:
    """12 训练到一半被杀，再续训：确定的算法下逐位相同；平常的原子加次序不定，同一次训练做两遍权重
    也差百分之一，所以比学到的：验证的比特/字。检查点在 CPU 上能用。"""
    errors = {}
    for deterministic in stage.pick((True, False), (True,)):
        name = "exact" if deterministic else "plain"
        changes = {
            "TRAIN_ITER": stage.pick(160, 24),
            "SAVE_EVERY": stage.pick(16, 4),
            "BATCH_SIZE": 2,
            "SAMPLED_SOFTMAX": stage.pick(2000, 20),
            "DTYPE": "fp32" if stage.fake else "auto",
            "INIT": "random",
        }
        whole = _trained(stage, stage.values(f"whole_{name}", **changes), deterministic)
        values = stage.values(f"killed_{name}", **changes)
        _kill_after_save(stage, values, deterministic)
        again = _trained(stage, values, deterministic)
        errors[name] = same_weights(again["weights"], whole["weights"])
        errors[f"{name}_bpc"] = abs(again["best"]["val_bpc"] - whole["best"]["val_bpc"])
    good = errors["exact"] == 0 and errors.get("plain_bpc", 0) <= 0.02
    _load_on_cpu(Path(values["WORK_DIR"]))
    shown = f"确定的：权重 {errors['exact']:.1e}"
    if "plain" in errors:
        shown += f"；平常的：权重 {errors['plain']:.1e}，验证 {errors['plain_bpc']:.1e}"
    return Outcome(PASS if good else FAIL, shown, "确定的 0；平常的验证 0.02 比特/字", errors)


def _trained(stage: Stage, values: dict, deterministic: bool) -> dict:
    """另起进程训练到头，返回检查点。"""
    process = stage.trainee(values, deterministic)
    text, _ = process.communicate(timeout=stage.pick(120, 240))
    assert process.returncode == 0, text.decode("utf-8", "replace")[-2000:]
    return checkpoint.load(Path(values["WORK_DIR"]) / artefacts.CHECKPOINT)


def _kill_after_save(stage: Stage, values: dict, deterministic: bool) -> None:
    """第一份检查点一出现就杀。"""
    process = stage.trainee(values, deterministic)
    target = Path(values["WORK_DIR"]) / artefacts.CHECKPOINT
    deadline = time.monotonic() + stage.pick(90, 240)
    while not target.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.communicate()
    assert target.exists(), "还没有保存过就结束了"


def _load_on_cpu(folder: Path) -> None:
    model, _ = checkpoint.rebuild(
        checkpoint.load(folder / artefacts.BEST_MODEL), torch.device("cpu")
    )
    with torch.no_grad():
        logits = model(torch.arange(3, 9)[None])
    assert bool(torch.isfinite(logits).all()), "显卡上训练的模型在 CPU 上写不出有限的数"
