"""研究：小样三份互不相交，做完的不重做，表里的差只看共同的种子，每种做法真的起作用。"""

from __future__ import annotations

import copy
import functools
import math
import shutil

import pytest
import torch

import config
import dataset
from support import artefacts, files
from support.console import UserError
from tests.small_run import ROOT
from training import prepare, proxy, study, verdict
from training.distributed import Ranks
from training.study import Recipe
from training.teacher import Teacher
from training.trials import Average

SHAPE = {
    "GPT_DIM": 16,
    "GPT_HEAD": 2,
    "GPT_FF": 32,
    "GPT_BLOCKS": 1,
    "MAX_SEQ_LEN": 64,
    "BATCH_SIZE": 8,
    "ACCUM_STEPS": 1,
}
SIZE = proxy.Size(poems=40, aside=8, passes=2, vocab=320, shape=SHAPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    shutil.copy(ROOT / "sample_poems.json", folder / artefacts.POEMS)
    return folder


@pytest.fixture(scope="module")
def small(folder):
    return proxy.prepare(str(folder), "tiny", SIZE)


def values(**changes):
    return {**config.values(), "DEVICE": "cpu", "DTYPE": "fp32", "COMPILE": "off", **changes}


def titles(poems):
    return {(poem["title"], tuple(poem["para"])) for poem in poems}


def test_poems_kept_for_judging_are_seen_by_nobody(small):
    kept = titles(files.read_json(small.folder / artefacts.POEMS))
    judged = titles(files.read_json(small.folder / artefacts.JUDGE_POEMS))
    assert (len(kept), len(judged)) == (48, 8) and not kept & judged
    with dataset.load(small.folder / artefacts.DATASET) as data:
        assert not data.val_is_train and len(data) - len(data.lengths("train")) >= 1


def test_the_small_corpus_is_made_once_and_again_for_other_poems(folder, small, tmp_path):
    before = small.judge.stat().st_mtime_ns
    assert proxy.prepare(str(folder), "tiny", SIZE) == small
    assert small.judge.stat().st_mtime_ns == before
    poems = files.read_json(folder / artefacts.POEMS)[:200]
    files.write_json(tmp_path / artefacts.POEMS, poems)
    assert proxy.prepare(str(tmp_path), "tiny", SIZE).folder.name != small.folder.name


def test_few_poems_are_taken_in_proportion(tmp_path):
    poems = files.read_json(ROOT / "sample_poems.json")
    files.write_json(tmp_path / artefacts.POEMS, poems[:45])
    made = proxy.prepare(str(tmp_path), "tiny", SIZE._replace(poems=70, aside=10))
    assert len(files.read_json(made.folder / artefacts.JUDGE_POEMS)) == 5
    files.write_json(tmp_path / artefacts.POEMS, poems[:20])
    with pytest.raises(UserError, match="只有 20 首"):
        proxy.prepare(str(tmp_path), "tiny", SIZE)


def test_finished_runs_are_not_made_again(small, monkeypatch, capsys):
    recipes = [Recipe("today", {}), Recipe("drop0.2", {"DROPOUT": 0.2})]
    rows = study.carry_out(small, values(), recipes, [1])
    assert [row["recipe"] for row in rows] == ["today", "drop0.2"]
    for row in rows:
        assert float(row["val_bpc"]) <= float(row["last_bpc"])
        assert len(row["curve"].split()) == study.SCORES and math.isfinite(float(row["judge_bpc"]))
    assert rows[0]["val_bpc"] != rows[1]["val_bpc"]
    monkeypatch.setattr(study, "train", lambda *_: pytest.fail("做过的又做了一遍"))
    assert study.carry_out(small, values(), recipes, [1]) == rows
    assert study.read(small.folder / artefacts.STUDY_TABLE) == rows


def test_another_default_makes_the_runs_again(small, monkeypatch):
    """config.py 改了，名字照旧的配方练出的已不是同一个东西。"""
    made = []

    def train(proxy, config, recipe, seed):
        made.append(config["WARMUP_STEPS"])
        raise UserError("不必真的练")

    monkeypatch.setattr(study, "train", train)
    for warmup in (3, 4):
        study.carry_out(small, {**values(), "WARMUP_STEPS": warmup}, [Recipe("today", {})], [1])
    assert made == [3, 4]


def test_an_unfinished_study_goes_on(small, monkeypatch):
    real, calls = study.train, []

    def stopped(*parts):
        calls.append(parts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*parts)

    monkeypatch.setattr(study, "train", stopped)
    recipes = [Recipe("today", {}), Recipe("light", {"WEIGHT_DECAY": 0.0})]
    with pytest.raises(KeyboardInterrupt):
        study.carry_out(small, values(), recipes, [7])
    monkeypatch.setattr(study, "train", real)
    rows = study.carry_out(small, values(), recipes, [7])
    assert [(row["recipe"], row["seed"]) for row in rows] == [("today", "7"), ("light", "7")]


def test_a_run_that_cannot_be_made_is_named_and_the_others_go_on(small, monkeypatch, capsys):
    def fail(proxy, values, recipe, seed):
        raise UserError("连续非有限")

    monkeypatch.setattr(study, "train", fail)
    assert study.carry_out(small, values(), [Recipe("wild", {"MUON_LR": 1.0})], [3]) == []
    assert "连续非有限" in capsys.readouterr().out


@pytest.fixture(scope="module")
def last(small):
    """改了这些以后练完的验证分数；同样的只练一次。"""

    @functools.lru_cache(maxsize=None)
    def trained(changes):
        recipe = Recipe("x", dict(changes))
        return study.train(small, values(DROPOUT=0.0, WEIGHT_DECAY=0.0), recipe, 1)["last_bpc"]

    return lambda **changes: trained(tuple(sorted(changes.items())))


@pytest.mark.parametrize("name", sorted(study.TRIALS))
def test_every_trial_changes_the_outcome_and_only_as_much_as_it_is_strong(last, name):
    parts = {"BATCH_SIZE": 4, "ACCUM_STEPS": 2} if name == "growing" else {}
    plain = last(**parts)
    share = name.startswith("drop") or name in ("noise", "average", "taught")
    strength = 0.9 if share else 2.0 if name == "teachers" else 9.0
    without = float(last(**parts, **{name: 0.0}))
    assert without == pytest.approx(float(plain), abs=2e-4) or name == "average"
    assert last(**parts, **{name: strength}) != plain


def test_a_student_that_equals_its_teacher_has_nothing_to_learn(small):
    """全由老师教、与老师一样时，梯度是零；只看答案时，梯度与产品的相同。"""
    plain_values = study.run_values(small, values(DROPOUT=0.0), Recipe("x", {}), 1)
    run = prepare.open_run(plain_values, Ranks())
    batches = [(0, run.corpus.batch(0))]
    trained = run.corpus.size(range(1)).trained

    def gradient(share):
        run.gradients.teacher = None if share is None else Teacher([twin], share)
        run.gradients.compute(batches, trained, 1.0, run.stop)
        return run.model.embed.weight.grad.clone()

    twin = copy.deepcopy(run.model)
    plain, alone, taught = gradient(None), gradient(0.0), gradient(1.0)
    torch.testing.assert_close(alone, plain, rtol=1e-4, atol=1e-6)
    assert taught.abs().max() < 1e-5 * plain.abs().max()


def test_average_without_memory_is_the_last_weights(small):
    plain = study.train(small, values(), Recipe("x", {}), 1)
    averaged = study.train(small, values(), Recipe("x", {"average": 0.0}), 1)
    assert averaged["curve"] == plain["curve"]


def test_steady_decay_at_full_rate_equals_the_product(small):
    """学习率不变时，产品里的衰减与外面做的是同一个算式（次序不同，只差舍入）。"""
    flat = {"DECAY_SHARE": 0.0, "WARMUP_STEPS": 0}
    ours = study.train(small, values(WEIGHT_DECAY=0.5, **flat), Recipe("x", {}), 1)
    trial = {"WEIGHT_DECAY": 0.0, "steady_decay": 0.5}
    theirs = study.train(small, values(**flat), Recipe("x", trial), 1)
    assert float(ours["last_bpc"]) == pytest.approx(float(theirs["last_bpc"]), abs=2e-3)


# ── 配方的写法 ────────────────────────────────────────────────────────


def test_recipes_written_by_hand():
    chosen = study.choose(
        "drop0.2; mine:WEIGHT_DECAY=0.3,noise=0.1", config.read, {"GRAD_CLIP": 2.0}
    )
    assert [(recipe.name, recipe.changes) for recipe in chosen] == [
        ("today", {"GRAD_CLIP": 2.0}),
        ("drop0.2", {"GRAD_CLIP": 2.0, "DROPOUT": 0.2}),
        ("mine", {"GRAD_CLIP": 2.0, "WEIGHT_DECAY": 0.3, "noise": 0.1}),
    ]
    assert chosen[2].settings() == {"GRAD_CLIP": 2.0, "WEIGHT_DECAY": 0.3}
    everything = study.choose("", config.read, {})
    assert [recipe.name for recipe in everything] == list(study.RECIPES)


@pytest.mark.parametrize(
    ("text", "said"),
    [("nope", "没有名为 nope"), ("a:DROP_OUT=1", "DROPOUT"), ("a:DROPOUT=2", "DROPOUT")],
)
def test_wrong_recipes_are_refused(text, said):
    with pytest.raises(UserError, match=said):
        study.choose(text, config.read, {})


# ── 结论 ──────────────────────────────────────────────────────────────


def row(recipe, seed, val, judge=7.0):
    scores = {"val_bpc": val, "last_bpc": val, "judge_bpc": judge, "seconds": 2.0}
    return {"recipe": recipe, "seed": str(seed), "curve": "0.5:8.0 1.0:7.5", **scores}


def test_differences_only_count_common_seeds():
    rows = [row("today", 1, 6.0), row("today", 2, 6.2), row("a", 1, 5.9), row("a", 3, 5.0)]
    today, a = verdict.verdicts(rows)
    assert (today.val.value, today.val.count) == (pytest.approx(6.1), 2)
    assert today.val.error == pytest.approx(0.1)
    assert (a.gain.value, a.gain.count) == (pytest.approx(-0.1), 1) and math.isnan(a.gain.error)
    lines = verdict.table([today, a]).splitlines()
    assert "6.100 ± 0.100" in lines[1] and "-0.100" in lines[2]
    alone = verdict.verdicts([row("a", 1, 5.9)])
    assert alone[0].gain is None and "—" in verdict.table(alone)


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row(name, seed, 6.0 + seed / 10) for name in ("today", "b") for seed in (1, 2)]
    assert verdict.draw(verdict.verdicts(rows), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_weights_come_back_after_scoring(small):
    """平均只在验证时换上。"""
    run = prepare.open_run(study.run_values(small, values(), Recipe("x", {}), 1), Ranks())
    trial = Average(0.9)
    run = trial.begin(run)
    with torch.no_grad():
        run.model.embed.weight.add_(1.0)
    before = run.model.embed.weight.clone()
    with trial.scoring(run):
        assert not torch.equal(run.model.embed.weight, before)
    assert torch.equal(run.model.embed.weight, before)
