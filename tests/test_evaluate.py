"""评测：比特每字对照逐首直接计算；诗的指标对照手算；两个检查点并排；坏输入。"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
import torch

import checkpoint
import config
import evaluate
import quantize
from poems import chat_format
from support.console import UserError
from tests import tiny_model
from tests.conftest import ROOT
from tests.writing.test_originality import write_dataset


def run(*arguments):
    return subprocess.run(
        [sys.executable, "evaluate.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
        check=False,
    )


def expected_bits(path, poems):
    """逐首、不分批、直接照定义算。"""
    model, tok = checkpoint.rebuild(checkpoint.load(path))
    nats, chars, count = 0.0, 0, 0
    for poem in poems:
        start = chat_format.render(tok, poem["title"])
        ids = [*start, *tok.encode(chat_format.body(poem)), tok.end_id]
        if len(ids) > model.config.max_seq_len:
            continue
        with torch.no_grad():
            logs = model(torch.tensor([ids]))[0].log_softmax(-1)
        nats -= sum(float(logs[i - 1, ids[i]]) for i in range(len(start), len(ids)))
        chars += len(chat_format.body(poem))
        count += 1
    return nats / math.log(2) / chars, count


POEMS = [
    {"title": "春天", "author": "甲", "para": ["花开在山坡上\n雨落在河边", "月亮"]},
    {"title": "user\n<|im_end|>", "author": "", "para": ["  我想起故乡  "]},
    {"title": "长", "author": "乙", "para": ["一只鸟在想方向\n" * 40]},
    {"title": "空", "author": "乙", "para": []},
]


def test_bits_per_char(tmp_path):
    tiny_model.save(tmp_path / "best_model.bin")
    (tmp_path / "poems.json").write_text(json.dumps(POEMS), encoding="utf-8")
    done = run(f"--WORK_DIR={tmp_path}", "--DATA=poems.json", "--MAX_NEW_TOKENS=20")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    bits, count = expected_bits(tmp_path / "best_model.bin", [p for p in POEMS if p["para"]])
    assert result["bits_per_char"] == pytest.approx(bits, rel=1e-4)
    assert (result["poems"], result["skipped"]) == (count, len(POEMS) - count) == (2, 2)
    assert result["copied_share"] is None and result["written"] == 4
    assert "算比特每字: 100%" in done.stderr and "写诗: 100%" in done.stderr


def test_validation_split_and_two_checkpoints(tmp_path):
    bodies = write_dataset(tmp_path)
    tiny_model.save(tmp_path / "best_model.bin")
    quantize.quantize_file(tmp_path / "best_model.bin", tmp_path / "model_int8.bin")
    done = run(
        f"--WORK_DIR={tmp_path}",
        "--CHECKPOINT=best_model.bin,model_int8.bin",
        "--MAX_NEW_TOKENS=20",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    poems = [{"title": t, "para": [b]} for t, b in zip("春雪鸟", bodies)]
    bits, count = expected_bits(tmp_path / "best_model.bin", poems)
    assert result["poems"] == count == 3
    assert result["bits_per_char"] == pytest.approx(bits, rel=1e-4)
    assert result["compared"]["bits_per_char"] == pytest.approx(bits, rel=0.01)
    assert result["longest_copy"] >= 0 and "model_int8.bin" in done.stdout
    assert result["validation"]["lines"] == pytest.approx((4 + 3 + 3) / 3)


def test_sampler_sweep_and_picture(tmp_path):
    write_dataset(tmp_path)
    tiny_model.save(tmp_path / "best_model.bin")
    sweep = "sampler=readme,auto; temperature=0.5,1"
    done = run(f"--WORK_DIR={tmp_path}", f"--SWEEP={sweep}", "--MAX_NEW_TOKENS=20", "--SAMPLES=2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    columns = result["columns"]
    assert [column["sampling"]["temperature"] for column in columns] == [0.5, 1, 0.5, 1]
    assert [column["sampling"].get("steady_marks", False) for column in columns] == [0, 0, 1, 1]
    assert all(column["written"] == 2 for column in columns)
    assert result["compared"] == columns[1] and set(result) > {"data", "validation"}
    low, high = result["validation"]["intervals"]["fluency"]
    assert low <= result["validation"]["fluency"] <= high
    assert "sampler=readme temperature=0.5" in done.stdout
    assert "写诗 sampler=auto temperature=1.0: 100%" in done.stderr  # 几套里写到哪一套了
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "evaluate.png").is_file()


@pytest.mark.parametrize(
    "sweep, problem",
    [
        ("temperature", "名字=值"),
        ("temprature=1", "temperature"),
        ("temperature=热", "应当是数"),
        ("top_p=2", "超出范围"),
        ("sampler=best", "readme"),
    ],
)
def test_bad_sweeps(sweep, problem):
    with pytest.raises(UserError, match=problem):
        evaluate.settings(sweep)


def test_settings():
    assert evaluate.settings("") == [("", {**config.sampling(), "context": "stop"})]
    found = dict(evaluate.settings("repetition_penalty=1.2;steady_marks=false,true"))
    first = found["repetition_penalty=1.2 steady_marks=False"]
    assert first["presence_penalty"] == 0 and not first["steady_marks"] and len(found) == 2


def test_title_scorer_is_the_log_probability(tmp_path, capsys):
    state = tiny_model.save(tmp_path / "best_model.bin")
    model, tok = checkpoint.rebuild(state)
    scorer = evaluate.title_scorer(model, tok, torch.device("cpu"), torch.float32)
    found = scorer(["春天", "雪"], ["花开在山坡上", "月亮"])
    for title, text, value in zip(["春天", "雪"], ["花开在山坡上", "月亮"], found):
        start = chat_format.render(tok, title)
        ids = [*start, *tok.encode(text)]
        with torch.no_grad():
            logs = model(torch.tensor([ids]))[0].log_softmax(-1)
        expected = sum(float(logs[i - 1, ids[i]]) for i in range(len(start), len(ids)))
        assert value == pytest.approx(expected, rel=1e-4)
    assert "量切题: 100%" in capsys.readouterr().err


def test_damaged_dataset_is_refused(tmp_path):
    """数组里翻了一位：不评，也不说成别的毛病。"""
    write_dataset(tmp_path)
    path = tmp_path / "dataset.bin"
    content = bytearray(path.read_bytes())
    for place in range(len(content) - 1000, len(content), 90):
        content[place] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"dataset\.bin 已损坏"):
        evaluate.load_poems(str(tmp_path))


def test_bad_input(tmp_path):
    done = run(f"--WORK_DIR={tmp_path}")
    assert done.returncode == 1 and "train_gpt" in done.stderr
    tiny_model.save(tmp_path / "best_model.bin")
    done = run(f"--WORK_DIR={tmp_path}", "--DATA=none.json")
    assert done.returncode == 1 and "none.json" in done.stderr
    done = run(f"--WORK_DIR={tmp_path}")
    assert done.returncode == 1 and "train_dataset_one" in done.stderr
    (tmp_path / "long.json").write_text(json.dumps(POEMS[2:3]), encoding="utf-8")
    done = run(f"--WORK_DIR={tmp_path}", "--DATA=long.json")
    assert done.returncode == 1 and "放得进" in done.stderr and "Traceback" not in done.stderr
