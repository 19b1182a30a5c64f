"""训练测试共用：小数据集、小配置、直接调用 loop.train。"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

import torch

import checkpoint
import config
import dataset
from support import files, hardware
from tests.tiny_tokenizer import train as train_tokenizer
from training import loop, runlog, samples
from training.run import Run

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "MAX_SEQ_LEN": 64,
    "GPT_DIM": 32,
    "GPT_HEAD": 2,
    "GPT_FF": 64,
    "GPT_BLOCKS": 2,
    "TRAIN_ITER": 35,  # 12 次更新，最后一次只有 2 个微批次
    "ACCUM_STEPS": 3,
    "DROPOUT": 0.1,
    "WEIGHT_DECAY": 0.1,
    "BATCH_SIZE": 4,
    "EVAL_EVERY": 9,
    "SAVE_EVERY": 6,
    "SAMPLE_EVERY": 12,
    "MAX_NEW_TOKENS": 8,
    "DEVICE": "cpu",
    "DTYPE": "fp32",
    "COMPILE": "off",
}


@contextlib.contextmanager
def quick(poem: str | None = None) -> Iterator[None]:
    """开场不测矩阵乘峰值，保存时不画图；给了 poem，途中的示例诗就是它。"""
    with contextlib.ExitStack() as held:
        held.enter_context(mock.patch.object(hardware, "measure_peak", lambda *_: 1e11))
        held.enter_context(mock.patch.object(runlog, "draw", lambda *_: False))
        if poem is not None:
            held.enter_context(mock.patch.object(samples, "poem", lambda *_, **__: poem))
        yield


def stop_before(monkeypatch: Any, *updates: int) -> None:
    """每次启动在给定的更新之前收到一次 Ctrl-C；都收过以后就练到头。"""
    waiting, real = list(updates), loop.one_update

    def one_update(run: Run, *parts: Any) -> dict:
        if waiting and run.position.update == waiting[0]:
            waiting.pop(0)
            run.stop.received = 2
        return real(run, *parts)

    monkeypatch.setattr(loop, "one_update", one_update)


def build_data(folder: Path, count: int = 60, vocab: int = 420, **options) -> Path:
    """自带诗的前 count 首 → folder/dataset.bin。"""
    poems = files.read_json(ROOT / "sample_poems.json")[:count]
    path = folder / "all_poems.json"
    path.write_text(json.dumps(poems, ensure_ascii=False), encoding="utf-8")
    tok = train_tokenizer(["\n\n".join(poem["para"]) for poem in poems], vocab)
    chosen = {"max_seq_len": SMALL["MAX_SEQ_LEN"], "val_share": 0.1, **options}
    dataset.build(path, tok, folder / "dataset.bin", **chosen)
    return folder / "dataset.bin"


def work_dir(folder: Path, data: Path) -> Path:
    """放好 dataset.bin 的工作目录。"""
    folder.mkdir(parents=True)
    shutil.copy(data, folder / "dataset.bin")
    return folder


def values(folder: Path, **changes) -> dict:
    """训练用的全部配置值。"""
    return {**config.values(), **SMALL, "WORK_DIR": str(folder), **changes}


def weights(folder: Path, name: str = "checkpoint.bin") -> dict:
    """练出的权重。"""
    return checkpoint.load(folder / name)["weights"]


def same_when_interrupted(monkeypatch: Any, folder: Path, data: Path, **changes) -> bool:
    """第 5 次更新之前停下再续训，与一口气练完的权重逐位相同。"""
    whole, halved = work_dir(folder / "whole", data), work_dir(folder / "halved", data)
    loop.train(values(whole, **changes))
    stop_before(monkeypatch, 5)
    assert loop.train(values(halved, **changes))["updates"] == 5
    loop.train(values(halved, **changes))
    resumed = weights(halved)
    return all(torch.equal(resumed[name], weight) for name, weight in weights(whole).items())
