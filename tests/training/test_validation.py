"""打分：对照 torch 的交叉熵。"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.test_gpt import random_model
from training import validation


def test_scores_equal_torch():
    model = random_model()
    rng = np.random.default_rng(0)
    documents = [(rng.integers(3, 97, n), (np.arange(n) >= 2).astype(int)) for n in (9, 4, 17)]
    done = []
    nats = validation.document_nats(model, documents, budget=20, device="cpu", on_done=done.append)
    assert sum(done) == 8 + 3 + 16  # 进度条走到头
    for (ids, mask), value in zip(documents, nats):
        ids = torch.from_numpy(ids)
        with torch.no_grad():
            logits = model(ids[None, :-1])[0]
        losses = F.cross_entropy(logits, ids[1:], reduction="none")
        assert value.item() == pytest.approx(
            losses[torch.from_numpy(mask[1:]) == 1].sum().item(), rel=1e-5
        )
