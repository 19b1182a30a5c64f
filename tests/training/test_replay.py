"""混进来的旧诗：名额不变、轮得到每一篇、只由种子与第几遍决定。"""

from __future__ import annotations

import numpy as np
import pytest

from training.replay import Replay, places

LENGTHS = np.random.default_rng(0).integers(5, 60, size=23)


def test_every_old_poem_has_its_turn():
    replay = Replay(LENGTHS, 5, seed=3)
    epochs = [replay.documents(epoch) for epoch in range(5)]
    assert all(len(set(chosen.tolist())) == 5 for chosen in epochs)
    assert set(np.concatenate(epochs).tolist()) == set(range(23))
    assert all((LENGTHS[chosen] <= replay.longest).all() for chosen in epochs)


def test_only_seed_and_epoch_decide():
    one, other = Replay(LENGTHS, 5, seed=3), Replay(LENGTHS, 5, seed=3)
    other.documents(0)
    assert one.documents(7).tolist() == other.documents(7).tolist()
    later = [Replay(LENGTHS, 5, seed=4).documents(epoch).tolist() for epoch in range(5)]
    assert later != [one.documents(epoch).tolist() for epoch in range(5)]


@pytest.mark.parametrize(
    "fresh, share, old, count",
    [(80, 0.2, 100, 20), (80, 0.2, 7, 7), (3, 0.01, 9, 1), (80, 0.0, 100, 0)],
)
def test_places(fresh, share, old, count):
    assert places(fresh, share, old) == count
