"""演习的一小段：几秒钟，固定的种子；长的是 python -m tests.faults。"""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tests.faults import asks, commands, foreign, manual, tally
from tests.faults.workshop import CAN_FORK, ROOT

SEED = "suite"


def many(one, name, count):
    for number in range(count):
        one(random.Random(f"{SEED} {name} {number}"))


@pytest.fixture
def score():
    found = tally.Tally()
    yield found
    assert found.bad == 0, found.examples
    assert sum(found.tried(part) for part in found.counts) > 0


def test_any_command_line_is_understood_or_refused(score):
    many(commands.Options(score).one, "options", 400)


def test_any_request_is_read_or_refused(score):
    many(lambda rng: asks.parse(score, rng), "parse", 3000)


def test_any_question_gets_a_poem_or_a_reason(score, tmp_path):
    many(asks.Chats(tmp_path, score).one, "chat", 250)


def test_any_poems_are_cleaned_or_refused(score, tmp_path):
    many(foreign.Foreign(tmp_path, score).one, "foreign", 60)


@pytest.mark.skipif(not manual.INSTALLED, reason="没有安装 schemathesis")
def test_the_server_keeps_to_its_manual(score, tmp_path):
    manual.ask(tmp_path, score, 5, 1)


@pytest.mark.skipif(not CAN_FORK, reason="别的系统上一次要几秒，太慢")
def test_a_slice_of_the_drill():
    """真的杀死、打断、坏磁盘、两个一起写；在自己的进程里，免得分出来的带着别的测试的线程。"""
    pytest.importorskip("safetensors", reason="没有安装 safetensors，演习里有导出")
    options = ["--ONLY=kills,signals,disk,two,mistyped", "--TIMES=2", f"--SEED={SEED}"]
    command = [sys.executable, "-m", "tests.faults", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "合计" in done.stdout and "坏的 0 次" in done.stdout


def test_the_tally_knows_good_from_bad():
    assert tally.judge(0, "好") == (tally.FINE, "")
    assert tally.judge(1, "出错了：磁盘满了") == (tally.TOLD, "")
    assert tally.judge(1, "no word")[0] == tally.WRONG
    assert tally.judge(1, "Traceback (most recent call last):\n出错")[0] == tally.TRACE
    assert tally.judge(None, "还在等")[0] == tally.WRONG
    found = tally.Tally()
    found.add("甲", tally.FINE)
    found.add("甲", tally.LOST, "没有了")
    assert found.bad == 1 and "| 合计 | 2    | 0      | 1    | 1 " in found.table()
