"""诊断：每一项都给出结果和改法，绝不崩溃；有 ✗ 时退出码为 1。"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
import config
import dataset
import diagnose
import gpt
import tokenizer
from checks import files, finding, machine, memory, packages, tokens
from checks.finding import BAD, OK, WARN, Finding, Settings
from support import bootstrap
from support import files as support_files
from support.console import UserError
from training import memory as prediction

ROOT = Path(__file__).resolve().parents[2]
README = {"GPT_DIM": 256, "GPT_HEAD": 8, "GPT_FF": 1024, "GPT_BLOCKS": 6, "BATCH_SIZE": 8}
LINES = ("山里的雪落在旧屋檐上", "一只鸟在想方向", "河水慢慢流过黄昏", "灯下的人写完一封信")


def poem(number: int) -> dict:
    first, second = LINES[number % 4], LINES[(number // 4) % 4]
    return {"title": f"第{number}首", "para": [f"{first}\n{second}"], "author": "无名"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """做好全部产物的 WORK_DIR：诗集、两个分词器、数据集、检查点。"""
    folder = tmp_path_factory.mktemp("made")
    poems = [poem(number) for number in range(40)]
    (folder / "all_poems.json").write_text(json.dumps(poems, ensure_ascii=False), encoding="utf-8")
    texts = [text for item in poems for text in (item["title"], item["para"][0])]
    tok = tokenizer.BPETokenizer().train(texts, 400)
    for name in ("tokenizer_hug.json", "tokenizer_bpe.json"):
        tok.save(folder / name)
    dataset.build(folder / "all_poems.json", tok, folder / "dataset.bin", max_seq_len=64)
    with dataset.load(folder / "dataset.bin") as data:
        fingerprint = data.fingerprint
    shape = gpt.GPTConfig(tok.vocab_size, 64, dim=16, n_head=2, ff=32, n_block=1)
    state = {
        "model_config": shape.to_dict(),
        "weights": checkpoint.weights_of(gpt.GPT(shape)),
        "tokenizer": tok.to_json(),
        "prompt_kinds": ["title"],
        "config": {**config.values(), **SETTINGS},
        "dataset": fingerprint,
        "position": {"update": 3},
        "best": {"val_bpc": 7.5, "iter": 24, "stale": 0},
    }
    checkpoint.save(folder / "checkpoint.bin", state)
    checkpoint.save(folder / "best_model.bin", state)
    return folder


SETTINGS = {
    "MAX_SEQ_LEN": 64,
    "GPT_DIM": 16,
    "GPT_HEAD": 2,
    "GPT_FF": 32,
    "GPT_BLOCKS": 1,
    "BATCH_SIZE": 2,
    "VOCAB_SIZE": 400,
    "DEVICE": "cpu",
}


@pytest.fixture
def settings() -> Settings:
    """小模型的配置；测试随意改。"""
    return Settings(**{**config.values(), "RAW_DATA": "不存在的目录", **SETTINGS})


@pytest.fixture
def copy(made, tmp_path, settings) -> Path:
    """可以随意弄坏的一份 WORK_DIR。"""
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings.WORK_DIR = str(tmp_path)
    return tmp_path


def findings(check, settings) -> list:
    return finding.run_check(check, settings)


def levels(check, settings) -> dict:
    return {found.name: found.level for found in findings(check, settings)}


def script(*words, **environment):
    env = {**os.environ, "PYTHONUTF8": "1", **environment}
    return subprocess.run(
        [sys.executable, str(ROOT / "diagnose.py"), *words],
        capture_output=True,
        env=env,
        check=False,
    )


# ── 全面检查 ──────────────────────────────────────────────────────────


def test_everything_fits_together(copy, capsys, settings):
    assert diagnose.overview(settings) == 0
    out = capsys.readouterr().out
    assert "✗" not in out
    assert "由 tokenizer_hug.json、tokenizer_bpe.json 编码" in out
    assert "第 3 次更新，最佳验证 7.500 比特/字（第 24 次迭代）" in out
    assert "都与 checkpoint.bin 配套" in out
    assert out.strip().splitlines()[-1].startswith("下一步：python infere.py")


def test_empty_folder_says_what_is_missing(tmp_path, settings, capsys):
    settings.WORK_DIR = str(tmp_path)
    assert diagnose.overview(settings) == 1
    out = capsys.readouterr().out
    assert "✗ 原始数据" in out and "quickstart.py" in out
    assert list(tmp_path.iterdir()) == []  # 只看不动


def test_runs_as_a_script_on_a_console_without_chinese(tmp_path):
    done = script(
        f"--WORK_DIR={tmp_path}", "--RAW_DATA=none", PYTHONUTF8="0", PYTHONIOENCODING="ascii"
    )
    out = done.stdout.decode("ascii")
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert "[ok]" in out and "[x ]" in out


def test_unknown_word_is_refused():
    done = script("tokeniser")
    assert done.returncode == 2
    assert "tokenizer | memory" in done.stderr.decode("utf-8")


def test_next_step_follows_the_files(tmp_path, settings):
    settings.WORK_DIR = str(tmp_path)
    steps = []
    made = ("clean_report.json", "all_poems.json")
    for names in ((), made, ("tokenizer_hug.json",), ("dataset.bin",), ("checkpoint.bin",)):
        for name in names:
            (tmp_path / name).write_text("", encoding="utf-8")
        steps.append(diagnose.next_steps(settings)[0].split("（")[0])
    assert steps == [
        "python data_clean.py",
        "python hug_face_tokenizer.py",
        "python train_dataset_one.py",
        "python train_gpt.py",
        "python infere.py",
    ]


def test_a_failing_check_is_reported_not_raised(settings):
    def check_odd(_):
        """怪事：会出错。"""
        yield Finding(OK, "先", "好的")
        raise ZeroDivisionError("除以零")

    first, second = finding.run_check(check_odd, settings)
    assert first.name == "先"
    assert (second.level, second.name) == (WARN, "怪事")
    assert "除以零" in second.text


# ── 环境 ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("version", "limits", "allowed"),
    [
        ("2.13.0+cpu", ">=2.1,<3", True),
        ("3.0.0", ">=2.1,<3", False),
        ("2.0.1", ">=2.1,<3", False),
        ("2.1", ">=2.1.0", True),
        ("0.9", ">=0.19,<1", False),
        ("4.66.1", "", True),
    ],
)
def test_version_limits(version, limits, allowed):
    assert packages.version_allowed(version, limits) is allowed


@pytest.mark.parametrize(
    ("python", "tokenizers", "level"),
    [("3.8.18", "0.20.3", OK), ("3.8.18", "0.21.0", BAD), ("3.11.7", "0.23.3", OK)],
)
def test_each_python_has_its_own_limits(monkeypatch, settings, python, tokenizers, level):
    """requirements.txt 里分号后面是给哪种 Python 的。"""
    found = packages.metadata.version
    monkeypatch.setattr(packages.platform, "python_version", lambda: python)
    monkeypatch.setattr(
        packages.metadata,
        "version",
        lambda name: tokenizers if name == "tokenizers" else found(name),
    )
    assert next(packages.check_packages(settings)).level == level


def test_cpu_wheel_beside_an_nvidia_card(monkeypatch, settings):
    import torch

    monkeypatch.setattr(bootstrap, "driver_cuda", lambda: (12, 6))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = findings(machine.check_cuda, settings)
    assert found.level == WARN
    assert "装了 CPU 版" in found.text
    build = "cu126" if sys.version_info >= (3, 9) else "cu121"  # Python 3.8 只有 cu121
    assert f"--index-url https://download.pytorch.org/whl/{build}" in found.mend
    settings.DEVICE = "cuda"
    (found,) = findings(machine.check_cuda, settings)
    assert found.level == BAD


def test_driver_too_old_for_the_build(monkeypatch, settings):
    import torch

    monkeypatch.setattr(bootstrap, "driver_cuda", lambda: (11, 8))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = findings(machine.check_cuda, settings)
    assert found.level == WARN
    assert "12.8" in found.text and "11.8" in found.text and "驱动" in found.mend


def test_full_disk(monkeypatch, settings, tmp_path):
    settings.WORK_DIR = str(tmp_path / "还没有")
    assert levels(machine.check_disk, settings) == {"磁盘": OK}
    monkeypatch.setattr(support_files, "free_bytes", lambda folder: 1000)
    assert levels(machine.check_disk, settings) == {"磁盘": BAD}


def test_too_large_a_model_names_the_switch(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "simulate", prediction.formula)  # 快
    shape = {"GPT_DIM": 768, "GPT_HEAD": 12, "GPT_FF": 2048, "GPT_BLOCKS": 12}
    batch = {"DTYPE": "fp32", "MAX_SEQ_LEN": 512, "BATCH_SIZE": 16, "VOCAB_SIZE": 20000}
    vars(settings).update(shape, **batch, WORK_DIR=str(tmp_path))
    card = next(found for found in findings(memory.check_memory, settings) if found.name == "显存")
    assert card.level == WARN and "放不下" in card.text
    assert "--GRAD_CHECKPOINT=on" in card.mend


@pytest.mark.parametrize(("free", "level"), [((11.0, 9.0), OK), ((11.0, 0.5), BAD)])
def test_w8_memory_is_what_is_free_on_the_fullest_card(
    settings, tmp_path, monkeypatch, free, level
):
    """卡上别的程序占着的不能算；几张卡时看最挤的那张。"""
    monkeypatch.setattr(prediction, "simulate", prediction.formula)  # 快
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    sizes = [(int(gib * prediction.GIB), 12 * prediction.GIB) for gib in free]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: sizes[card])
    vars(settings).update(README, DTYPE="fp32", DEVICE="auto", WORK_DIR=str(tmp_path))
    monkeypatch.setattr(memory.hardware, "pick_device", lambda _: torch.device("cuda"))
    card = next(found for found in findings(memory.check_memory, settings) if found.name == "显存")
    assert card.level == level and f"{min(free):.1f} GB" in card.text


@pytest.mark.parametrize("teachers", ["20", ",".join(["还没有的老师"] * 20)])
def test_the_forecast_counts_the_teachers(settings, tmp_path, monkeypatch, teachers):
    monkeypatch.setattr(prediction, "simulate", prediction.formula)  # 快
    monkeypatch.setattr(memory, "CARD_GIB", 2.5)
    vars(settings).update(README, DTYPE="fp32", WORK_DIR=str(tmp_path), VOCAB_SIZE=20000)
    assert levels(memory.check_memory, settings)["显存"] == OK
    settings.TEACHER = teachers
    assert levels(memory.check_memory, settings)["显存"] == WARN


# ── 产物 ──────────────────────────────────────────────────────────────


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(bytes(data))


def test_broken_poems_name_the_line(copy, settings):
    (copy / "all_poems.json").write_text('[{"title": "a", }]', encoding="utf-8")
    (found,) = findings(files.check_poems, settings)
    assert found.level == BAD
    assert "第 1 行" in found.text and "data_clean.py" in found.mend


def test_broken_tokenizer(copy, settings):
    (copy / "tokenizer_hug.json").write_text("{}", encoding="utf-8")
    (found,) = findings(files.check_tokenizers, settings)
    assert found.level == BAD and "hug_face_tokenizer.py" in found.mend


def test_other_tokenizer_than_the_dataset(copy, settings):
    other = tokenizer.BPETokenizer().train(["风吹过风吹过"], 270)
    for name in ("tokenizer_hug.json", "tokenizer_bpe.json"):
        other.save(copy / name)
    found = {item.name: item for item in findings(files.check_dataset, settings)}
    assert found["dataset.bin 与分词器"].level == WARN


def test_damaged_dataset(copy, settings):
    flip(copy / "dataset.bin", 0.95)
    (found,) = findings(files.check_dataset, settings)
    assert found.level == BAD and "train_dataset_one.py" in found.mend


def test_dataset_longer_than_the_model(copy, settings):
    settings.MAX_SEQ_LEN = 32
    assert levels(files.check_dataset, settings)["dataset.bin 与配置"] == BAD


def test_damaged_checkpoint(copy, settings):
    flip(copy / "checkpoint.bin", 0.5)
    assert levels(files.check_checkpoints, settings) == {
        "best_model.bin": OK,
        "checkpoint.bin": BAD,
    }
    (copy / "checkpoint.prev.bin").write_bytes((copy / "best_model.bin").read_bytes())
    assert levels(files.check_checkpoints, settings)["checkpoint.bin"] == WARN


def test_config_that_cannot_resume(copy, settings):
    settings.GPT_FF, settings.BATCH_SIZE = 64, 4
    found = {item.name: item for item in findings(files.check_checkpoints, settings)}["接着训练"]
    assert found.level == WARN
    assert "GPT_FF 是 32，现在 64" in found.text and "BATCH_SIZE 是 2，现在 4" in found.text


def test_checkpoint_without_its_dataset_says_what_was_not_compared(copy, settings):
    (copy / "dataset.bin").unlink()
    found = {item.name: item for item in findings(files.check_checkpoints, settings)}["接着训练"]
    assert found.level == WARN
    assert "配置与 checkpoint.bin 配套" in found.text
    assert "没有 dataset.bin" in found.text and "没有比对" in found.text


def test_samples_mark_exactly_the_trained_part(made):
    tok = tokenizer.HFTokenizer.load(made / "tokenizer_hug.json")
    with dataset.load(made / "dataset.bin") as data:
        ids, mask, poem_id = data.document(0)
        shown = files.marked_text(ids, mask, tok)
        title = data.poem_info(poem_id)["title"]
        body = data.body_text(0, tok).replace("\n", "⏎")
    assert shown == (
        f"<|im_start|>user⏎{title}⏎<|im_end|>⏎<|im_start|>assistant⏎【{body}<|im_end|>】"
    )


# ── 分词器报告 ────────────────────────────────────────────────────────


def test_tokenizer_report_shows_real_characters(copy, capsys, settings):
    assert tokens.tokenizer_report(settings) == 0
    out = capsys.readouterr().out
    assert not set("åçæèéäĠĊ") & set(out)  # 词表文件里的字节写法不该露出来
    assert re.search("最长的：[一-龥]", out) and re.search("例：[一-龥]", out)
    assert out.count("编号完全相同") == 2
    assert "词表与合并：完全相同" in out


def test_tokenizer_report_without_a_tokenizer(tmp_path, settings):
    settings.WORK_DIR = str(tmp_path)
    with pytest.raises(UserError, match=r"hug_face_tokenizer\.py"):
        tokens.tokenizer_report(settings)


def test_show_token():
    tok = tokenizer.BPETokenizer().train(["山山山山水水"], 263)
    shown = {tokens.show_token(tok, token) for token in range(3, tok.vocab_size)}
    assert {"山", "<FF>", "a", "\\n"} <= shown
    assert not any("\ufffd" in text for text in shown)
