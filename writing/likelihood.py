"""写好的文字有多大的概率：排候选、改一行、起题目都从这里问模型。"""

from __future__ import annotations

import torch

from writing import sample
from writing.poet import Poet


@torch.no_grad()
def log_probs(poet: Poet, prompt: list, tokens: list, first: int = 0) -> torch.Tensor:
    """提问 prompt 之后依次写出 tokens，其中从第 first 个起各自的 ln p (n,)；上下文放不下的不算。"""
    tokens = tokens[: poet.config.max_seq_len - len(prompt)]
    ids = torch.tensor([*prompt, *tokens], device=poet.decoder.device)
    start = len(prompt) + first
    hidden = poet.model.hidden(ids[None, :-1])[0, start - 1 :]  # (n, C)
    logits = poet.model.head(hidden).float()  # (n, V)
    return sample.log_probability(logits, ids[start:]).cpu()
