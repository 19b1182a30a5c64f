"""优化器：正交化、与 torch.optim.Muon 同步、参数各归一个优化器。"""

from __future__ import annotations

import pytest
import torch

from tests.test_gpt import random_model
from training import optim


def test_orthogonalize_flattens_singular_values():
    torch.manual_seed(0)
    for shape in ((3, 24, 24), (2, 40, 16), (2, 16, 40)):
        values = torch.linalg.svdvals(optim.orthogonalize(torch.randn(shape), torch.float32))
        assert values.min() > 0.1 and values.max() < 1.3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="这个 torch 没有 torch.optim.Muon")
def test_muon_follows_torch_muon():
    """与 torch.optim.Muon 同步走五步；它在 bf16 里正交化，所以只到百分之几。"""
    torch.manual_seed(0)
    start = torch.randn(48, 16)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    group = {"params": [ours], "parts": [1]}
    mine = optim.Muon([group], lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="original")
    for _ in range(5):
        ours.grad = torch.randn(48, 16)
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    assert (ours - theirs).norm() < 0.03 * (ours - start).norm()


def test_joined_matrices_are_orthogonalized_apart():
    torch.manual_seed(0)
    joined = torch.nn.Parameter(torch.randn(48, 16))
    apart = [torch.nn.Parameter(part.clone()) for part in joined.detach().chunk(3)]
    joined.grad = torch.randn(48, 16)
    for part, grad in zip(apart, joined.grad.chunk(3)):
        part.grad = grad.clone()
    optim.Muon([{"params": [joined], "parts": [3]}], lr=0.02).step()
    optim.Muon([{"params": apart, "parts": [1, 1, 1]}], lr=0.02).step()
    assert torch.allclose(joined, torch.cat(list(apart)), atol=1e-6)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_has_one_optimizer(kind):
    model = random_model()
    built = optim.build(model, kind, 1e-3, 1e-2, 0.1)
    held = [id(p) for m in built.members.values() for g in m.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
