"""训练的内存：预计的峰值放不放得下；预测与实测对照。"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checks import files
from checks.finding import BAD, OK, WARN, Finding, Findings, Settings
from support import artefacts, hardware
from support.console import UserError

if TYPE_CHECKING:
    from gpt import GPTConfig
    from training.memory import Update

CARD_GIB = 8  # 没有显卡时，拿这么大的显卡来比


def planned_config(settings: Settings, vocab: int) -> GPTConfig:
    """配置里的模型形状。"""
    import gpt
    from training import regular
    from training.settings import SHAPE

    dropout = regular.DROPOUT if settings.DROPOUT == regular.AUTO else settings.DROPOUT
    shape = {theirs: getattr(settings, name) for name, theirs in SHAPE.items()}
    return gpt.GPTConfig(vocab, dropout=dropout, **shape)


def vocab_size(settings: Settings) -> int:
    """词表：dataset.bin 或分词器的真实大小，都没有时是配置里的。"""
    import dataset

    try:
        with dataset.load(Path(settings.WORK_DIR) / artefacts.DATASET) as data:
            return data.header["vocab_size"]
    except UserError:
        pass
    try:
        path = dataset.find_tokenizer(settings.WORK_DIR, settings.TOKENIZER)
        return files.load_tokenizer(path).vocab_size
    except UserError:
        return settings.VOCAB_SIZE


def _predict(
    settings: Settings, device: str, dtype: str, vocab: int, grad_checkpoint: bool | None = None
) -> int:
    """训练时内存的峰值（字节），老师占的也算。"""
    from training import memory, teacher

    if grad_checkpoint is None:
        grad_checkpoint = settings.GRAD_CHECKPOINT == "on"
    shape = planned_config(settings, vocab)
    return teacher.room(_teachers(settings, shape), device) + memory.predict_peak(
        shape,
        _rows_at_once(settings, device),
        settings.MAX_SEQ_LEN,
        dtype=dtype,
        optimizer=settings.OPTIMIZER,
        grad_checkpoint=grad_checkpoint,
        device=device,
    )


def _teachers(settings: Settings, student: GPTConfig) -> list:
    """老师们的形状；还没有练、打不开的当作与学生一样。"""
    import checkpoint
    from training import teacher
    from writing import origin

    shapes = [student] * (teacher.number(settings.TEACHER) or 0)
    for path in teacher.paths(settings.TEACHER):
        try:
            found = origin.open_model(path, settings.WORK_DIR, "TEACHER")
            shapes.append(checkpoint.shape_of(found))
        except UserError:
            shapes.append(student)
    return shapes


def _rows_at_once(settings: Settings, device: str) -> int:
    """一次算几行最长的诗。"""
    from training.batching import split_for

    rows = settings.BATCH_SIZE
    return -(-rows // split_for(rows * settings.MAX_SEQ_LEN, device))


def check_memory(settings: Settings) -> Findings:
    """训练内存：预计的峰值放不放得下。"""
    import torch

    from training import memory

    vocab = vocab_size(settings)
    gib, card = CARD_GIB, f"{CARD_GIB} GB 的显卡"
    dtype = "bf16" if settings.DTYPE == "auto" else settings.DTYPE
    if torch.cuda.is_available():
        device = torch.device("cuda")
        gib = smallest_free() / memory.GIB
        card = f"显卡此刻空着 {gib:.1f} GB，"
        dtype = hardware.dtype_name(hardware.pick_dtype(settings.DTYPE, device))
    peak = _predict(settings, "cuda", dtype, vocab)
    text = f"{dtype} 训练预计 {memory.pretty(peak)}，连上下文与碎片约 "
    text += f"{memory.pretty(memory.needed(peak))}；{card}"
    level = BAD if torch.cuda.is_available() and settings.DEVICE != "cpu" else WARN
    if memory.fits(peak, gib):
        yield Finding(OK, "显存", f"{text}放得下（估计，量过的一张卡上差 8%）")
    else:
        yield Finding(level, "显存", f"{text}放不下", _smaller(settings, dtype, vocab, gib))
    if hardware.pick_device(settings.DEVICE).type == "cpu":
        yield from _check_ram(settings, vocab)


def smallest_free() -> int:
    """各张显卡里空着最少的，字节：桌面和别的程序占着的不能算。"""
    import torch

    return min(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))


def _smaller(settings: Settings, dtype: str, vocab: int, gib: float) -> str:
    """放不下时的改法；先看梯度检查点够不够。"""
    from training import memory

    if settings.GRAD_CHECKPOINT == "off":
        less = _predict(settings, "cuda", dtype, vocab, grad_checkpoint=True)
        if memory.fits(less, gib):
            return f"--GRAD_CHECKPOINT=on（预计 {memory.pretty(less)}）"
    half = max(1, settings.BATCH_SIZE // 2)
    return (
        f"--GRAD_CHECKPOINT=on --BATCH_SIZE={half} --ACCUM_STEPS={settings.ACCUM_STEPS * 2}，"
        "仍不够就减小 GPT_DIM 或 GPT_BLOCKS"
    )


def _check_ram(settings: Settings, vocab: int) -> Findings:
    from training import memory

    dtype = hardware.dtype_name(hardware.pick_dtype(settings.DTYPE, hardware.pick_device("cpu")))
    peak = _predict(settings, "cpu", dtype, vocab)
    text = f"在 CPU 上用 {dtype} 训练，张量预计 {memory.pretty(peak)}"
    free = hardware.free_memory()
    if free is None:
        yield Finding(OK, "内存", text)
        return
    text += f"，可用内存 {memory.pretty(free)}"
    if peak * 1.7 > free:  # glibc 的堆会多占约六成
        yield Finding(WARN, "内存", text, "--GRAD_CHECKPOINT=on，或减小 GPT_DIM、GPT_BLOCKS")
    else:
        yield Finding(OK, "内存", text)


CHECKS = (check_memory,)


# ── python diagnose.py memory ─────────────────────────────────────────


def memory_report(settings: Settings) -> int:
    """预测与实测对照（CPU，不编译）。"""
    from training import memory

    shape = planned_config(settings, vocab_size(settings))
    dtypes = ["fp32", "bf16"] if settings.DTYPE == "auto" else [settings.DTYPE]
    rows = _rows_at_once(settings, "cpu")
    print(
        f"模型 {settings.GPT_BLOCKS} 层 × {settings.GPT_DIM} 维，词表 {shape.vocab_size}，"
        f"一次算 {rows} × {settings.MAX_SEQ_LEN} 个 token；在 CPU 上真的更新两次，请稍等"
    )
    for dtype in dtypes:
        update = memory.Update(
            shape,
            rows,
            settings.MAX_SEQ_LEN,
            rows * settings.MAX_SEQ_LEN,
            dtype,
            settings.OPTIMIZER,
            settings.GRAD_CHECKPOINT == "on",
        )
        began = time.perf_counter()
        predicted = memory.predict_peak(**_arguments(update))
        seconds = time.perf_counter() - began
        measured = memory.measure(update)
        row = {
            "dtype": dtype,
            "predicted_mb": predicted >> 20,
            "formula_mb": memory.formula(update) >> 20,
            "measured_mb": measured >> 20,
            "ratio": round(predicted / measured, 3),
        }
        print(
            f"{dtype}：预测 {memory.pretty(predicted)}（{seconds:.1f} 秒），"
            f"实测 {memory.pretty(measured)}，预测 ÷ 实测 = {row['ratio']:.2f}"
        )
        print(json.dumps(row), flush=True)
    return 0


def _arguments(update: Update) -> dict[str, Any]:
    names = ("config", "rows", "length", "dtype", "optimizer", "grad_checkpoint")
    return {name: getattr(update, name) for name in names}
