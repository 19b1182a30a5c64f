"""由浅到深：没有加入的块一动不动，跳过它结果不变；加入以后谁也不再停下。"""

from __future__ import annotations

import pytest
import torch

from gpt import GPT, GPTConfig
from tests.small_run import quick, stop_before, values, weights, work_dir
from training import growth, loop, prepare, validation
from training.distributed import Ranks
from training.schedule import ByUpdates

DEEP = {"GPT_BLOCKS": 4, "GROW_AT": 0.5}  # 12 次更新，第 7 次起练全部


@pytest.fixture(autouse=True, scope="module")
def quick_start():
    with quick(poem="诗"):
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, data):
    folder = work_dir(tmp_path_factory.mktemp("runs") / "unbroken", data)
    loop.train(values(folder, **DEEP))
    return folder


def of_blocks(found, *numbers):
    """这几块的全部权重，拼成一行。"""
    chosen = [w for n, w in found.items() if n.startswith(tuple(f"blocks.{k}." for k in numbers))]
    return torch.cat([weight.flatten() for weight in chosen])


def test_a_block_that_learnt_nothing_may_be_left_out():
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=50, max_seq_len=32, dim=16, n_head=2, ff=32, n_block=4)).eval()
    ids = torch.randint(50, (2, 9))
    for block in model.blocks[:2]:
        torch.nn.init.normal_(block.attn.out.weight, std=0.3)
    whole, flops = model(ids), model.flops_per_token()
    model.configure(blocks=2)
    assert torch.equal(model(ids), whole) and model.flops_per_token() < flops


def test_deeper_blocks_wait_and_then_learn(tmp_path, data, unbroken, capsys):
    folder = work_dir(tmp_path / "run", data)
    new = prepare.open_run(values(folder, **DEEP), Ranks()).model.state_dict()
    halted = work_dir(tmp_path / "halted", data)
    loop.train(values(halted, **{**DEEP, "TRAIN_ITER": 18, "GROW_AT": 0.95}))
    early, late = weights(halted), weights(unbroken)
    assert torch.equal(of_blocks(early, 2, 3), of_blocks(new, 2, 3))
    assert not torch.equal(of_blocks(early, 0, 1), of_blocks(new, 0, 1))
    for number in range(4):
        assert late[f"blocks.{number}.mlp.down.weight"].abs().max() > 0


def test_joining_is_told_once(tmp_path, data, capsys):
    loop.train(values(work_dir(tmp_path / "run", data), **DEEP))
    assert capsys.readouterr().out.count("其余 2 块加入训练") == 1
    loop.train(values(work_dir(tmp_path / "whole", data), GPT_BLOCKS=4, GROW_AT=0.0))
    assert "加入训练" not in capsys.readouterr().out


@pytest.mark.parametrize("stop", [3, 9])
def test_interrupted_before_or_after_joining_is_the_same_run(
    tmp_path, data, unbroken, monkeypatch, stop
):
    folder = work_dir(tmp_path / "run", data)
    stop_before(monkeypatch, stop)
    assert loop.train(values(folder, **DEEP))["updates"] == stop
    loop.train(values(folder, **DEEP))
    for name, weight in weights(unbroken).items():
        assert torch.equal(weights(folder)[name], weight)


def test_a_longer_run_does_not_stop_blocks_that_have_learnt(tmp_path, data):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, **DEEP))
    run = prepare.open_run(values(folder, **DEEP, TRAIN_ITER=350), Ranks())
    assert ByUpdates(run.settings).share(run.position) < DEEP["GROW_AT"]
    assert run.model.execution.blocks is None


def test_auto_is_for_few_passes_and_says_so(tmp_path, data):
    few, many = (
        prepare.open_run(
            values(work_dir(tmp_path / str(n), data), GPT_BLOCKS=4, GROW_AT="auto", TRAIN_ITER=n),
            Ranks(),
        )
        for n in (3, 3000)
    )
    assert few.model.execution.blocks == growth.FIRST and "由浅到深" in few.remarks[-1]
    assert many.model.execution.blocks is None and many.settings.grow_at == 0.0


def test_the_time_left_counts_the_validations(tmp_path, data):
    folder = work_dir(tmp_path / "run", data)

    def left(update=0, **changes):
        run = prepare.open_run(values(folder, TRAIN_ITER=12, ACCUM_STEPS=1, **changes), Ranks())
        run.position.update = update
        return validation.left(run)

    once = left(EVAL_EVERY=12)
    assert once > 0
    assert left(EVAL_EVERY=4) == pytest.approx(3 * once)
    assert left(EVAL_EVERY=5) == pytest.approx(3 * once)  # 第 5、10、12 次
    assert left(EVAL_EVERY=4, update=8) == pytest.approx(once)
    assert left(EVAL_EVERY=4, update=12) == 0


def test_the_time_left_counts_the_heavier_updates(tmp_path, data):
    run = prepare.open_run(values(work_dir(tmp_path / "run", data), **DEEP), Ranks())
    assert growth.left(run) > run.settings.updates
    growth.reach(run, 0.5)
    assert growth.left(run) == run.settings.updates


def test_shallow_models_and_zero_train_whole(tmp_path, data):
    for changes in (
        {"GPT_BLOCKS": growth.FIRST, "GROW_AT": 0.5},
        {"GPT_BLOCKS": 4, "GROW_AT": 0.0},
    ):
        folder = work_dir(tmp_path / str(changes["GPT_BLOCKS"]), data)
        run = prepare.open_run(values(folder, **changes), Ranks())
        assert run.model.execution.blocks is None
