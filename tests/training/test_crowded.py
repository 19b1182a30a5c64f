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


def settings(accum=8, resume="auto"):
    resolved = {"DROPOUT": 0.1, "WEIGHT_DECAY": 0.1, "GROW_AT": 0.0, "SAMPLED_SOFTMAX": 2000}
    return Settings.pick({**config.values(), **resolved, "ACCUM_STEPS": accum, "RESUME": resume})


@pytest.fixture(autouse=True)
def crowd(monkeypatch):
    """四个线程的机器，旁边忙着。"""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(threads, "busy_share", lambda: 0.9)


@pytest.mark.parametrize(
    ("accum", "cores", "count"),
    [(8, 4, 4), (8, 6, 4), (12, 6, 6), (3, 4, 3), (8, 8, 8), (8, 12, 8), (2, 3, 2)],
)
def test_the_micro_batches_are_divided_evenly(monkeypatch, accum, cores, count):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    said = crowded.advice(settings(accum), LONG)
    assert f"-m torch.distributed.run --nproc_per_node={count} train_gpt_ddp.py" in said
    assert "OMP_NUM_THREADS=1" in said and f"{count} 倍" in said


def test_going_on_must_not_start_anew():
    assert "去掉 --RESUME=off" in crowded.advice(settings(resume="off"), LONG)
    assert "RESUME" not in crowded.advice(settings(), LONG)


def test_nothing_to_say(monkeypatch):
    assert crowded.advice(settings(), crowded.SOON - 1) == ""  # 快练完了
    assert crowded.advice(settings(), LONG, world=2) == ""  # 已经是几个进程
    for accum in (1, 2, 5):  # 分不出去，或一半的核要闲着
        assert crowded.advice(settings(accum), LONG) == ""
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
    assert ["nproc_per_node" in text for text in said] == [False, True]
