"""CPU 上旁边有别的程序在忙时说的话：只在换了真会快的时候说，说一次。"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import config
from support import threads
from training import crowded, reporter
from training.settings import Settings

LONG = 2 * crowded.SOON


def settings(accum=8):
    resolved = {"DROPOUT": 0.1, "WEIGHT_DECAY": 0.1, "GROW_AT": 0.0, "SAMPLED_SOFTMAX": 2000}
    return Settings.pick({**config.values(), **resolved, "ACCUM_STEPS": accum})


@pytest.fixture(autouse=True)
def crowd(monkeypatch):
    """四个线程的机器，旁边忙着。"""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(threads, "busy_share", lambda: 0.9)


def test_one_process_for_each_thread_or_micro_batch():
    assert "torchrun --nproc_per_node=4 train_gpt_ddp.py" in crowded.advice(settings(), LONG)
    assert "--nproc_per_node=2 " in crowded.advice(settings(accum=2), LONG)


def test_nothing_to_say(monkeypatch):
    assert crowded.advice(settings(), crowded.SOON - 1) == ""  # 快练完了
    assert crowded.advice(settings(), LONG, world=2) == ""  # 已经是几个进程
    assert crowded.advice(settings(accum=1), LONG) == ""  # 分不出去
    monkeypatch.setattr(threads, "busy_share", lambda: 0.1)
    assert crowded.advice(settings(), LONG) == ""
    monkeypatch.setattr(threads, "busy_share", lambda: 0.9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert crowded.advice(settings(), LONG) == ""


def test_said_once_with_the_forecast(monkeypatch):
    said = []
    here = SimpleNamespace(update=0, seconds=0.0, tokens=0)
    run = SimpleNamespace(
        position=here,
        settings=settings(),
        machine=SimpleNamespace(device=torch.device("cpu")),
        ranks=SimpleNamespace(world_size=1),
        voice=SimpleNamespace(say=said.append),
    )
    monkeypatch.setattr(reporter.growth, "left", lambda _: 1000)
    monkeypatch.setattr(reporter.validation, "left", lambda _: 0)
    spoken = reporter.Reporter(run)
    spoken._began = -1e9
    here.update, here.seconds, here.tokens = 10, 60.0, 1000
    spoken.foretell()
    spoken.foretell()
    assert ["torchrun" in text for text in said] == [False, True]
