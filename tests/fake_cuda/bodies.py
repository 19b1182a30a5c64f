"""在假显卡上跑的测试身体；各返回能写成 JSON 的 dict。一个子进程里全部做完，只导入一次。"""

from __future__ import annotations

import gc
import time
import traceback
from pathlib import Path

import torch

import checkpoint
from gpt import GPT, GPTConfig
from support import artefacts
from tests import small_run, tiny_model
from tests.fake_cuda import device
from tests.gpu.writing import CONTROLS
from training import loop, memory, optim, runlog
from writing.engine import Engine
from writing.poet import Poet
from writing.session import Session

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPE = {"vocab_size": 1200, "max_seq_len": 64, "dim": 64, "n_head": 2, "ff": 160, "n_block": 2}


def everything(folder: str, jobs: dict) -> dict:
    """jobs：名字 → [函数名, 参数]；一件出了错不碍着别的，结果里是 {"error": …}。"""
    runlog.draw = lambda *_: False
    small_run.build_data(Path(folder))
    found = {}
    for name, (function, options) in jobs.items():
        began = time.perf_counter()
        try:
            result = globals()[function](Path(folder), **options)
        except Exception:
            device.set_limit(None)
            result = {"error": traceback.format_exc()[-3000:]}
        found[name] = {"result": result, "seconds": time.perf_counter() - began}
    return found


# ── 训练 ──────────────────────────────────────────────────────────────


def training(folder: Path, name: str, changes: dict) -> dict:
    """训练一遍，再接着练两次更新。"""
    work = small_run.work_dir(folder / name, folder / artefacts.DATASET)
    values = small_run.values(work, DEVICE="cuda", **{"EVAL_EVERY": 1 << 20, **changes})
    device.attention_calls.clear()
    with device.Meter() as meter:
        result = loop.train(values)
    again = loop.train({**values, "TRAIN_ITER": changes["TRAIN_ITER"] + 6})
    chosen = checkpoint.load(work / artefacts.CHECKPOINT)["chosen"]
    return {
        **{key: result[key] for key in ("updates", "val_bpc", "skipped")},
        "resumed": again["updates"],
        "chosen": chosen,
        "mixed": meter.mixed,
        "syncs": {line: n for line, n in meter.syncs.items() if line.startswith("training/")},
        "attention": [[*key, count] for key, count in device.attention_calls.items()],
    }


def out_of_memory(folder: Path) -> dict:
    """显存只够一半多：分开算，学到的与不分时一样。"""
    changes = {"DEVICE": "cuda", "DROPOUT": 0.0, "TRAIN_ITER": 6, "INIT": "random"}
    changes["BATCH_SIZE"] = 32  # 太小的微批次里，补齐的 logits 占大半，分了也省不下
    changes.update(EVAL_EVERY=1 << 20, SAMPLE_EVERY=1 << 20)
    weights, splits, most = {}, {}, 0
    for name in ("room", "tight"):
        work = small_run.work_dir(folder / name, folder / artefacts.DATASET)
        gc.collect()
        if name == "tight":
            device.set_limit(device.live() + 0.7 * most)
        base = device.live()
        device.forget_peak()
        loop.train(small_run.values(work, **changes))
        most = device.peak() - base
        saved = checkpoint.load(work / artefacts.CHECKPOINT)
        weights[name], splits[name] = saved["weights"], saved["split"]
    device.set_limit(None)
    pairs = [(weights["tight"][name], value) for name, value in weights["room"].items()]
    error = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    return {"splits": splits, "error_of_weights": error}


# ── 一个微批次：核、字节、峰值 ────────────────────────────────────────


def micro_batch(
    folder: Path,
    rows: int,
    length: int,
    dtype: str,
    config: dict | None = None,
    plain: bool = False,
    **options,
) -> dict:
    """前向与反向的峰值字节、memory.simulate 的预测、核与读写的字节；plain：不用融合的核。"""
    shape = GPTConfig(**{**SHAPE, "dropout": 0.1, **(config or {})})
    update = memory.Update(shape, rows, length, rows * length, dtype, device="cuda", **options)
    forecast = memory.simulate(update)
    base = device.live()
    model = GPT(shape).to("cuda")
    model.configure(grad_checkpoint=update.grad_checkpoint, fused=False if plain else None)
    optimizers = optim.build(model, update.optimizer, 1e-3, 1e-3, 0.1, DTYPES[dtype])
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    with device.Meter() as stepping:
        optimizers.step(1.0)
    ids = torch.randint(3, shape.vocab_size, (rows, length)).cuda()
    where = torch.arange(rows * length).cuda()
    device.forget_peak()
    with device.flash_memory(), device.Meter() as meter:
        with torch.autocast("cuda", dtype=DTYPES[dtype], enabled=dtype != "fp32"):
            loss = model(ids, where, ids.flatten())
        (loss * 1.0).backward()
    return {
        "forecast": forecast,
        "peak": device.peak() - base,
        "kernels": meter.total,
        "step_kernels": stepping.total,
        "bytes": meter.bytes,
        "seconds": meter.seconds,
        "mixed": meter.mixed,
    }


# ── 写诗 ──────────────────────────────────────────────────────────────


def _poet(where: str, dtype: torch.dtype | None = None) -> Poet:
    tok = tiny_model.tokenizer()
    return Poet(tiny_model.model(tok.vocab_size).to(where), tok, dtype=dtype)


def _texts(poet: Poet, n: int = 1, **options) -> list:
    found = [""] * n
    request = poet.request("春天", **{"seed": 5, "max_new_tokens": 40, **options})
    for piece in poet.poems(request, n):
        found[piece.index] += piece.text
    return found


def chats(folder: Path) -> dict:
    """每种控制写一首，与 CPU 上的比；几首长短不一的同时写。"""
    card, cpu = _poet("cuda"), _poet("cpu")
    with device.Meter() as meter:
        mine = [_texts(card, **options) for options in CONTROLS] + [_texts(card, n=5)]
    theirs = [_texts(cpu, **options) for options in CONTROLS] + [_texts(cpu, n=5)]
    half = [_texts(_poet("cuda", dtype), n=2) for dtype in (torch.float16, torch.bfloat16)]
    return {
        "same": sum(a == b for a, b in zip(mine, theirs)),
        "count": len(mine),
        "half": half,
        "mixed": meter.mixed,
        "graphs": meter.graphs,
    }


def engine(folder: Path) -> dict:
    """服务的线程里同时写六首，中途取消一首。"""
    served = Engine(_poet("cuda"), max_rows=4)
    handles = [served.submit("春天", seed=n, max_new_tokens=8 + 3 * n) for n in range(6)]
    handles[2].cancel()
    texts = ["".join(handle) for handle in handles]
    served.close()
    return {"ended": [handle.finish_reason for handle in handles], "texts": texts}


def decoding(
    folder: Path, rows: int, ragged: bool, static: bool, config: dict | None = None
) -> dict:
    """一步写诗（前向与抽样）启动的核与搬运；ragged：长短不一；static：录成图。"""
    tok = tiny_model.tokenizer()
    shape = {**SHAPE, **(config or {}), "vocab_size": tok.vocab_size}
    model = GPT(GPTConfig(**shape)).to("cuda").eval()
    poet = Poet(model, tok)
    poet.decoder.static = static
    session = Session(poet.decoder, rows)
    for row in range(rows):
        question = "春天" * (1 + row if ragged else 1)
        request = poet.request(question, max_new_tokens=20, min_new_tokens=20)
        session.start([poet.row(request, row)])
    for _ in range(3):  # 第二步录图
        session.step()
    with device.Meter() as meter:
        session.step()
    return {
        "kernels": meter.total,
        "graphs": meter.graphs,
        "to_card": meter.to_card,
        "to_host": meter.to_host,
        "mixed": meter.mixed,
    }


# ── 别的脚本 ──────────────────────────────────────────────────────────


def scripts(folder: Path) -> dict:
    """evaluate、benchmark train、int8 的模型：都在显卡上走一遍，不混用设备。"""
    import evaluate
    from kernels import int8
    from training import timed

    work = small_run.work_dir(folder / "scripts", folder / artefacts.DATASET)
    poet = _poet("cuda")
    poems = [{"title": "春天", "author": "某", "para": ["花开在山坡上\n风吹过麦田"]}]
    weights = int8.quantize_weights(checkpoint.weights_of(_poet("cpu").model))
    with device.Meter() as meter:
        scored = evaluate.score(poet.model, poet.tok, poems, torch.device("cuda"))
        values = small_run.values(work, DEVICE="cuda", INIT="random")
        speed = timed.timed_run(values, 1.0).speed()
        small = checkpoint.rebuild_int8(poet.config, {"weights": weights}, "cuda").to("cuda")
        text = _texts(Poet(small, poet.tok))
    return {"scored": scored, "updates": speed["updates"], "text": text, "mixed": meter.mixed}
