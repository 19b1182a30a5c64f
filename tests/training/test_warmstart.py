"""由相邻词统计算出的词嵌入：起点就懂相邻词，结果与线程数无关。"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpt import GPT, GPTConfig
from training import warmstart

VOCAB, DIM = 60, 16


@pytest.fixture(scope="module")
def stream():
    """(tokens, mask)：每个词后面多半是固定的两个词之一。"""
    rng = np.random.default_rng(0)
    follow = rng.integers(3, VOCAB, (VOCAB, 2))
    tokens = [3]
    for _ in range(20000):
        token = follow[tokens[-1], rng.integers(2)]
        tokens.append(int(token if rng.random() < 0.8 else rng.integers(3, VOCAB)))
    return np.array(tokens, dtype=np.uint16), np.ones(len(tokens), dtype=np.uint8)


def next_token_loss(model, tokens):
    """不经训练的模型预测下一个词的损失（nat）。"""
    ids = torch.from_numpy(tokens[:2001].astype(np.int64))[None]
    with torch.no_grad():
        logits = model(ids[:, :-1])[0]
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))


def unigram_loss(tokens):
    p = np.bincount(tokens, minlength=VOCAB) / len(tokens)
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def warm_model(stream):
    model = GPT(GPTConfig(VOCAB, 4096, DIM, 2, 32, 2))
    table, weight = warmstart.embedding(*stream, VOCAB, DIM, seed=1)
    model.embed.weight.data.copy_(table)
    model.norm.weight.data.copy_(weight)
    return model.eval()


def test_untrained_model_already_beats_the_unigram(stream):
    cold = GPT(GPTConfig(VOCAB, 4096, DIM, 2, 32, 2)).eval()
    warm = next_token_loss(warm_model(stream), stream[0])
    assert warm < unigram_loss(stream[0]) - 0.15
    assert warm < next_token_loss(cold, stream[0]) - 0.2


def test_same_whatever_the_number_of_threads(stream):
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(warmstart.embedding(*stream, VOCAB, DIM, seed=1))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_eigenvectors_against_the_dense_decomposition(stream):
    before, after = warmstart._pairs(*stream)
    matrix = warmstart._mutual_information(before, after, VOCAB)
    exact = torch.linalg.eigvalsh(matrix.to_dense())
    exact = exact[exact.abs().argsort(descending=True)][:10]
    values, vectors = warmstart._eigen(matrix, 30, torch.Generator().manual_seed(0))
    values, vectors = values[:10], vectors[:, :10]
    torch.testing.assert_close(values, exact)
    torch.testing.assert_close(matrix @ vectors, vectors * values, atol=1e-6, rtol=1e-6)


def test_mutual_information_by_hand():
    before, after = np.array([0, 0, 1, 2]), np.array([1, 1, 2, 0])
    found = warmstart._mutual_information(before, after, 3).to_dense()
    right = np.array([1, 2, 1]) ** warmstart.SMOOTHING
    right = right / right.sum()
    pmi = {(0, 1): 2 / 2 / right[1], (1, 2): 1 / right[2], (2, 0): 1 / right[0]}
    for (row, column), ratio in pmi.items():
        assert found[row, column] == found[column, row] == pytest.approx(np.log(ratio) / 2)


def test_words_never_seen_are_finite_and_unlikely(stream):
    table, weight = warmstart.embedding(*stream, VOCAB + 40, DIM, seed=1)
    assert bool(torch.isfinite(table).all()) and bool(torch.isfinite(weight).all())
    model = GPT(GPTConfig(VOCAB + 40, 64, DIM, 2, 32, 1)).eval()
    model.embed.weight.data.copy_(table)
    model.norm.weight.data.copy_(weight)
    with torch.no_grad():
        p = model(torch.arange(3, VOCAB)[None])[0].softmax(-1)
    assert float(p[:, VOCAB:].sum(-1).mean()) < 0.2


def test_nothing_to_count_gives_nothing(stream):
    tokens, mask = stream
    assert warmstart.embedding(tokens, np.zeros_like(mask), VOCAB, DIM, seed=1) == (None, None)
    assert warmstart.embedding(tokens[:1], mask[:1], VOCAB, DIM, seed=1) == (None, None)


def test_dimension_larger_than_the_vocabulary(stream):
    table, weight = warmstart.embedding(*stream, VOCAB, 128, seed=1)
    assert table.shape == (VOCAB, 128) and weight.shape == (128,)
    assert bool(torch.isfinite(table).all())


@pytest.mark.parametrize("most", [1 << 24, 3000])
def test_same_however_long_the_pieces_read_at_once(stream, monkeypatch, most):
    """诗多时一段一段地读、均匀地取：怎样分段都一样。"""
    tokens, mask = stream
    mask = mask.copy()
    mask[::7] = 0
    monkeypatch.setattr(warmstart, "MOST_PAIRS", most)
    whole = warmstart.embedding(tokens, mask, VOCAB, DIM, seed=1)
    monkeypatch.setattr(warmstart, "_CHUNK", 997)
    pieces = warmstart.embedding(tokens, mask, VOCAB, DIM, seed=1)
    assert all(torch.equal(one, two) for one, two in zip(whole, pieces))
