"""验收的脚本自己：每一项都在假的显卡上走得通，报告能贴，超时与死掉的说得清。"""

from __future__ import annotations

import json
import sys

import pytest

import dataset
from tests import fake_cuda
from tests.gpu import __main__ as acceptance
from tests.gpu.checks import CHECKS, RESULT
from tests.gpu.stage import FULL, Stage
from tokenizer import HFTokenizer

QUICK = [check.number for check in CHECKS if check.quick]
OTHERS = [check.number for check in CHECKS if not check.quick]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    if fake_cuda.skip_reason():
        pytest.skip(fake_cuda.skip_reason())
    folder = str(tmp_path_factory.mktemp("stage"))
    return fake_cuda.run("tests.gpu.one:several", numbers=[*QUICK, *OTHERS], folder=folder)


@pytest.mark.parametrize("number", [*QUICK, *OTHERS])
def test_every_check_passes_on_the_fake_card(outcomes, number):
    found = outcomes[str(number)]
    assert found["state"] in ("PASS", "SKIP"), found
    assert found["measured"]


def test_real_data_has_as_many_words_as_the_model(tmp_path):
    """假的显卡上用小词表；真的上要补到两万个，分词器也得收。"""
    with dataset.load(Stage(tmp_path).data()) as data:
        assert HFTokenizer.from_json(data.tokenizer_json).vocab_size == FULL["vocab_size"]


def test_checks_are_numbered_and_bounded():
    assert [check.number for check in CHECKS] == list(range(1, 19))
    assert sum(check.seconds for check in CHECKS if check.quick) <= 240


def test_report_can_be_pasted():
    results = [
        {
            "number": 1,
            "title": "这张卡",
            "state": "PASS",
            "measured": "RTX 3060|12 GB",
            "bound": "认得",
            "seconds": 2.0,
            "numbers": {"card": "RTX 3060", "torch": "2.13.0+cu128", "driver": "580"},
            "details": "",
        },
        {
            "number": 5,
            "title": "与 CPU 相同",
            "state": "FAIL",
            "measured": "差",
            "seconds": 3.0,
            "details": "Traceback",
        },
    ]
    text = acceptance.report(results, fake=False)
    assert "· RTX 3060 · torch 2.13.0+cu128 · 580" in text.splitlines()[0]
    assert "| 1 | 这张卡 | ✅ | RTX 3060/12 GB | 认得 | 2.0 |" in text
    assert "| 5 | 与 CPU 相同 | ❌ |" in text and "Traceback" in text
    assert json.loads(text.splitlines()[-1])["checks"][1]["state"] == "FAIL"


def stand_in(monkeypatch, code):
    """检查的进程换成这几行。"""
    real = acceptance.subprocess.Popen
    monkeypatch.setattr(
        acceptance.subprocess,
        "Popen",
        lambda command, **options: real([sys.executable, "-c", code], **options),
    )


def test_a_check_that_hangs_is_ended(monkeypatch, tmp_path):
    stand_in(monkeypatch, "import time; print('began', flush=True); time.sleep(100)")
    found = acceptance.run_one(3, str(tmp_path), False, 2.0)
    assert found["state"] == "FAIL" and "超过" in found["measured"] and "began" in found["details"]


def test_a_check_that_dies_is_told(monkeypatch, tmp_path):
    stand_in(monkeypatch, "import os; print('half', flush=True); os._exit(9)")
    found = acceptance.run_one(3, str(tmp_path), False, 60.0)
    assert found["state"] == "FAIL" and "9" in found["measured"] and "half" in found["details"]


def test_ctrl_c_ends_the_check_as_well(monkeypatch, tmp_path):
    """它在自己的会话里，终端的 Ctrl-C 到不了它。"""
    stand_in(monkeypatch, "import time; time.sleep(100)")
    started, popen = [], acceptance.subprocess.Popen

    def interrupted(*arguments, **options):
        process = popen(*arguments, **options)
        process.communicate = lambda timeout: (_ for _ in ()).throw(KeyboardInterrupt)
        started.append(process)
        return process

    monkeypatch.setattr(acceptance.subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        acceptance.run_one(3, str(tmp_path), False, 60.0)
    assert started[0].wait(10) != 0


def test_the_rest_is_left_when_no_kernel_runs(monkeypatch, capsys):
    made = []

    def run_one(number, *_):
        made.append(number)
        return {"state": "FAIL" if number == 2 else "PASS", "measured": "", "numbers": {}}

    monkeypatch.setattr(acceptance, "run_one", run_one)
    results = acceptance.run_all(list(CHECKS)[:5], "", False)
    assert made == [1, 2] and [r["state"] for r in results[2:]] == ["SKIP"] * 3


def test_unknown_words_print_the_help(capsys):
    assert acceptance.main(["--nope"]) == 2
    assert RESULT not in capsys.readouterr().out
