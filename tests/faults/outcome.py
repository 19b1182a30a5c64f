"""一个目录里的产物是不是完好、与没被打扰的是不是一样。"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import torch

import checkpoint
import dataset
from support import artefacts
from support.console import UserError

TIMES = ("tokens_per_s", "seconds")  # 记录里与钟表有关的列
STATES = (artefacts.CHECKPOINT, artefacts.CHECKPOINT_PREVIOUS, artefacts.BEST_MODEL)
STATES += (artefacts.MODEL_INT8, artefacts.IMPORTED)
_JSON = (artefacts.POEMS, artefacts.TOKENIZER_HUG, artefacts.TOKENIZER_BPE)


def digest(value) -> str:
    """由张量和普通类型组成的值 → SHA-256。"""
    found = hashlib.sha256()

    def feed(item):
        if isinstance(item, dict):
            for key in sorted(item, key=str):
                found.update(repr(key).encode("utf-8"))
                feed(item[key])
        elif isinstance(item, (list, tuple)):
            for member in item:
                feed(member)
        elif hasattr(item, "numpy"):
            found.update(item.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(item).encode("utf-8"))

    feed(value)
    return found.hexdigest()


def content(path: Path) -> str:
    """一个产物的内容的摘要；与钟表、路径有关的不算。读不了时抛 UserError 或 ValueError。"""
    if path.is_dir():
        return digest({each.name: content(each) for each in path.iterdir()})
    if path.name in STATES:
        return digest(_timeless(checkpoint.load(path)))
    if path.name == artefacts.TRAIN_LOG:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return digest([{k: v for k, v in row.items() if k not in TIMES} for row in rows])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(state: dict) -> dict:
    """检查点里与钟表、目录无关的。"""
    state = {name: value for name, value in state.items() if name != "config"}
    position = state.get("position")
    if position:
        left = {k: v for k, v in position.items() if k not in ("seconds", "pending")}
        state = {**state, "position": left}
    return state


def contents(folder: Path, names: tuple) -> dict:
    """names 里在 folder 里有的 → 摘要。"""
    return {name: content(folder / name) for name in names if (folder / name).exists()}


def half_made(folder: Path) -> list:
    """顶着真名字、却不完好的产物。"""
    found = []
    for path in sorted(folder.iterdir()):
        try:
            _must_be_sound(path)
        except (UserError, ValueError, OSError) as error:
            found.append(f"{path.name}（{type(error).__name__}）")
    return found


def _must_be_sound(path: Path) -> None:
    if path.name in STATES:
        checkpoint.load(path)
    elif path.name == artefacts.DATASET:
        with dataset.load(path) as data:
            if data.verify():
                raise ValueError("校验和不符")
    elif path.name in _JSON:
        json.loads(path.read_text(encoding="utf-8"))


def leftovers(folder: Path) -> list:
    """不该留下的：半成品，锁。"""
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")] + [
        name for name in (artefacts.LOCK,) if (folder / name).exists()
    ]


def hashes(folder: Path) -> set:
    """folder 里各文件（与子目录）的摘要，不论叫什么名字。"""
    return {raw(path) for path in folder.iterdir()}


def raw(path: Path) -> str:
    """文件或目录的字节的摘要。"""
    if path.is_dir():
        return digest({each.name: raw(each) for each in path.iterdir()})
    return hashlib.sha256(path.read_bytes()).hexdigest()
