"""config.py：默认值、命令行覆盖、一次说全的错误。"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import config
from poems import options
from support import presets

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def restored():
    before = config.values()
    yield
    vars(config).update(before)


def test_defaults_are_the_readme_values():
    expected = {
        "VOCAB_SIZE": 20000,
        "MAX_SEQ_LEN": 512,
        "GPT_DIM": 256,
        "GPT_HEAD": 8,
        "GPT_FF": 1024,
        "GPT_BLOCKS": 6,
        "TRAIN_ITER": 50000,
        "BATCH_SIZE": 8,
        "WARMUP_STEPS": 500,
        "ACCUM_STEPS": 8,
        "TEMPERATURE": 0.7,
        "TOP_K": 20,
        "REPETITION_PENALTY": 1.4,
        "PAD": "<|padding|>",
        "IM_START": "<|im_start|>",
        "IM_END": "<|im_end|>",
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.check() == []


def test_both_spellings_override():
    rest = config.load("", ["tokenizer", "--SEED=7", "--TOP_P", "0.9", "--work-dir=x"], (("", ()),))
    assert (config.SEED, config.TOP_P, config.WORK_DIR) == (7, 0.9, "x")
    assert rest == ["tokenizer"]
    assert {"SEED", "TOP_P", "WORK_DIR"} <= config.given()


def errors(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        config.load("", list(words))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_unknown_key_names_the_nearest(capsys):
    assert "TRAIN_ITER" in errors(capsys, "--TRAIN_ITR=5")


def test_all_problems_in_one_message(capsys):
    words = ("--GPT_DIM=250", "--SEED=a", "--TOP_P=0", "--OPTIMIZER=sgd", "--DROPOUT=nan", "stray")
    text = errors(capsys, *words)
    assert all(
        name in text for name in ("GPT_HEAD", "SEED", "TOP_P", "OPTIMIZER", "DROPOUT", "stray")
    )
    assert "Traceback" not in text


def test_home_is_expanded(monkeypatch, tmp_path):
    """bash 不展开 --名字=~/… 里的 ~；照字面建出名为 ~ 的目录，删它时会删掉主目录。"""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    words = ["--WORK_DIR=~/exp", "--CHECKPOINT=~/a.bin,~/b.bin", "--RAW_DATA=a~b"]
    config.load(None, argv=words)
    assert f"{tmp_path}/exp" == config.WORK_DIR
    assert f"{tmp_path}/a.bin,{tmp_path}/b.bin" == config.CHECKPOINT
    assert config.RAW_DATA == "a~b"


def test_a_share_of_old_poems_needs_their_dataset(monkeypatch):
    monkeypatch.setattr(config, "REPLAY_SHARE", 0.2)
    assert any("REPLAY_DATA" in problem for problem in config.check())
    monkeypatch.setattr(config, "REPLAY_DATA", "old")
    assert config.check() == []


def test_missing_value(capsys):
    assert "--SEED=值" in errors(capsys, "--SEED")


def test_help_lists_every_constant_with_its_comment():
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_gpt.py"), "--help"],
        capture_output=True,
        env={"PYTHONIOENCODING": "gbk", "PATH": "", "SYSTEMROOT": "C:\\Windows"},
    )
    text = done.stdout.decode("gbk")
    assert done.returncode == 0
    for name in config.names():
        line = next(line for line in text.splitlines() if f"--{name}=" in line)
        assert any("\u4e00" <= char <= "\u9fff" for char in line), line


def test_sampler(monkeypatch):
    """auto 是量出来的一套；改过的常量、命令行给的值一项一项地优先；readme 原样。"""
    readme = config.sampling("readme")
    assert (readme["temperature"], readme["top_k"], readme["repetition_penalty"]) == (0.7, 20, 1.4)
    assert "steady_marks" not in readme
    best = config.sampling()
    assert best == {**readme, **options.AUTO} != readme
    monkeypatch.setattr(config, "TEMPERATURE", 0.5)
    assert config.sampling() == {**best, "temperature": 0.5}
    monkeypatch.setattr(config, "_given", {"TOP_K"})
    assert config.sampling() == {**best, "temperature": 0.5, "top_k": 20}
    monkeypatch.setattr(config, "SAMPLER", "readme")
    assert config.sampling() == {**readme, "temperature": 0.5}


def test_missing_line_is_named_with_its_default(monkeypatch, capsys):
    monkeypatch.delattr(config, "SEED")
    with pytest.raises(SystemExit) as caught:
        config.load("说明", [])
    assert caught.value.code == 2
    assert "config.py 里缺少 SEED（默认 42）" in capsys.readouterr().err
    monkeypatch.undo()


def test_defaults_told_are_the_defaults():
    code = (
        "import config; from support import defaults; print(config.values() == defaults.DEFAULTS)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_a_second_script_in_the_same_process_forgets_the_first():
    """笔记本里的 %run：两次 load() 之间又改过的常量照改的。"""
    seed = config.SEED
    config.load(None, argv=["--SEED=7", "--SEED=8", "--WORK_DIR=exp"])
    assert (config.SEED, config.WORK_DIR, config.given()) == (8, "exp", {"SEED", "WORK_DIR"})
    config.WORK_DIR = "mine"
    config.load(None, argv=["--GPT_BLOCKS=3"])
    assert (config.SEED, config.WORK_DIR, config.given()) == (seed, "mine", {"GPT_BLOCKS"})
    config.load(None, argv=[])
    assert not config.given()


# ── PRESET ────────────────────────────────────────────────────────────


@pytest.fixture
def nothing_given(monkeypatch):
    monkeypatch.setattr(config, "_given", set())


def test_a_preset_is_a_whole_configuration(nothing_given):
    config.load("", ["--PRESET=own"])
    expected = presets.PRESETS["own"].values
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.check() == [] and "VOCAB_SIZE" not in config.given()


def test_edits_and_the_command_line_win_over_the_preset(monkeypatch, nothing_given):
    monkeypatch.setattr(config, "GPT_BLOCKS", 3)  # 在 config.py 里改过
    config.load("", ["--PRESET=night", "--GPT_DIM=256"])  # 与默认相同的值，写明了也算
    assert (config.GPT_BLOCKS, config.GPT_DIM, config.GPT_FF) == (3, 256, 2048)


def test_a_preset_written_in_the_file_counts(monkeypatch, nothing_given):
    monkeypatch.setattr(config, "PRESET", "laptop")
    config.load("", [])
    assert (config.TRAIN_ITER, config.DROPOUT) == (1200, 0.0)


def test_the_usual_preset_changes_nothing(nothing_given):
    before = config.values()
    config.load("", ["--PRESET=readme"])
    assert config.values() == before


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_every_preset_is_possible(name, nothing_given):
    config.load("", [f"--PRESET={name}"])
    assert config.check() == [] and set(presets.PRESETS[name].values) <= set(config.names())


def test_unknown_preset_lists_the_known(capsys, nothing_given):
    assert "laptop" in errors(capsys, "--PRESET=phone")


def test_help_says_what_presets_reach(capsys):
    with pytest.raises(SystemExit):
        config.load("", ["--help"])
    said = capsys.readouterr().out
    assert all(preset.reach in said for preset in presets.PRESETS.values())
