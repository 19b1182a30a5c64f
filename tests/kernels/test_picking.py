"""编译好的抽样：与 writing/sample.py 的同一个结果。"""

from __future__ import annotations

import pytest
import torch

from kernels.picking import Picking
from writing import sample

OPTIONS = {
    "temperature": [1.0, 0.7, 1.3],
    "top_k": 0,
    "top_p": 1.0,
    "min_p": [0.1, 0.0, 0.02],
}


@pytest.fixture(scope="module")
def picking(library):
    return Picking(library)


def misses(logits, chances, marks, uniform, tokens):
    """各行抽到的 token 占着 [0, 1) 的一段（先标点、后字，都照编号排）；uniform 离这一段有多远。"""
    temperature, min_p = (
        torch.tensor(OPTIONS[name]).view(-1, 1) for name in ("temperature", "min_p")
    )
    marked = chances.double().masked_fill(logits[:, marks] == -torch.inf, 0.0)
    words = logits.double().index_fill(1, marks, -torch.inf) / temperature
    words = (words - words.amax(1, keepdim=True)).exp().nan_to_num(0.0)
    words[words < min_p] = 0.0
    share = (1 - marked.sum(1, keepdim=True)) * (words.sum(1, keepdim=True) > 0)
    sizes = words / words.sum(1, keepdim=True).clamp_min(1e-300) * share
    edges = torch.cat((marked, sizes), 1).cumsum(1)
    edges = edges / edges[:, -1:]
    found = []
    for row, token in enumerate(tokens.tolist()):
        place = marks.tolist().index(token) if token in marks else len(marks) + token
        low = edges[row, place - 1] if place else 0.0
        found.append(max(float(low - uniform[row]), float(uniform[row] - edges[row, place]), 0.0))
    return found


@pytest.mark.parametrize("size", [9, 64, 301, 20000])
def test_the_same_picks(picking, size):
    chance = torch.Generator().manual_seed(size)
    for trial in range(20):
        logits = torch.randn(3, size, generator=chance) * 3
        marks = torch.randperm(size, generator=chance)[:5]
        raw = logits.clone()
        if trial % 2:  # 禁止的
            logits[0, torch.randperm(size, generator=chance)[: size // 2]] = -torch.inf
        if trial % 3 == 0:  # 只许一个标点，只许一个字
            logits[1:] = -torch.inf
            logits[1, marks[0]] = logits[2, (int(marks.max()) + 1) % size] = 1.0
        plain = sample.mark_chances(raw, marks)
        ours = sample.mark_chances(raw, marks, picking=picking)
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-9)
        uniform, given = torch.rand(3, generator=chance), logits.clone()
        usual = sample.steady_pick(given.clone(), plain, marks, uniform, **OPTIONS)
        tokens = sample.steady_pick(given, ours, marks, uniform, picking, **OPTIONS)
        chances = sample.mark_chances(raw, marks)
        assert max(misses(logits, chances, marks, uniform, tokens)) < 1e-5
        assert size > 1000 or torch.equal(tokens, usual)  # 字多时两个字的边界会因舍入挪一点


@pytest.mark.parametrize("value", [0.0, 0.5, 1 - 2**-24])
def test_the_edges(picking, value):
    """抽到两头也不越界，不抽到被禁止的；全被禁止时也给出一个编号。"""
    usual = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    logits, marks = torch.full((1, 21), -torch.inf), torch.tensor([3, 20])
    uniform, none = torch.tensor([value]), torch.zeros(1, 2)
    found = sample.steady_pick(logits.clone(), none.clone(), marks, uniform, picking, **usual)
    assert 0 <= int(found) < 21
    logits[0, [5, 6, 18]] = torch.tensor([1.0, 2.0, 0.0])
    found = sample.steady_pick(logits.clone(), none, marks, uniform, picking, **usual)
    assert int(found) == {0.0: 5, 0.5: 6, 1 - 2**-24: 18}[value]


def test_sorting_options_go_the_plain_way(picking):
    logits, marks = torch.randn(2, 50, generator=torch.Generator().manual_seed(1)), torch.arange(3)
    chances, uniform = sample.mark_chances(logits, marks), torch.tensor([0.3, 0.9])
    options = {"temperature": 1.0, "top_k": 4, "top_p": 0.9, "min_p": 0.0}
    plain = sample.steady_pick(logits.clone(), chances, marks, uniform, **options)
    chances = sample.mark_chances(logits, marks)
    assert torch.equal(
        sample.steady_pick(logits, chances, marks, uniform, picking, **options), plain
    )
