"""合在一起的输出层与交叉熵：对照 torch 的朴素写法。"""

from __future__ import annotations

from typing import Callable

import pytest
import torch
import torch.nn.functional as F

from kernels.cross_entropy import (
    Candidates,
    Chunks,
    Scratch,
    Soft,
    fused_softmax,
    linear_cross_entropy,
    softmax_parts,
)


def loss_and_gradients(function: Callable, hidden: torch.Tensor, weight: torch.Tensor):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(hidden, weight)
    (loss * 0.5).backward()
    return loss.detach(), hidden.grad, weight.grad


def empty_autocast(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        pass


def need(probe: Callable) -> None:
    """旧的 PyTorch 在 CPU 上做不了 fp16 的这件事，就跳过。"""
    try:
        probe()
    except RuntimeError as error:
        pytest.skip(f"这个 PyTorch 的 CPU 上没有：{error}")


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_fused_cross_entropy_equals_torch(rows):
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 16), torch.randn(97, 16) * 3
    labels = torch.randint(0, 97, (50,))
    ours = loss_and_gradients(
        lambda h, w: linear_cross_entropy(h, w, labels, Chunks(rows, 5)), hidden, weight
    )
    plain = loss_and_gradients(
        lambda h, w: F.cross_entropy(h @ w.t(), labels, reduction="sum"), hidden, weight
    )
    for a, b in zip(ours, plain):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [softmax_parts, None])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_teacher_changes_the_gradients_and_not_the_loss(kernel, share):
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 16), torch.randn(97, 16)
    labels = torch.randint(0, 97, (50,))
    soft = Soft(torch.randn(50, 8), torch.randn(97, 8), share)
    believed = (soft.hidden @ soft.weight.t()).softmax(-1)

    def plain(h, w):
        hard = F.cross_entropy(h @ w.t(), labels, reduction="sum")
        taught = F.cross_entropy(h @ w.t(), believed, reduction="sum")
        return (1 - share) * hard + share * taught

    ours = loss_and_gradients(
        lambda h, w: linear_cross_entropy(h, w, labels, Chunks(16, 5), kernel, soft=soft),
        hidden,
        weight,
    )
    for a, b in zip(ours[1:], loss_and_gradients(plain, hidden, weight)[1:]):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert torch.allclose(ours[0], F.cross_entropy(hidden @ weight.t(), labels, reduction="sum"))


@pytest.mark.parametrize("kernel", [softmax_parts, None])
@pytest.mark.parametrize("share", [None, 0.5])
def test_only_the_candidates_are_computed(kernel, share):
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 16), torch.randn(97, 16)
    words = Candidates(torch.randperm(97)[:40], torch.rand(40) * 2)
    labels = torch.randint(0, 40, (50,))
    soft = None if share is None else Soft(torch.randn(50, 8), torch.randn(97, 8), share)

    def plain(h, w):
        logits = h @ w[words.rows].t() + words.bias
        hard = F.cross_entropy(logits, labels, reduction="sum")
        if soft is None:
            return hard
        believed = (soft.hidden @ soft.weight[words.rows].t() + words.bias).softmax(-1)
        taught = F.cross_entropy(logits, believed, reduction="sum")
        return hard + share * (taught - taught.detach() - hard + hard.detach())

    ours = loss_and_gradients(
        lambda h, w: linear_cross_entropy(
            h, w, labels, Chunks(16, 5), kernel, soft=soft, candidates=words
        ),
        hidden,
        weight,
    )
    for a, b in zip(ours, loss_and_gradients(plain, hidden, weight)):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_cross_entropy_under_autocast(dtype):
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16), torch.randn(97, 16)
    labels = torch.randint(0, 97, (40,))
    need(lambda: empty_autocast(dtype))
    with torch.autocast("cpu", dtype=dtype):
        ours = loss_and_gradients(lambda h, w: linear_cross_entropy(h, w, labels), hidden, weight)
    exact = loss_and_gradients(
        lambda h, w: F.cross_entropy(h @ w.t(), labels, reduction="sum"), hidden, weight
    )
    for a, b in zip(ours, exact):
        assert (a - b).norm() < 0.03 * b.norm() and a.dtype == torch.float32


def test_scratch_gives_the_same_memory_again():
    scratch = Scratch()
    first = scratch.take("a", (4, 5), torch.float32, torch.device("cpu"))
    smaller = scratch.take("a", (3, 2), torch.float32, torch.device("cpu"))
    assert smaller.shape == (3, 2) and smaller.data_ptr() == first.data_ptr()
    other = scratch.take("a", (4, 5), torch.bfloat16, torch.device("cpu"))
    assert other.dtype == torch.bfloat16


def test_scratch_changes_nothing():
    """同一块内存用两次，损失与梯度和各用新的一样。"""
    torch.manual_seed(0)
    weight, scratch = torch.randn(97, 16), Scratch()
    for count in (50, 30):
        hidden, labels = torch.randn(count, 16), torch.randint(0, 97, (count,))
        kept, fresh = (
            loss_and_gradients(
                lambda h, w, labels=labels, kept=kept: linear_cross_entropy(
                    h, w, labels, scratch=kept
                ),
                hidden,
                weight,
            )
            for kept in (scratch, None)
        )
        assert all(torch.equal(a, b) for a, b in zip(kept, fresh))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_softmax_gives_the_loss_and_the_probabilities(dtype):
    torch.manual_seed(0)
    logits = (4 * torch.randn(40, 301)).to(dtype)
    target = torch.randint(301, (40,))
    out = torch.empty_like(logits)
    need(lambda: logits.softmax(-1))
    loss = fused_softmax(logits, target, out)
    exact = torch.nn.functional.cross_entropy(logits.double(), target, reduction="none")
    bound = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype]
    assert float((loss - exact).abs().max()) <= bound
    assert float((loss - exact).mean().abs()) <= bound / 4  # 舍入有正有负
    assert torch.allclose(out.double(), logits.double().softmax(-1), atol=4e-3)


def test_fused_form_has_the_gradients_of_the_plain_one():
    torch.manual_seed(0)
    grads = []
    for kernel in (softmax_parts, None):
        torch.manual_seed(1)
        hidden = torch.randn(70, 16, requires_grad=True)
        weight = torch.nn.Parameter(torch.randn(301, 16))
        labels = torch.randint(301, (70,))
        linear_cross_entropy(hidden, weight, labels, Chunks(32, 32), kernel).backward()
        grads.append((hidden.grad, weight.grad))
    for one, other in zip(*grads):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
