"""参照：挑差不多的一个，在同样的 token 数上比，说得出差几比特。"""

from __future__ import annotations

import json
import math

import pytest

import config
import diagnose
from checks import curve
from support.console import UserError
from training import reference, runlog
from web import live

HEADER = ",".join(runlog.COLUMNS)


def log(folder, val, updates=40, tokens=1000):
    """每 5 次更新验证一次的 train_log.csv；val：token 数 → 比特/字。"""
    rows = [HEADER]
    for u in range(1, updates + 1):
        bpc = f"{val(u * tokens):.6f}" if u % 5 == 0 else ""
        rows.append(f"{u * 2},{u},{8 - u / 100},{bpc},0.001,{u * tokens},2000,{u}")
    (folder / "train_log.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return runlog.read(folder / "train_log.csv")


def info(folder, **changes):
    made = {
        "train_iter": 80,
        "parameters": 1_000_000,
        "documents": 300,
        "pass_tokens": 50_000,
        "plan_tokens": 40_000,
        "updates": 40,
        "preset": "own",
        "device": "cpu",
        "dtype": "fp32",
        **changes,
    }
    (folder / "run_info.json").write_text(json.dumps(made), encoding="utf-8")
    return made


@pytest.fixture
def known(tmp_path, monkeypatch):
    """一个参照 first：验证在 log2(token) 上是一条直线。"""
    folder = tmp_path / "first"
    folder.mkdir()
    log(folder, lambda tokens: 20 - math.log2(tokens))
    info(folder)
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "curves")
    reference.FOLDER.mkdir()
    reference.collect(folder, reference.FOLDER / "first.csv")
    return reference.load_all()[0]


def test_a_reference_remembers_what_it_was(known):
    assert known.facts["parameters"] == 1_000_000 and known.facts["preset"] == "own"
    assert [tokens for tokens, _ in known.val] == [5000 * k for k in range(1, 9)]
    assert known.loss[-1][1] == pytest.approx(7.6, abs=0.02)


def test_equal_tokens(known, tmp_path):
    """中间的点按 token 数的对数插值。"""
    rows = log(tmp_path, lambda tokens: 20.25 - math.log2(tokens), updates=30, tokens=1100)
    gap = reference.compare(rows, known)
    assert (gap.tokens, gap.bits) == (33_000, pytest.approx(0.25, abs=1e-4))
    assert "高 0.250" in gap.text("first") and not gap.normal


def test_a_run_that_went_further_is_compared_where_both_were(known, tmp_path):
    rows = log(tmp_path, lambda tokens: 19.5 - math.log2(tokens), updates=300)
    gap = reference.compare(rows, known)
    assert gap.tokens == 40_000 and gap.bits == pytest.approx(-0.5, abs=1e-4) and gap.normal


def test_before_the_first_validation_the_training_loss_is_compared(known, tmp_path):
    rows = log(tmp_path, lambda tokens: 0.0, updates=4)
    gap = reference.compare(rows, known)
    assert "训练损失" in gap.unit and gap.bits == pytest.approx(0, abs=0.05)


def test_only_a_similar_run_is_chosen(known):
    like = {"parameters": 1_200_000, "pass_tokens": 45_000}
    assert reference.for_run(like) == known
    assert reference.for_run({**like, "parameters": 11_000_000}) is None
    assert reference.for_run({**like, "pass_tokens": 12_000_000}) is None
    assert reference.for_run({**like, "plan_tokens": 90_000, "updates": 90}) == known
    larger = {**like, "plan_tokens": 90_000, "updates": 9}  # 一次更新大得多：同样的 token 数学得慢
    assert reference.for_run(larger) is None
    assert reference.for_run({"parameters": 1_000_000}) == known  # 早先的 run_info.json
    assert reference.for_run({}) is None


def test_of_two_alike_the_one_as_long_is_chosen():
    """随附的 minutes 与 laptop 是同样的模型、同样的诗，只是长短不同。"""
    for name in ("minutes", "laptop"):
        facts = reference.load(reference.FOLDER / f"{name}.csv").facts
        info = {key: facts[key] for key in ("parameters", "pass_tokens", "plan_tokens")}
        found = reference.for_run({**info, "updates": info["plan_tokens"] / 4000})
        assert found is not None and found.name == name


def test_diagnose_curve(known, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config, "_given", set())
    monkeypatch.setattr(config, "WORK_DIR", str(tmp_path))
    info(tmp_path)
    log(tmp_path, lambda tokens: 20.05 - math.log2(tokens))
    monkeypatch.setattr("sys.argv", ["diagnose.py", "curve"])
    assert diagnose.main() == 0
    assert "高 0.050" in capsys.readouterr().out
    log(tmp_path, lambda tokens: 22 - math.log2(tokens))
    assert diagnose.main() == 1
    said = capsys.readouterr().out
    assert "高 2.000" in said and "偏高" in said and "改法" in said


def test_no_similar_run_is_one_message_that_names_what_there_is(known, tmp_path):
    info(tmp_path, parameters=11_000_000)
    log(tmp_path, lambda tokens: 7.0)
    _, about = curve.read_run(str(tmp_path))
    with pytest.raises(UserError, match="first"):
        curve.pick(about, "")
    assert curve.pick(about, "first") == known
    with pytest.raises(UserError, match="first"):
        curve.pick(about, "second")
    with pytest.raises(UserError, match="还没有一行"):
        curve.read_run(str(tmp_path / "nothing"))


def test_another_plan_is_said(known, tmp_path):
    about = info(tmp_path, plan_tokens=400_000)
    rows = log(tmp_path, lambda tokens: 20 - math.log2(tokens))
    assert "计划的长短不同" in curve.judge(rows, about, known).text
    assert "计划" not in curve.judge(rows, info(tmp_path), known).text


def test_live_page_gets_the_reference_in_its_own_iterations(known, tmp_path):
    info(tmp_path)
    log(tmp_path, lambda tokens: 20 - math.log2(tokens), updates=20)
    beside = live.status(str(tmp_path))["reference"]
    assert beside["name"] == "first" and beside["normal"] and "参照 first" in beside["text"]
    assert beside["val"][0] == [10, pytest.approx(20 - math.log2(5000), abs=1e-3)]
    info(tmp_path, parameters=5)
    assert live.status(str(tmp_path))["reference"] is None


def test_every_reference_in_the_box_is_whole():
    folder = reference.FOLDER
    found = reference.load_all()
    assert [each.name for each in found] == sorted(path.stem for path in folder.glob("*.csv"))
    for each in found:
        assert all(each.facts[name] > 0 for name in ("parameters", "pass_tokens", "plan_tokens"))
        assert each.facts["corpus"] and each.facts["machine"] and each.facts["commit"]
        assert each.val and each.loss
