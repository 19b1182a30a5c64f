"""日程：学习率的形状，什么时候结束，长不长。"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.small_run import values
from training.position import Best, Position
from training.schedule import BySeconds, ByUpdates, lr_scale
from training.settings import Settings

SETTINGS = Settings.pick(values(Path("anywhere")))  # 12 次更新


def test_learning_rate_schedule():
    scales = [lr_scale(n, 100, 500, 0.5) for n in range(100)]
    assert scales[0] == pytest.approx(1 / 11) and scales[10] == 1.0  # 预热至多 10%
    assert scales[50] == 1.0 and scales[75] == pytest.approx(0.5)
    assert scales[-1] == pytest.approx(0.02) and min(scales) > 0
    assert [lr_scale(n, 3, 500, 0.0) for n in range(3)] == [1.0, 1.0, 1.0]


def test_by_updates_ends_after_the_last_update():
    schedule = ByUpdates(SETTINGS)
    assert not schedule.is_over(Position(update=11))
    assert schedule.is_over(Position(update=12)) and schedule.is_complete(Position(update=12))


def test_by_updates_ends_early_when_validation_is_stale():
    stale = Position(update=3, best=Best(5.0, 3, stale=2))
    assert not ByUpdates(SETTINGS).is_over(stale)  # EARLY_STOP=0：不提前
    schedule = ByUpdates(dataclasses.replace(SETTINGS, early_stop=2))
    assert schedule.is_over(stale) and not schedule.is_complete(stale)


def test_by_seconds_rises_holds_and_falls():
    schedule = BySeconds(100.0, decay_share=0.5)
    scales = [schedule.scale(Position(seconds=s)) for s in (0.0, 1.0, 40.0, 75.0, 100.0)]
    assert scales == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.02])
    assert not schedule.is_over(Position(seconds=99.9)) and schedule.is_over(Position(seconds=100))


def test_only_long_runs_are_worth_compiling():
    assert not ByUpdates(SETTINGS).is_long(6 * 10**5, "cpu")
    assert ByUpdates(dataclasses.replace(SETTINGS, train_iter=50000)).is_long(6 * 10**7, "cpu")
    assert BySeconds(60, 0.5).is_long(1, "cpu") and not BySeconds(59, 0.5).is_long(1, "cpu")


def test_micro_batches_of_the_last_update_may_be_fewer():
    assert list(SETTINGS.micro_batches(0)) == [0, 1, 2]
    assert list(SETTINGS.micro_batches(11)) == [33, 34]
    assert [SETTINGS.iteration(n) for n in (0, 11, 12)] == [0, 33, 35]
