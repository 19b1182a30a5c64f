"""线程怎样等：设过的照他的，机器忙就不空转，看不到就当空闲；结果与线程怎样等无关。"""

from __future__ import annotations

import pytest

from support import threads


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # 测试之后恢复


def spins(monkeypatch, busy):
    import os

    monkeypatch.setattr(threads, "busy_share", lambda: busy)
    threads.wait_briefly()
    return os.environ["GOMP_SPINCOUNT"]


def test_a_busy_machine_gets_no_spinning(monkeypatch):
    assert spins(monkeypatch, 0.9) == "0"


def test_a_quiet_machine_is_left_as_it_is(monkeypatch):
    assert spins(monkeypatch, 0.05) == ""


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_person_set_stays(monkeypatch, name):
    import os

    monkeypatch.setenv(name, "ACTIVE")
    monkeypatch.setattr(threads, "busy_share", lambda: 0.9)
    threads.wait_briefly()
    assert os.environ[name] == "ACTIVE" and os.environ["GOMP_SPINCOUNT"] in ("", "ACTIVE")


def test_busy_share(tmp_path, monkeypatch):
    """一半在算、一半空闲与等磁盘。"""
    stat = tmp_path / "stat"
    lines = iter(["cpu  100 0 50 800 20 0 0 0 0 0\n", "cpu  140 0 60 840 30 0 0 0 0 0\n"])
    monkeypatch.setattr(threads.time, "sleep", lambda _: None)
    real = threads._times

    def times(path):
        path.write_text(next(lines), encoding="ascii")
        return real(path)

    monkeypatch.setattr(threads, "_times", times)
    assert threads.busy_share(stat=stat) == pytest.approx(0.5)


@pytest.mark.parametrize("content", [None, "", "cpu a b\n", "别的\n"])
def test_nothing_to_see_counts_as_quiet(tmp_path, content):
    stat = tmp_path / "stat"
    if content is not None:
        stat.write_text(content, encoding="utf-8")
    assert threads.busy_share(0.0, stat) == 0.0
