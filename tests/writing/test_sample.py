"""抽样函数：对照 transformers 的 LogitsProcessor（装了才跑）与手算的小例子。"""

from __future__ import annotations

import pytest
import torch

from writing import sample


def distribution(logits, **options):
    """candidates 的结果摊回整个词表 (B, V)。"""
    probs, ids = sample.candidates(logits, **options)
    return torch.zeros_like(logits).scatter_(1, ids, probs)


def reference(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    hf = pytest.importorskip("transformers", reason="没有安装 transformers，没有对照")
    steps = [hf.TemperatureLogitsWarper(temperature)]
    if top_k:
        steps.append(hf.TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(hf.TopPLogitsWarper(top_p))
    if min_p:
        steps.append(hf.MinPLogitsWarper(min_p))
    for step in steps:
        logits = step(None, logits)
    return logits.softmax(-1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.7, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 0.3, "top_k": 200},
        {"top_p": 1e-6},
    ],
)
def test_matches_transformers(options):
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)) * 3
    assert torch.allclose(distribution(logits, **options), reference(logits, **options), atol=1e-6)


def test_rows_may_differ():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2)) * 2
    rows = [
        {"temperature": 0.5, "top_k": 3, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 1.0, "top_k": 0, "top_p": 0.7, "min_p": 0.0},
        {"temperature": 0.0, "top_k": 9, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.2},
    ]
    together = distribution(
        logits, **{key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
    )
    for index, row in enumerate(rows):
        alone = distribution(logits[index : index + 1], **row)
        assert torch.allclose(together[index : index + 1], alone, atol=1e-7)


def test_zero_temperature_is_argmax():
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    uniform = torch.full((6,), 0.999)
    assert torch.equal(sample.pick(logits, uniform, temperature=0.0), logits.argmax(-1))


@pytest.mark.parametrize("penalty", [1.4, 0.8])
def test_repetition_penalty(penalty):
    hf = pytest.importorskip("transformers", reason="没有安装 transformers，没有对照")
    logits = torch.randn(2, 20, generator=torch.Generator().manual_seed(4))
    seen = torch.tensor([[1, 5, 5, 7], [0, 2, 3, 19]])
    expected = hf.RepetitionPenaltyLogitsProcessor(penalty)(seen, logits.clone())
    assert torch.allclose(sample.penalize_repeats(logits.clone(), seen, penalty), expected)


def test_repetition_penalty_padding_changes_nothing():
    logits = torch.tensor([[1.0, -2.0, 3.0]])
    factor = torch.tensor([[2.0, 1.0, 1.0]])
    seen = torch.tensor([[1, 0, 0]])
    assert sample.penalize_repeats(logits, seen, factor).tolist() == [[1.0, -4.0, 3.0]]


def test_additive_penalties_come_after_the_multiplied():
    logits, seen = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[1, 2, 0]])
    minus = torch.tensor([[0.5, -1.0, 0.0]])
    found = sample.penalize_repeats(logits, seen, torch.tensor([[2.0, 2.0, 1.0]]), minus)
    assert found.tolist() == [[1.0, -4.5, 2.5]]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("ids", [[1, 2, 3, 1, 2, 4, 1, 2], [5, 5, 5], [1], []])
def test_no_repeat_ngram(size, ids):
    hf = pytest.importorskip("transformers", reason="没有安装 transformers，没有对照")
    logits = torch.zeros(1, 10)
    expected = set()
    if ids:
        history = torch.tensor([ids])
        scores = hf.NoRepeatNGramLogitsProcessor(size)(history, logits)
        expected = set(torch.nonzero(scores[0] == -torch.inf).flatten().tolist())
    assert sample.repeated_ngrams(ids, size) == expected


def test_ban_and_allow_only():
    logits = torch.arange(5.0)
    assert sample.ban(logits.clone(), [4, 0]).argmax() == 3
    kept = sample.allow_only(logits, torch.tensor([1, 2]))
    assert kept.tolist() == [-torch.inf, 1.0, 2.0, -torch.inf, -torch.inf]


def test_draw_follows_the_probabilities():
    probs, ids = torch.tensor([[0.5, 0.3, 0.2, 0.0]]), torch.tensor([[7, 3, 9, 1]])
    grid = (torch.arange(1000) + 0.5) / 1000
    drawn = sample.draw(probs.expand(1000, -1), ids.expand(1000, -1), grid)
    assert [int((drawn == token).sum()) for token in (7, 3, 9, 1)] == [500, 300, 200, 0]
    assert sample.draw(probs, ids, torch.tensor([1.0 - 2**-24])).item() == 9


def test_uniforms_depend_on_the_seed_only():
    first, again, other = sample.Uniforms(7), sample.Uniforms(7), sample.Uniforms(8)
    numbers = [first.next() for _ in range(150)]
    assert numbers == [again.next() for _ in range(150)]
    assert numbers != [other.next() for _ in range(150)]
    assert all(0 <= number < 1 for number in numbers) and len(set(numbers)) > 140


def test_log_probability():
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(5))
    tokens = torch.tensor([0, 4, 10])
    expected = logits.log_softmax(-1)[torch.arange(3), tokens]
    assert torch.allclose(sample.log_probability(logits, tokens), expected, atol=1e-6)


# ── 标点照原来的概率 ──────────────────────────────────────────────────


def steady(logits, raw, marks, **options):
    """steady_pick 给各 token 的概率：用一排均匀的数去抽，数各出现几次。"""
    count, marks = 20000, torch.tensor(marks)
    uniform = (torch.arange(count) + 0.5) / count
    rows = []
    for index in range(len(logits)):
        one = {
            key: [value[index]] * count if isinstance(value, list) else value
            for key, value in options.items()
        }
        chances = sample.mark_chances(raw[index : index + 1], marks).expand(count, -1)
        many = logits[index : index + 1].repeat(count, 1)
        drawn = sample.steady_pick(many, chances, marks, uniform, **one)
        rows.append(torch.bincount(drawn, minlength=logits.size(1)) / count)
    return torch.stack(rows)


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"top_k": 3}, {"min_p": 0.2}, {}])
def test_marks_keep_their_share(options):
    raw = torch.randn(3, 20, generator=torch.Generator().manual_seed(6)) * 2
    marks, logits = [0, 7, 19], raw.clone()
    logits[:, 3] -= 5  # 惩罚过的字
    found, plain = steady(logits, raw, marks, **options), raw.softmax(-1)
    assert torch.allclose(found[:, marks], plain[:, marks], atol=1e-4)
    words = logits.index_fill(1, torch.tensor(marks), -torch.inf)
    expected = distribution(words, **options) * (1 - plain[:, marks].sum(1, keepdim=True))
    others = [token for token in range(20) if token not in marks]
    assert torch.allclose(found[:, others], expected[:, others], atol=1e-4)


def test_banned_marks_give_their_share_to_words():
    raw = torch.tensor([[1.0, 2.0, 0.5, 0.0, 1.5]])
    logits = raw.clone()
    logits[0, [0, 3]] = -torch.inf  # 一个标点、一个字
    mark = float(raw.softmax(-1)[0, 1])
    words = torch.tensor([0.5, 1.5]).softmax(-1) * (1 - mark)
    expected = torch.tensor([0, mark, words[0], 0, words[1]])
    assert torch.allclose(steady(logits, raw, [0, 1])[0], expected, atol=1e-4)
    for only in (1, 4):  # 只许一个：标点或字
        logits = torch.full_like(raw, -torch.inf)
        logits[0, only] = 0.0
        assert steady(logits, raw, [0, 1], temperature=0.7)[0, only] == 1


def test_steady_rows_may_differ():
    raw = torch.randn(3, 30, generator=torch.Generator().manual_seed(7)) * 2
    rows = [{"min_p": 0.1}, {"temperature": 0.5, "top_k": 4}, {"top_p": 0.7, "min_p": 0.01}]
    usual = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    together = steady(raw, raw, [1, 2], **{k: [{**usual, **r}[k] for r in rows] for k in usual})
    for index, row in enumerate(rows):
        alone = steady(raw[index : index + 1], raw[index : index + 1], [1, 2], **row)
        assert torch.allclose(together[index : index + 1], alone, atol=1e-4)


def test_steady_pick_at_the_edges():
    raw = torch.tensor([[0.0, 1.0, 2.0, 0.5]])
    logits = torch.tensor([[0.0, -torch.inf, 2.0, -torch.inf]])
    for value in (0.0, 0.99999999):
        chances = sample.mark_chances(raw, torch.tensor([0, 3]))
        drawn = sample.steady_pick(
            logits.clone(), chances, torch.tensor([0, 3]), torch.tensor([value])
        )
        assert int(drawn) == (0 if value == 0 else 2)
