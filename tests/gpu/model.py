"""验收 5–8：模型、优化器、编译、同步。"""

from __future__ import annotations

import time
import warnings
from collections import Counter

import torch

from gpt import GPT
from support import hardware
from tests.gpu.card import DTYPES
from tests.gpu.stage import FAIL, PASS, Outcome, Stage, farthest, judge, relative, skip
from training import loop, optim
from training.characters import Spelling


def _batch(model: GPT, rows: int, length: int) -> tuple:
    """(ids, where, labels)，在 CPU 上；三分之二的位置要训练。"""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (rows, length), generator=generator)
    where = torch.arange(length // 3, rows * length)
    return ids, where, ids.flatten().roll(-1)[where]


def _gradients(model: GPT, batch: tuple, device: torch.device, dtype: torch.dtype) -> tuple:
    """(每个 token 的损失, 各参数的梯度)；fp16 时先放大再除回来。"""
    model = model.to(device).train()
    model.zero_grad(set_to_none=True)
    scale = 1024.0 if dtype == torch.float16 else 1.0
    ids, where, labels = (x.to(device) for x in batch)
    with hardware.autocast(device, dtype):
        loss = model(ids, where, labels) / len(where)
    (loss * scale).backward()
    grads = {name: p.grad.float().cpu() / scale for name, p in model.named_parameters()}
    return float(loss.detach()), grads


def parity(stage: Stage) -> Outcome:
    """5 同样的权重与数据：CPU fp32 与显卡 fp32、bf16、fp16 的损失和每个梯度。"""
    model = stage.model()
    batch = _batch(model, stage.pick(8, 3), stage.pick(190, 40))
    loss, wanted = _gradients(model, batch, torch.device("cpu"), torch.float32)
    numbers, good = {}, True
    # bf16 的舍入本来这么大：在 CPU 上用它，q、k 的归一化权重（许多正负相消的项）也差 3.3e-2
    bounds = {"fp32": (1e-5, 1e-4), "bf16": (2e-3, 5e-2), "fp16": (2e-3, 1e-2)}
    for name, dtype in DTYPES.items():
        found_loss, found = _gradients(model, batch, stage.device, dtype)
        error, who = farthest(found, wanted)
        off = abs(found_loss / loss - 1)
        numbers[name] = {"loss": off, "gradient": error, "where": who}
        good = good and off <= bounds[name][0] and error <= bounds[name][1]
    for name, reduced in (("reduced", True), ("exact", False)):
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced
        _, found = _gradients(model, batch, stage.device, torch.bfloat16)
        numbers[f"bf16_{name}_sum"] = farthest(found, wanted)[0]
    shown = "，".join(
        f"{name} 损失 {numbers[name]['loss']:.1e} 梯度 {numbers[name]['gradient']:.1e}"
        for name in DTYPES
    )
    return judge(good, shown, "1e-5、1e-4；bf16 2e-3、5e-2；fp16 2e-3、1e-2", **numbers)


def _spelling(words: int) -> Spelling:
    """每个词两个字；有的字在许多词里，有的只在几个里。"""
    generator = torch.Generator().manual_seed(3)
    count = max(2, words // 6)
    chars = (torch.rand(2 * words, generator=generator) ** 3 * count).long()
    return Spelling.of(chars, torch.arange(words).repeat_interleave(2), words, count)


def optimizer(stage: Stage) -> Outcome:
    """6 三次更新，同一个字的词一起学：显卡 fp32 与 CPU 相同；bf16 的正交化够不够正。"""
    ends, spelling = {}, _spelling(stage.shape["vocab_size"])
    for device in (torch.device("cpu"), stage.device):
        model = stage.model().to(device)
        rates = {"lr": 3e-3, "muon_lr": 1e-2, "weight_decay": 0.1, "char_lr": 3e-3}
        optimizers = optim.build(model, "muon", spelling=spelling, **rates)
        generator = torch.Generator().manual_seed(2)
        for _ in range(3):
            for param in model.parameters():
                param.grad = torch.randn(param.shape, generator=generator).to(device)
            optimizers.step(1.0)
        ends[device.type] = {name: p.detach().cpu() for name, p in model.named_parameters()}
    error, who = farthest(ends["cuda"], ends["cpu"])
    width = stage.shape["dim"]
    found = optim.orthogonalize(torch.randn(2, width, width, device=stage.device), torch.bfloat16)
    values = torch.linalg.svdvals(found.float().cpu())
    low, high = float(values.min()), float(values.max())
    middle = float(values.median())
    good = error <= 1e-4 and high <= 1.3 and middle >= 0.6
    shown = f"误差 {error:.1e}（{who}）；奇异值 {low:.2f}–{high:.2f}，中位 {middle:.2f}"
    return judge(good, shown, "1e-4；中位 ≥ 0.6，最大 ≤ 1.3", error=error, low=low, high=high)


def compiling(stage: Stage) -> Outcome:
    """7 编译要多久、几张图，换形状要不要重编，数对不对。"""
    from torch._dynamo.utils import counters

    device = torch.device("cpu") if stage.fake else stage.device
    problem = hardware.compiler_problem(device)
    if problem and not stage.fake:
        return skip(f"不能编译：{problem}")
    dtype = torch.float32 if stage.fake else hardware.pick_dtype("auto", device)
    model = stage.model(dropout=0.0)
    # 行数不与小模型的头数 2 相等：编译器会把相等的大小当成同一个
    shapes = [(3 + i % 7, 20 + 11 * (i % 17)) for i in range(stage.pick(40, 3))]
    shapes = [(rows, min(length, model.config.max_seq_len)) for rows, length in shapes]
    batches = [_batch(model, *shape) for shape in shapes]
    plain = [_gradients(model, batch, device, dtype) for batch in batches[:2]]
    torch._dynamo.reset()
    counters.clear()
    model.configure(compiled=True)
    began = time.perf_counter()
    found = _gradients(model, batches[0], device, dtype)
    seconds = time.perf_counter() - began
    first = counters["stats"]["unique_graphs"]
    for batch in batches[1:]:
        _gradients(model, batch, device, dtype)
    more = counters["stats"]["unique_graphs"] - first
    _gradients(model, _batch(model, 1, 33), device, dtype)
    graphs = counters["stats"]["unique_graphs"]
    error = farthest(found[1], plain[0][1])[0]
    bound = 3e-2 if dtype != torch.float32 else 1e-4
    soon = stage.fake or seconds <= 120
    good = error <= bound and graphs <= 8 and more == 0 and soon
    return judge(
        good,
        f"{seconds:.0f} 秒，{first} 张图，换形状多 {more}，一行时共 {graphs}；梯度 {error:.1e}",
        "≤ 120 秒；≤ 8 张；0；3e-2",
        seconds=seconds,
        graphs=graphs,
        recompiles=more,
        error=error,
    )


def syncs(stage: Stage) -> Outcome:
    """8 一次更新里 CPU 等显卡几次：多做几次更新多出来的，除以多出来的次数。"""
    few, many = 2, 5
    counts = {}
    for updates in (few, many):
        values = stage.values(
            f"syncs{updates}", TRAIN_ITER=updates * stage.pick(8, 2), RESUME="off", INIT="random"
        )
        counts[updates] = _syncs_of(stage, values)
    extra = counts[many] - counts[few]
    each = sum(extra.values()) / (many - few)
    places = "；".join(f"{line} {number}" for line, number in extra.most_common(6))
    return judge(each <= 2, f"每次更新 {each:g} 次（{places}）", "≤ 2", each=each)


def _syncs_of(stage: Stage, values: dict) -> Counter:
    """训练一遍，各行同步的次数。"""
    if stage.fake:
        from tests.fake_cuda.device import Meter

        with Meter() as meter:
            loop.train(values)
        return Counter(meter.syncs)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop.train(values)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    mine = [w for w in caught if "synchroniz" in str(w.message).lower()]
    return Counter(f"{w.filename.rsplit('/', 1)[-1]}:{w.lineno}" for w in mine)


def loss_precisions(stage: Stage) -> Outcome:
    """13 fp16（带损失放大）、bf16、fp32 各练几十次：不发散，终点相近。"""
    ends, skipped = {}, 0
    updates = stage.pick(40, 4)
    for name in DTYPES:
        values = stage.values(
            f"precision_{name}",
            DTYPE=name,
            TRAIN_ITER=updates * stage.pick(8, 2),
            RESUME="off",
            SEED=1,
        )
        result = loop.train(values)
        ends[name] = result["val_bpc"]
        skipped = max(skipped, result["skipped"])
    off = max(abs(value / ends["fp32"] - 1) for value in ends.values())
    shown = " ".join(f"{name} {value:.3f}" for name, value in ends.items())
    good = off <= 0.02 and skipped <= 5
    return judge(
        good, f"{shown} 比特/字；跳过 {skipped}", "相差 ≤ 2%；≤ 5", **ends, skipped=skipped
    )


def learns(stage: Stage) -> Outcome:
    """14 学得与 CPU 一样：同样的种子与更新数，验证的比特/字。"""
    changes = {
        "DTYPE": "fp32",
        "TRAIN_ITER": stage.pick(48, 8),
        "ACCUM_STEPS": 2,
        "BATCH_SIZE": 2,
        "RESUME": "off",
        "DROPOUT": 0.0,  # 两边的随机数发生器不同
    }
    on_cpu = loop.train(stage.values("learn_cpu", **{**changes, "DEVICE": "cpu"}))
    on_card = loop.train(stage.values("learn_card", **changes))
    off = abs(on_cpu["val_bpc"] - on_card["val_bpc"])
    shown = f"CPU {on_cpu['val_bpc']:.3f}，显卡 {on_card['val_bpc']:.3f} 比特/字"
    return Outcome(PASS if off <= 0.05 else FAIL, shown, "相差 ≤ 0.05", {"off": off})


def same_weights(first: dict, second: dict) -> float:
    """两份检查点的权重最大的相对误差。"""
    return max(relative(first[name], second[name]) for name in second)
