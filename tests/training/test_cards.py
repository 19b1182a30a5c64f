"""换卡、换编译器、显存不足：训练不因此死掉，也不留着更差的选择。都在 CPU 上演。"""

from __future__ import annotations

import types

import pytest
import torch

import checkpoint
from gpt import GPT
from support import cuda, hardware
from support.console import UserError
from tests.small_run import quick, stop_before, values, work_dir
from training import loop, optim, prepare, resume, samples, validation
from training.distributed import LostPeer, Ranks, Told
from training.machine import Machine

CARD = torch.device("cuda", 0)


@pytest.fixture(autouse=True, scope="module")
def quick_start():
    with quick("诗"):
        yield


@pytest.fixture
def compiler(monkeypatch):
    """有编译器；“编译”什么也不变，只记下有没有用。"""
    used = []
    real = GPT.configure

    def configure(self, **changes):
        if "compiled" in changes:
            used.append(changes.pop("compiled"))
        real(self, **changes)

    monkeypatch.setattr(GPT, "configure", configure)
    monkeypatch.setattr(hardware, "compiler_problem", lambda device: None)
    return used


def forward_fails(monkeypatch, when, text="CUDA out of memory. Tried to allocate 2.00 GiB"):
    real, calls = GPT.forward, []

    def forward(self, ids, where=None, labels=None, *rest):
        if labels is not None:
            calls.append(len(ids))
            if when(calls):
                raise RuntimeError(text)
        return real(self, ids, where, labels, *rest)

    monkeypatch.setattr(GPT, "forward", forward)


def a_card(monkeypatch, capability=(8, 6), name="RTX 3060"):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: name)
    monkeypatch.setattr(cuda, "kernel_problem", lambda index: None)


# ── C1、C2：编译 ──────────────────────────────────────────────────────


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_c1_out_of_memory_in_the_compile_trial_splits_like_everywhere(
    tmp_path, data, monkeypatch, compiler, capsys, choice
):
    folder = work_dir(tmp_path / "run", data)
    forward_fails(monkeypatch, lambda calls: calls[-1] > 2)
    monkeypatch.setattr(loop.ByUpdates, "is_long", lambda *_: True)
    result = loop.train(values(folder, TRAIN_ITER=9, COMPILE=choice))
    assert result["updates"] == 3 and compiler == [True]
    assert "梯度不变" in capsys.readouterr().out


def test_c1_a_failed_compilation_with_on_is_told(tmp_path, data, monkeypatch, compiler):
    folder = work_dir(tmp_path / "run", data)
    forward_fails(monkeypatch, lambda calls: True, "ptxas not found\nmore")
    with pytest.raises(UserError, match=r"编译失败：RuntimeError，ptxas not found\n.*COMPILE=auto"):
        loop.train(values(folder, COMPILE="on"))


def test_c2_a_compiled_run_goes_on_where_there_is_no_compiler(
    tmp_path, data, monkeypatch, compiler
):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, TRAIN_ITER=6, COMPILE="on"))
    assert checkpoint.load(folder / "checkpoint.bin")["chosen"]["COMPILE"] == "on"
    monkeypatch.setattr(hardware, "compiler_problem", lambda device: "没有 Triton")
    result = loop.train(values(folder, TRAIN_ITER=12, COMPILE="auto"))
    assert result["updates"] == 4


class BackendError(RuntimeError):
    """编译器抛出的。"""

    __module__ = "torch._inductor.exc"


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_a_recompilation_that_fails_falls_back(
    tmp_path, data, monkeypatch, compiler, capsys, choice
):
    """编译过的，后来换了形状再编译时出错：auto 退回，这次更新重做。"""
    folder = work_dir(tmp_path / "run", data)
    real, calls = GPT.forward, []

    def forward(self, ids, where=None, labels=None, *rest):
        calls.append(1)
        if len(calls) == 6:
            raise BackendError("ptxas died")
        return real(self, ids, where, labels, *rest)

    monkeypatch.setattr(GPT, "forward", forward)
    monkeypatch.setattr(loop.ByUpdates, "is_long", lambda *_: True)
    chosen = values(folder, TRAIN_ITER=9, COMPILE=choice)
    if choice == "on":
        with pytest.raises(BackendError):
            loop.train(chosen)
        return
    assert loop.train(chosen)["updates"] == 3 and compiler == [True, False]
    assert "从这里起不编译" in capsys.readouterr().out


# ── C3、W5：汇总梯度 ──────────────────────────────────────────────────


def test_c3_w5_gradients_are_summed_by_one_call_that_waits(monkeypatch):
    """同步的 all_reduce：对方死了会报错，时间也算在“汇总梯度”上。"""
    called = []
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda flat, async_op=False: called.append(async_op)
    )
    ranks = Ranks(0, 2)
    ranks.sum_gradients(torch.zeros(8))
    assert called == [False] and ranks.seconds["reduce"] > 0


def test_c3_a_peer_lost_in_the_sum_is_told(monkeypatch):
    def lost(flat, async_op=False):
        raise RuntimeError("[gloo] Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_reduce", lost)
    ranks = Ranks(0, 2)
    ranks.store = types.SimpleNamespace(set=lambda *_: None)
    with pytest.raises(LostPeer, match="失去联系"):
        ranks.sum_gradients(torch.zeros(8))


def test_nccl_out_of_memory_is_not_a_lost_peer(monkeypatch):
    def short(flat, async_op=False):
        raise RuntimeError("NCCL error: Failed to CUDA calloc async 608 bytes")

    monkeypatch.setattr(torch.distributed, "all_reduce", short)
    with pytest.raises(RuntimeError, match="calloc"):
        Ranks(0, 2).sum_gradients(torch.zeros(8))


# ── C6、W9：几个进程 ──────────────────────────────────────────────────


class Peers(Ranks):
    """假装有两个进程：另一个说的是 others。"""

    def __init__(self, other):
        super().__init__(0, 2)
        self.other = other

    def all_gather(self, value):
        return [value, self.other]

    def sum(self, numbers):
        return [float(mine) + other for mine, other in zip(numbers, self.other)]


def test_c6_two_ranks_on_one_card_are_refused(monkeypatch):
    monkeypatch.setattr(cuda, "card_id", lambda device: "here/GPU-1")
    machine = Machine(CARD, torch.bfloat16)
    prepare.refuse_shared_cards(machine, Peers("here/GPU-2"))
    prepare.refuse_shared_cards(Machine(torch.device("cpu"), torch.float32), Peers(None))
    with pytest.raises((UserError, Told), match="同一张显卡"):
        prepare.refuse_shared_cards(machine, Peers("here/GPU-1"))


def test_w9_a_rank_that_does_not_compile_is_named(capsys):
    said = []
    run = types.SimpleNamespace(
        ranks=Peers([0.0]), voice=types.SimpleNamespace(say=said.append), machine=None
    )
    run.machine = types.SimpleNamespace(compiled=True)
    prepare.tell_uneven_compiling(run)
    assert "只有 1 个能编译" in said[0]
    run.machine.compiled = False
    prepare.tell_uneven_compiling(run)
    assert len(said) == 1


# ── W1：auto 不留着更差的选择 ─────────────────────────────────────────


def chosen_again(given, chosen):
    config = {"DEVICE": "auto", "DTYPE": "auto", "COMPILE": "auto", **given}
    base = values("anywhere", **config)
    picked = resume.reuse_choices(base, chosen)
    return picked.device, picked.dtype, picked.compile


def test_w1_a_card_that_is_there_now_is_taken(monkeypatch):
    a_card(monkeypatch)
    old = {"DEVICE": "cpu", "DTYPE": "fp32", "COMPILE": "off"}
    assert chosen_again({}, old) == ("auto", "auto", "auto")


def test_w1_bf16_is_not_taken_to_a_card_without_it(monkeypatch):
    old = {"DEVICE": "cuda", "DTYPE": "bf16", "COMPILE": "on"}
    a_card(monkeypatch, (7, 5), "Tesla T4")
    assert chosen_again({}, old)[1] == "auto"
    a_card(monkeypatch)
    assert chosen_again({}, old)[1] == "bf16"


def test_w1_the_precision_stays_on_the_same_kind_of_device():
    old = {"DEVICE": "cpu", "DTYPE": "bf16", "COMPILE": "off"}
    assert chosen_again({"DEVICE": "cpu"}, old)[1] == "bf16"
    assert chosen_again({"DEVICE": "cpu", "DTYPE": "fp32"}, old)[1] == "fp32"


def test_w1_another_choice_is_named(tmp_path, data, capsys):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, TRAIN_ITER=3))
    path = folder / "checkpoint.bin"
    state = checkpoint.load(path)
    state["chosen"] = {**state["chosen"], "DEVICE": "cuda"}
    checkpoint.save(path, state)
    loop.train(values(folder, TRAIN_ITER=6, DEVICE="auto"))
    assert "DEVICE：cuda → cpu（auto）" in capsys.readouterr().out


# ── W3、W4、W7 ────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("capability", "dtype", "muon"),
    [
        ((8, 6), torch.bfloat16, torch.bfloat16),
        ((8, 6), torch.float16, torch.bfloat16),
        ((7, 5), torch.float16, torch.float32),
        ((8, 6), torch.float32, torch.float32),
    ],
)
def test_w3_muon_never_in_an_emulated_precision(monkeypatch, capability, dtype, muon):
    a_card(monkeypatch, capability)
    machine = Machine(CARD, dtype)
    assert machine.muon_dtype == muon
    assert machine.warning is None
    emulated = Machine(CARD, torch.bfloat16)
    assert (emulated.warning is None) == (capability == (8, 6))


def test_w4_a_device_error_is_not_a_full_disk(tmp_path, data, monkeypatch):
    def broken(value):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    state = {"weights": {"a": torch.ones(2)}}
    path = tmp_path / "checkpoint.bin"
    monkeypatch.setattr(checkpoint, "on_host", broken)
    with pytest.raises(RuntimeError, match="illegal memory"):
        checkpoint.save(path, state)
    monkeypatch.setattr(checkpoint, "on_host", lambda value: value)
    full = RuntimeError("[enforce fail at inline_container.cc:858] . unexpected pos 64 vs 0")
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match="写不下"):
        checkpoint.save(path, state)
    assert not path.exists()


def test_w4_the_file_needs_no_card_to_be_read():
    state = {"weights": {"a": torch.ones(2)}, "optimizer": [{"b": torch.zeros(1)}], "n": 3}
    moved = checkpoint.on_host(state)
    assert moved["optimizer"][0]["b"].device.type == "cpu" and moved["n"] == 3
    assert moved["weights"]["a"].data_ptr() == state["weights"]["a"].data_ptr()


def test_w7_the_split_is_part_of_the_position(tmp_path, data, monkeypatch):
    """显存不足分过份的训练，续训时照样分：dropout 相同，也不再失败一次。"""
    whole, broken = work_dir(tmp_path / "whole", data), work_dir(tmp_path / "broken", data)
    forward_fails(monkeypatch, lambda calls: len(calls) == 1)
    loop.train(values(whole, TRAIN_ITER=12, SAVE_EVERY=6, DROPOUT=0.2))
    forward_fails(monkeypatch, lambda calls: len(calls) == 1)
    stop_before(monkeypatch, 2)
    loop.train(values(broken, TRAIN_ITER=12, SAVE_EVERY=6, DROPOUT=0.2))
    assert checkpoint.load(broken / "checkpoint.bin")["split"] == 2
    monkeypatch.undo()
    loop.train(values(broken, TRAIN_ITER=12, SAVE_EVERY=6, DROPOUT=0.2))
    one, other = (checkpoint.load(f / "checkpoint.bin")["weights"] for f in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_w7_ranks_split_by_the_longest_share_not_by_the_sum():
    ranks = Peers([0.0, 6.0])
    assert ranks.largest(4) == 6.0


# ── 显存不足：一步、示例诗、验证 ──────────────────────────────────────


def short_of_memory(*_, **__):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_out_of_memory_in_the_step_is_told(tmp_path, data, monkeypatch):
    folder = work_dir(tmp_path / "run", data)
    monkeypatch.setattr(optim.Optimizers, "step", short_of_memory)
    with pytest.raises(UserError, match="优化器的一步却放不下"):
        loop.train(values(folder))


def test_out_of_memory_in_a_sample_costs_the_sample(tmp_path, data, monkeypatch, capsys):
    folder = work_dir(tmp_path / "run", data)
    monkeypatch.setattr(samples, "poem", short_of_memory)
    assert loop.train(values(folder, TRAIN_ITER=6))["updates"] == 2
    assert "跳过这一首" in capsys.readouterr().out and (folder / "checkpoint.bin").exists()


def test_out_of_memory_in_validation_takes_smaller_batches(tmp_path, data, monkeypatch):
    folder = work_dir(tmp_path / "run", data)
    real, budgets = validation.document_nats, []

    def document_nats(model, documents, *, budget, **options):
        budgets.append(budget)
        if budget > 64:
            short_of_memory()
        return real(model, documents, budget=budget, **options)

    monkeypatch.setattr(validation, "document_nats", document_nats)
    assert loop.train(values(folder, TRAIN_ITER=3))["updates"] == 1
    assert budgets == [256, 128, 64]


def test_fp16_overflows_are_not_news(tmp_path, data, monkeypatch, capsys):
    """fp16 的放大倍数总要溢出几次才降到合适：一两次不必说。"""
    run = types.SimpleNamespace(
        position=types.SimpleNamespace(bad=2),
        stepper=types.SimpleNamespace(scale=types.SimpleNamespace(enabled=True)),
        settings=types.SimpleNamespace(max_bad_steps=20),
        voice=types.SimpleNamespace(say=print),
    )
    loop.complain(run)
    assert capsys.readouterr().out == ""
    run.position.bad = 3
    loop.complain(run)
    run.stepper.scale.enabled, run.position.bad = False, 1
    loop.complain(run)
    assert capsys.readouterr().out.count("已跳过") == 2


def test_memory_that_cannot_be_pinned_is_moved_as_usual(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", short_of_memory)
    card = types.SimpleNamespace(device=CARD)
    assert Machine.hold(card, torch.arange(3).numpy()).tolist() == [0, 1, 2]
