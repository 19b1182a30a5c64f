"""抽样的 softmax：抽的是该抽的，估计没有偏，续训是同一次训练，小词表照常算全部。"""

from __future__ import annotations

import numpy as np
import pytest

from tests.small_run import quick, same_when_interrupted, values, work_dir
from training import loop, prepare, sampled
from training.distributed import Ranks
from training.sampled import Sampler

SAMPLED = {"SAMPLED_SOFTMAX": 30}


@pytest.fixture(autouse=True, scope="module")
def quick_start():
    with quick(poem="诗"):
        yield


def zipf(size: int) -> np.ndarray:
    """第 n 个词出现的次数，越往后越少。"""
    return 10000 // np.arange(1, size + 1)


def test_common_words_and_the_words_asked_for_are_always_there():
    sampler = Sampler(zipf(1000)[::-1], 40)  # 最常用的 60 个是编号最大的
    labels = np.array([3, 999, 3, 500])
    drawn = sampler.draw(labels, seed=1)
    assert set(range(940, 1000)) | set(labels) <= set(drawn.rows)
    assert np.array_equal(drawn.rows[drawn.labels], labels)
    assert len(set(drawn.rows)) == len(drawn.rows) == sampler.words and sampler.words >= 102
    assert np.count_nonzero(drawn.bias) == len(drawn.rows) - 62


def test_the_seed_says_who_is_drawn():
    sampler, labels = Sampler(zipf(1000), 40), np.arange(5)
    one, same, other = (set(sampler.draw(labels, seed).rows) for seed in (1, 1, 2))
    assert one == same != other


def test_the_sum_over_the_vocabulary_is_estimated_without_bias():
    logits = np.random.default_rng(0).normal(size=1000)
    sampler = Sampler(zipf(1000), 100)
    sums = []
    for seed in range(300):
        _, rows, bias = sampler.draw(np.array([700]), seed)
        sums.append(np.exp(logits[rows] + bias).sum())
    exact, error = np.exp(logits).sum(), np.std(sums) / 300**0.5
    assert abs(np.mean(sums) - exact) < 3 * error < 0.02 * exact


def test_a_small_vocabulary_is_computed_whole():
    sampler = Sampler(zipf(300), 100)
    assert sampler.draw(np.arange(10), seed=1) is None and sampler.words == 300


def test_words_are_counted():
    ids = np.array([1, 1, 4, 1], dtype=np.uint16)
    assert sampled.frequencies(ids, 6).tolist() == [0, 3, 0, 0, 1, 0]


def test_training_with_it_learns_as_much(tmp_path, data):
    def learnt(name, **changes):
        run = prepare.open_run(values(work_dir(tmp_path / name, data), **changes), Ranks())
        result = loop.train(values(tmp_path / name, INIT="data", TRAIN_ITER=120, **changes))
        return run, result["val_bpc"]

    _, whole = learnt("whole", SAMPLED_SOFTMAX=0)
    run, ours = learnt("ours", **SAMPLED)
    drawn = run.gradients.sampler.draw(run.corpus.batch(0).parts(1)[0][2], seed=1)
    assert drawn is not None and ours == pytest.approx(whole, abs=0.15)


def test_it_is_told_when_it_is_used(tmp_path, data):
    def remarks(draws):
        folder = work_dir(tmp_path / str(draws), data)
        run = prepare.open_run(values(folder, SAMPLED_SOFTMAX=draws), Ranks())
        return [line for line in run.remarks if "SAMPLED_SOFTMAX" in line]

    assert len(remarks(30)) == 1
    assert remarks(0) == remarks(2000) == []


def test_fewer_operations_are_counted(tmp_path, data):
    run = prepare.open_run(values(work_dir(tmp_path / "run", data), **SAMPLED), Ranks())
    before = run.gradients.flops_per_token()
    run.gradients.backward(run.corpus.batch(0).parts(1)[0], 1.0, seed=1)
    words, size = run.gradients.sampler.words, run.model.config.vocab_size
    saved = 6 * run.model.config.dim * (size - words)
    assert before == run.model.flops_per_token() == run.gradients.flops_per_token() + saved


def test_an_interrupted_run_is_the_same_run(tmp_path, data, monkeypatch):
    assert same_when_interrupted(monkeypatch, tmp_path, data, **SAMPLED)
