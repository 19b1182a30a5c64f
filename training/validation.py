"""给诗打分：模型对正文的负对数似然。训练中的验证、evaluate.py、benchmark.py 都用它。"""

from __future__ import annotations

import math

import torch

from support import hardware
from training.batching import BatchPlan, assemble


@torch.no_grad()
def document_nats(model, documents: list, *, budget, device, dtype=torch.float32, check=None):
    """每个文档受训 token 的 −ln p 之和，(n,) float64 CPU 张量；对数概率在 fp32 里计算。

    documents：[(ids, mask), …]；budget：一批的 token 数上限；check：每批之前调用（用来响应中断）。
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
    finally:
        model.train(was_training)
    return result


def _row_nats(model, batch, device, dtype):
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


def _exact(device):
    """float64 可用的设备（MPS 没有）。"""
    return "cpu" if torch.device(device).type == "mps" else device


def bits(nats: float) -> float:
    """自然对数单位 → 比特。"""
    return nats / math.log(2)
