"""梯度：分份与不分一样，显存不够时全体分得更细，排在一起的与各自的一样。"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt import GPT, GPTConfig
from support.console import UserError
from support.hardware import is_out_of_memory
from tests.small_run import values
from training.batching import assemble
from training.distributed import Ranks
from training.gradients import FlatGradients, Gradients, micro_seed
from training.machine import Machine
from training.settings import Settings
from training.stop import Interrupted, StopSignal
from training.voice import Voice

SETTINGS = dataclasses.replace(Settings.pick(values(Path("anywhere"))), dropout=0.0)


def batches():
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate((9, 14)):
        ids = [rng.integers(3, 50, length) for _ in range(4)]
        made.append((number, assemble([(row, np.ones(length, np.uint8)) for row in ids])))
    return made


@pytest.fixture
def gradients():
    torch.manual_seed(0)
    model = GPT(GPTConfig(50, 32, dim=32, n_head=2, ff=48, n_block=1))
    for param in model.parameters():
        if param.dim() > 1:
            torch.nn.init.normal_(param, std=0.1)
    machine = Machine(torch.device("cpu"), torch.float32)
    return Gradients(model, machine, SETTINGS, Ranks(), Voice(Ranks()))


def compute(gradients, stop=None):
    trained = sum(batch.trained for _, batch in batches())
    loss = gradients.compute(batches(), trained, 1.0, stop or StopSignal())
    return loss, [param.grad.clone() for param in gradients.model.parameters()]


def test_parts_give_the_same_gradient(gradients):
    loss, whole = compute(gradients)
    gradients.split = 4
    again, parts = compute(gradients)
    assert again == pytest.approx(loss, rel=1e-6)
    for one, other in zip(whole, parts):
        assert torch.linalg.norm(one - other) <= 1e-5 * torch.linalg.norm(one)


def test_out_of_memory_splits_and_says_so(gradients, monkeypatch, capsys):
    _, whole = compute(gradients)
    real = gradients.backward

    def backward(part, weight, seed):
        if len(part[0]) > 1:
            raise MemoryError
        return real(part, weight, seed)

    monkeypatch.setattr(gradients, "backward", backward)
    _, parts = compute(gradients)
    assert gradients.split == 4 and "分 4 份计算" in capsys.readouterr().out
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, parts))


def test_one_row_too_many_is_told(gradients, monkeypatch):
    monkeypatch.setattr(gradients, "backward", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(UserError, match="一次只算一首诗也放不下"):
        compute(gradients)


def test_other_errors_are_not_taken_for_memory(gradients, monkeypatch):
    def backward(*_):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(gradients, "backward", backward)
    with pytest.raises(RuntimeError, match="shape"):
        compute(gradients)
    assert is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_a_signal_is_named(gradients):
    stop = StopSignal()
    stop.received = 15
    with pytest.raises(Interrupted) as caught:
        compute(gradients, stop)
    assert caught.value.number == 15


def test_flat_gradients_are_the_same(gradients):
    _, plain = compute(gradients)
    flat = FlatGradients(gradients.model)
    for _ in range(2):  # 第二次从归零的同一块内存开始
        flat.clear()
        trained = sum(batch.trained for _, batch in batches())
        for number, batch in batches():
            for index, part in enumerate(batch.parts(1)):
                gradients.backward(part, 1 / trained, micro_seed(SETTINGS.seed, number, index))
        assert torch.equal(flat.flat, torch.cat([grad.flatten() for grad in plain]))


def test_seeds_differ_by_micro_batch_and_part():
    seeds = {micro_seed(1, number, part) for number in range(5) for part in range(5)}
    assert len(seeds) == 25 and micro_seed(1, 2, 3) == micro_seed(1, 2, 3)
