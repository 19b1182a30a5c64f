"""排批：每轮恰好一遍，只由种子决定；目标是下一个 token。"""

from __future__ import annotations

import numpy as np

from training import batching


def test_plan_covers_each_epoch_and_is_a_pure_function():
    lengths = np.random.default_rng(0).integers(5, 60, 300)
    plan, again = (batching.BatchPlan(lengths, 128, seed=3) for _ in range(2))
    total = plan.per_epoch
    orders = []
    for epoch in range(2):
        batches = [plan.documents(epoch * total + i) for i in range(total)]
        assert sorted(np.concatenate(batches)) == list(range(300))
        assert all(len(b) * lengths[b].max() <= 128 for b in batches)
        orders.append(np.concatenate(batches))
    assert not np.array_equal(*orders)
    number = total + 3
    assert np.array_equal(again.documents(number), plan.documents(number))


def test_batch_targets_are_the_next_tokens():
    documents = [
        (np.array([1, 5, 6, 7, 2]), np.array([0, 0, 1, 1, 1])),
        (np.array([1, 9, 2]), np.array([0, 1, 1])),
    ]
    batch = batching.assemble(documents)
    assert batch.inputs.tolist() == [[1, 5, 6, 7], [1, 9, 0, 0]]
    assert batch.targets.tolist() == [[-1, 6, 7, 2], [9, 2, -1, -1]]
    assert (batch.tokens, batch.trained) == (6, 5)
    parts = batch.parts(2)
    assert sum(len(part[2]) for part in parts) == 5 and len(parts) == 2


def test_parts_made_ready_in_the_background_are_given_as_they_are():
    batch = batching.assemble(
        [(np.array([1, 5 + n, 6, 2]), np.ones(4, dtype=int)) for n in range(4)]
    )
    plain = batch.parts(2)
    held = []
    batch.prepare(2, lambda array: held.append(array) or array)
    assert batch.parts(2) is batch.ready[1] and len(held) == 6
    for ours, theirs in zip(batch.parts(2), plain):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs))
    assert len(batch.parts(4)) == 4  # 显存不够、分得更细时现分
