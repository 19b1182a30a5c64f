"""给诗打分：模型对正文的负对数似然。训练中的验证、evaluate.py、benchmark.py 都用它。"""

from __future__ import annotations

import dataclasses
import math
from typing import Callable

import torch

from gpt import GPT
from support import hardware
from training.batching import Batch, BatchPlan, assemble
from training.run import Run


def bits_per_char(run: Run) -> float:
    """只给标题、整首放得下的验证诗：比特数之和 ÷ 字数之和；各进程各算一份。"""
    ranks, data = run.ranks, run.corpus.data
    mine = run.corpus.validation()[ranks.rank :: ranks.world_size]
    nats = _nats_in_memory(run, [data.document(int(index))[:2] for index in mine])
    chars = sum(int(data.chars[index]) for index in mine)
    nats, chars = ranks.sum([float(nats.sum()), chars])
    return bits(nats) / max(1.0, chars)


def left(run: Run) -> float:
    """剩下的几次验证要算的，折合现在的几次更新；显卡上它至多占百分之二的时间，不数。"""
    s, corpus, work = run.settings, run.corpus, run.gradients.flops_per_token()
    if run.machine.device.type != "cpu":
        return 0.0
    done = s.iteration(run.position.update) // s.eval_every
    times = -(-s.train_iter // s.eval_every) - done
    tokens = sum(len(corpus.data.document(int(index))[0]) - 1 for index in corpus.validation())
    update = corpus.lengths.sum() / corpus.plan.per_epoch * s.accum_steps
    forward = run.model.flops_per_token() / 3  # 算全部的词，没有反向
    return times * tokens * forward / (update * work)


def _nats_in_memory(run: Run, documents: list) -> torch.Tensor:
    """同 document_nats；显存不够就一批少算些。"""
    budget = run.settings.budget
    while True:
        try:
            return document_nats(
                run.model,
                documents,
                budget=budget,
                device=run.machine.device,
                dtype=run.machine.dtype,
                # 几个进程时，要停就一起停
                check=run.stop.check if run.ranks.world_size == 1 else None,
            )
        except RuntimeError as error:
            if not hardware.is_out_of_memory(error) or budget <= run.settings.max_seq_len:
                raise
        budget //= 2
        hardware.forget_freed_memory(run.machine.device)


@torch.no_grad()
def document_nats(
    model: GPT,
    documents: list,
    *,
    budget: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    check: Callable[[], None] | None = None,
    on_done: Callable[[int], object] | None = None,
) -> torch.Tensor:
    """每个文档受训 token 的 −ln p 之和，(n,) float64 CPU 张量；对数概率在 fp32 里计算。

    documents：[(ids, mask), …]；budget：一批的 token 数上限；check：每批之前调用（用来响应中断）；
    on_done(token 数)：每批之后调用，供进度条用，合起来是各文档的长度减一之和。
    """
    result = torch.zeros(len(documents), dtype=torch.float64)
    if not documents:
        return result
    lengths = [len(ids) - 1 for ids, _ in documents]
    plan = BatchPlan(lengths, budget, seed=0, shuffle=False)
    was_training = model.training
    model.eval()
    try:
        for number in range(plan.per_epoch):
            if check is not None:
                check()
            chosen = plan.documents(number)
            batch = assemble([documents[index] for index in chosen])
            result[torch.from_numpy(chosen)] = _row_nats(model, batch, device, dtype)
            if on_done is not None:
                on_done(sum(lengths[index] for index in chosen))
    finally:
        model.train(was_training)
    return result


def _row_nats(model: GPT, batch: Batch, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """一批里每行的负对数似然之和 (B,)。"""
    targets = torch.from_numpy(batch.targets).to(device)
    with hardware.autocast(device, dtype):
        hidden = model.hidden(torch.from_numpy(batch.inputs).to(device))  # (B, T, D)
    flat, labels = hidden.float().flatten(0, 1), targets.flatten()
    where = labels.ge(0).nonzero().squeeze(1)
    nats = torch.zeros(labels.numel(), dtype=torch.float64, device=_exact(device))
    for piece in where.split(512):
        logits = model.head(flat[piece]).float()  # (n, D) -> (n, V)
        loss = torch.nn.functional.cross_entropy(logits, labels[piece], reduction="none")
        nats[piece.to(nats.device)] = loss.to(nats.device, torch.float64)
    return nats.view(targets.shape).sum(1).cpu()


def _exact(device: torch.device) -> str | torch.device:
    """float64 可用的设备（MPS 没有）。"""
    return "cpu" if torch.device(device).type == "mps" else device


def of_old_poems(run: Run) -> float | None:
    """旧诗的验证集的比特/字；没有给 REPLAY_DATA 时为 None。"""
    old = run.corpus.old
    return None if old is None else bits_per_char(dataclasses.replace(run, corpus=old))


def bits(nats: float) -> float:
    """自然对数单位 → 比特。"""
    return nats / math.log(2)
