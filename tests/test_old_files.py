"""以前的代码写下的文件（tests/fixtures/v1）：一直能读、能对话、能评测、能接着训练。"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
import config
import dataset
import infere
from support import artefacts, files
from tokenizer import BPETokenizer, HFTokenizer
from writing import originality

ROOT = Path(__file__).resolve().parent.parent
OLD = ROOT / "tests" / "fixtures" / "v1"
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
MODELS = sorted(EXPECTED["texts"])
FINAL = "final_weights.bin"


@pytest.fixture
def work(tmp_path):
    """旧产物的副本：测试可以在里面写。"""
    for path in OLD.iterdir():
        if path.name not in (FINAL, "expected.json"):
            shutil.copy(path, tmp_path)
    return tmp_path


def script(name, folder, *options):
    """运行一个脚本，返回它的标准输出。"""
    given = {**EXPECTED["config"], "WORK_DIR": folder}
    command = [sys.executable, str(ROOT / name), *(f"--{key}={v}" for key, v in given.items())]
    done = subprocess.run([*command, *options], capture_output=True, cwd=folder)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done.stdout.decode("utf-8")


@pytest.mark.parametrize("load", [HFTokenizer.load, BPETokenizer.load])
@pytest.mark.parametrize("name", [artefacts.TOKENIZER_HUG, artefacts.TOKENIZER_BPE])
def test_tokenizer(load, name):
    tok = load(OLD / name)
    assert list(tok.encode(EXPECTED["encoded"]["text"])) == EXPECTED["encoded"]["ids"]
    assert tok.decode(EXPECTED["encoded"]["ids"]) == EXPECTED["encoded"]["text"]


def test_dataset():
    data, expected = dataset.load(OLD / artefacts.DATASET), EXPECTED["documents"]
    train, val = (list(data.documents(split)) for split in ("train", "val"))
    assert (len(train), len(val)) == (expected["train"], expected["val"])
    ids, mask, poem = val[0]
    assert [int(number) for number in ids] == expected["first_val"]["ids"]
    assert [int(number) for number in mask] == expected["first_val"]["mask"]
    assert int(poem) == expected["first_val"]["poem"]


@pytest.mark.parametrize("name", MODELS)
def test_chat(name, monkeypatch):
    """同样的题目，取概率最大的字，写出当时那首诗。"""
    monkeypatch.setattr(config, "WORK_DIR", str(OLD))
    monkeypatch.setattr(config, "DEVICE", "cpu")
    monkeypatch.setattr(config, "DTYPE", "fp32")
    path = str(OLD / name)
    text = infere.chat(EXPECTED["question"], checkpoint=path, **EXPECTED["greedy"])
    assert text == EXPECTED["texts"][name]


def test_evaluate(work):
    names = [artefacts.BEST_MODEL, artefacts.MODEL_INT8]
    output = script("evaluate.py", work, f"--CHECKPOINT={','.join(names)}", "--MAX_NEW_TOKENS=8")
    found = json.loads(output.splitlines()[-1])
    for name, result in zip(names, (found, found["compared"])):
        expected = EXPECTED["bits_per_char"][name]
        assert result["bits_per_char"] == pytest.approx(expected, rel=1e-4)


def test_copy_index(work):
    """索引只是缓存：写法变了就自己重建一次，答案不变，此后不再重建。"""
    path, found = work / artefacts.COPY_INDEX, EXPECTED["copy"]
    assert originality.load(str(work)).longest_copy(found["text"]).describe() == found["describe"]
    built = path.stat().st_mtime_ns
    assert originality.load(str(work)).longest_copy(found["text"]).describe() == found["describe"]
    assert path.stat().st_mtime_ns == built


def test_quantize(work):
    """旧模型现在量化，得到当时那些整数。"""
    script("quantize.py", work, "--OUT=again.bin")
    made, old = (checkpoint.load(path) for path in (work / "again.bin", OLD / artefacts.MODEL_INT8))
    assert made["weights"].keys() == old["weights"].keys()
    assert all(torch.equal(made["weights"][name], old["weights"][name]) for name in old["weights"])


@pytest.mark.parametrize("newest", ["完好", "损坏"])
def test_resume(work, newest):
    """接着训练到底，权重与当时的代码续训出的相同；最新的检查点坏了就从上一个来。"""
    if newest == "损坏":
        damaged = bytearray((work / artefacts.CHECKPOINT).read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (work / artefacts.CHECKPOINT).write_bytes(bytes(damaged))
    script("train_gpt.py", work)
    state = checkpoint.load(work / artefacts.CHECKPOINT)
    assert state["position"]["update"] == EXPECTED["resumed"]["updates"]
    assert state["best"]["val_bpc"] == pytest.approx(EXPECTED["resumed"]["best"]["val_bpc"])
    final = files.read_tensors(OLD / FINAL)
    assert state["weights"].keys() == final.keys()
    for name, weight in final.items():
        assert (state["weights"][name] - weight).norm() <= 1e-5 * weight.norm(), name
    assert_log_goes_on(work / artefacts.TRAIN_LOG)


def assert_log_goes_on(path):
    """记录不缺不重，最后一行与当时的相同（计时的两列除外）。"""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["update"]) for row in rows] == list(range(1, len(rows) + 1))
    expected = EXPECTED["resumed"]["last_row"].split(",")[:6]
    assert [float(value) for value in list(rows[-1].values())[:6]] == pytest.approx(
        [float(value) for value in expected], rel=1e-4
    )
