"""验收 15、16：写诗与服务。"""

from __future__ import annotations

import importlib.util
import threading
import time

import torch

from tests import tiny_model
from tests.gpu.stage import FAIL, PASS, WARN, Outcome, Stage, judge
from training import loop
from writing.engine import Engine
from writing.poet import Poet

HAS_PINYIN = importlib.util.find_spec("pypinyin") is not None
CONTROLS = (  # 每一种控制至少用一次
    {},
    {"lines": 3},
    {"length": 30},
    {"first_line": "春天来了"},
    {"acrostic": "春夏"},
    *([{"rhyme": "江阳", "lines": 2}] if HAS_PINYIN else []),
    {"no_repeat_ngram": 3},
    {"top_p": 0.8, "min_p": 0.05},
    {"temperature": 0.0},
    {"context": "slide", "max_new_tokens": 150},
)


def _poet(device: torch.device, max_seq_len: int = 128) -> Poet:
    tok = tiny_model.tokenizer()
    return Poet(tiny_model.model(tok.vocab_size, max_seq_len).to(device), tok)


def decoding(stage: Stage) -> Outcome:
    """15 一首、八首、六十四首同时写有多快；贪心写的与 CPU 一样；每种控制都能用。"""
    count = stage.pick(100, 24)
    mine, theirs = _greedy(_poet(stage.device), count), _greedy(_poet(torch.device("cpu")), count)
    same = sum(a == b for a, b in zip(mine, theirs))
    for options in CONTROLS:
        _write(_poet(stage.device), 1, **{"max_new_tokens": 40, **options})
    model = stage.model().eval()
    speeds = {}
    for rows in stage.pick((1, 8, 64), (1, 3)):
        speeds[rows] = _speed(model.to(stage.device), rows, stage.pick(100, 4))
    cpu = _speed(model.to("cpu"), 1, stage.pick(100, 4))
    shown = " / ".join(f"{speed:.0f}" for speed in speeds.values())
    outcome = Outcome(
        PASS if same >= 0.95 * count else FAIL,
        f"{same}/{count} 个相同；{'/'.join(map(str, speeds))} 首 {shown} token/s，CPU {cpu:.0f}"
        + ("" if HAS_PINYIN else "；没有 pypinyin，没有试押韵"),
        "≥ 95%；不慢于 CPU，三倍以上才值得",
        {"same": same, "speeds": {str(rows): speed for rows, speed in speeds.items()}, "cpu": cpu},
    )
    if not stage.fake and outcome.state == PASS and speeds[1] < 3 * cpu:
        outcome.state = WARN if speeds[1] >= cpu else FAIL
    return outcome


def _write(poet: Poet, rows: int, **options) -> list:
    """写完 rows 首，返回各首的 token。"""
    request = poet.request("一只鸟在想方向", **{"seed": 1, **options})
    found = {}
    for piece in poet.poems(request, rows):
        found[piece.index] = piece.row.tokens
    return [found[index] for index in sorted(found)]


def _greedy(poet: Poet, count: int) -> list:
    return _write(poet, 1, temperature=0.0, max_new_tokens=count, min_new_tokens=count)[0]


def _speed(model: torch.nn.Module, rows: int, count: int) -> float:
    """每秒多少 token；第一遍是热身。"""
    from benchmark import our_runner

    run = our_runner(model, next(model.parameters()).device)
    run(rows, min(count, 5))
    began = time.perf_counter()
    run(rows, count)
    return rows * count / (time.perf_counter() - began)


def serving(stage: Stage) -> Outcome:
    """16 主线程训练着，另一个线程里同时写十六首；都写完，没有出错，显存还回来。"""
    served = Engine(_poet(stage.device))
    trained: list = []
    values = stage.values("serving", TRAIN_ITER=stage.pick(16, 4), RESUME="off", INIT="random")
    trainer = threading.Thread(target=lambda: trained.append(loop.train(values)), daemon=True)
    before = torch.cuda.memory_allocated()
    trainer.start()
    handles = [
        served.submit("春天", seed=number, max_new_tokens=stage.pick(60, 8)) for number in range(16)
    ]
    handles[3].cancel()
    texts = ["".join(handle) for handle in handles]
    trainer.join(stage.pick(60, 200))
    served.close()
    ended = sum(handle.finish_reason is not None for handle in handles)
    grown = (torch.cuda.memory_allocated() - before) >> 20
    good = ended == 16 and bool(trained) and any(texts)
    return judge(
        good, f"写完 {ended}/16，训练{'完成' if trained else '没有完成'}，多占 {grown} MB", "全部"
    )
