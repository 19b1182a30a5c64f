"""线程数：模拟的机器上选得对、忙起来换得快、白试的不多；真的线程数用完还原。"""

from __future__ import annotations

import pytest
import torch

from writing.pace import Pace, Paces


def walk(pace, cost, steps):
    """照 cost(线程数) 走几步，返回一共几秒。"""
    total = 0.0
    for _ in range(steps):
        seconds = cost(pace.threads)
        total += seconds
        pace.learn(seconds)
    return total


def quiet(threads):
    """空闲的四核：越多越快。"""
    return 0.010 / threads + 0.001 * threads


def busy(threads):
    """忙的机器：每多一个线程就多等一次。"""
    return 0.012 if threads == 1 else 0.05 * threads


def test_finds_the_fastest():
    pace = Pace([1, 2, 4])
    walk(pace, quiet, 60)
    assert pace.choices[pace.place] == 4 or quiet(pace.choices[pace.place]) < 1.2 * quiet(4)
    pace = Pace([1, 2, 4])
    walk(pace, busy, 200)
    assert pace.choices[pace.place] == 1


def test_changes_its_mind():
    pace = Pace([1, 2])
    walk(pace, quiet, 500)
    assert pace.threads == 2
    walk(pace, busy, 60)
    assert pace.choices[pace.place] == 1
    walk(pace, quiet, 1500)
    assert pace.choices[pace.place] == 2


@pytest.mark.parametrize("cost", [quiet, busy])
def test_trying_costs_little(cost):
    pace = Pace([1, 2])
    walk(pace, cost, 100)
    best = min(cost(1), cost(2)) * 2000
    assert walk(pace, cost, 2000) < 1.05 * best


def test_one_core_never_tries():
    pace = Pace([1])
    for cost in (quiet, busy, lambda threads: 5.0):  # 越来越慢也没有别的可试
        walk(pace, cost, 500)
    assert pace.threads == 1


def test_restores_threads():
    before = torch.get_num_threads()
    paces = Paces(most=6)
    assert paces.choices == [1, 2, 4, 6]
    assert paces.run(3, torch.get_num_threads) == 6
    with pytest.raises(ZeroDivisionError):
        paces.run(3, lambda: 1 / 0)
    assert torch.get_num_threads() == before and list(paces.by_rows) == [3]
