"""显卡上边界的事不许太密：用掉的时间摊薄到百分之二才做下一次，欠着的不会丢。"""

from __future__ import annotations

import pytest

from support import hardware
from tests.small_run import build_data, values, work_dir
from training import keeper, loop, runlog, samples
from training.keeper import Pace


def test_pace_waits_until_the_cost_is_a_small_share():
    now = [0.0]
    pace = Pace(0.02, lambda: now[0])
    assert pace.allows()
    with pace.working():
        now[0] += 4.0
    now[0] += 100.0
    assert not pace.allows()
    now[0] += 96.0
    assert pace.allows()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(hardware, "measure_peak", lambda *_: 1e11)
    monkeypatch.setattr(runlog, "draw", lambda *_: False)
    monkeypatch.setattr(samples, "poem", lambda *_, **__: "诗")


def test_postponed_work_is_done_later_and_at_the_end(tmp_path, quick, monkeypatch):
    work = work_dir(tmp_path / "run", build_data(tmp_path))
    allowed = iter([True, False, False, True])
    monkeypatch.setattr(Pace, "allows", lambda self: next(allowed))
    monkeypatch.setattr(keeper, "SLOWED", ("cpu",))
    loop.train(values(work, TRAIN_ITER=15, EVAL_EVERY=3, SAVE_EVERY=100, SAMPLE_EVERY=100))
    lines = (work / "train_log.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [bool(line.split(",")[3]) for line in lines] == [True, False, False, True, True]


def test_the_cpu_keeps_its_intervals(tmp_path, quick, monkeypatch):
    work = work_dir(tmp_path / "run", build_data(tmp_path))
    monkeypatch.setattr(Pace, "allows", lambda self: False)
    loop.train(values(work, TRAIN_ITER=9, EVAL_EVERY=3))
    lines = (work / "train_log.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert all(line.split(",")[3] for line in lines)
