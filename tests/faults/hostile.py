"""恶意的文件：泡菜炸弹、压缩炸弹、谎报的大小、嵌得很深的 JSON、封好的错类型、管道与设备。"""

from __future__ import annotations

import json
import os
import random
import struct
import zipfile
from pathlib import Path

import torch

import checkpoint
from support import artefacts, container
from tests.faults import outcome, sabotage
from tests.faults.tally import TOLD, WRONG, Tally, judge
from tests.faults.workshop import TRAIN, Workshop, run, swift

_MEMORY = 6 << 30  # 子进程的地址空间至多这么多
JUNK = (
    None, True, 0, -1, 1 << 70, 0.5, float("nan"), float("inf"), "", "x", "诗", "\ud800", "\0", [],
    [[]], {}, {"a": 1}, [None], ["x"] * 3, {"": None}, "9" * 5000, -(1 << 70),
)  # fmt: skip


class Bomb:
    """解开时会执行命令的泡菜。"""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def _raw_pickle(path: Path, rng: random.Random) -> None:
    mark = str(path.parent / "EXPLODED").encode("utf-8")
    path.write_bytes(b"cos\nsystem\n(S'touch " + mark + b"'\ntR.")


def _torch_pickle(path: Path, rng: random.Random) -> None:
    torch.save({"version": 1, "weights": Bomb(path.parent / "EXPLODED")}, path)


def _zip_bomb(path: Path, rng: random.Random) -> None:
    """几百 KB 解成几百 MB。"""
    name = f"archive/{rng.choice(('data.pkl', 'data/0', 'version'))}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(name, bytes(1 << 28))


def _claimed(path: Path, rng: random.Random) -> None:
    """谎报的头部长度。"""
    size = rng.choice((0, 1, 1 << 20, (1 << 32) - 1))
    path.write_bytes(struct.pack("<8sII", b"POEMDATA", 1, size) + b"{" * 100)


def _deep(path: Path, rng: random.Random) -> None:
    depth = rng.choice((1000, 100_000))
    left, right = rng.choice((("[", "]"), ('{"a":', "}")))
    text = left * depth + ("1" if left != "[" else "") + right * depth
    path.write_text(rng.choice(("", "[", '{"output": ')) + text, encoding="utf-8")


def _numbers(path: Path, rng: random.Random) -> None:
    path.write_text(rng.choice(("9" * 6000, "[" + "1," * 9999 + "1]", "1e999", "NaN", "-")))


def _huge_array(path: Path, rng: random.Random) -> None:
    """头部封得好好的，数组却谎报大小。"""
    kind = container.Kind(b"POEMDATA", 1, "")
    header = {name: rng.choice(JUNK) for name in ("tokenizer", "prompt_kinds", "n_train", "n_val")}
    header["max_seq_len"] = rng.choice((64, 1 << 62, -1))
    length = rng.choice((1 << 62, -1, 1 << 40, "x", None))
    header["arrays"] = {"tokens": {"dtype": "uint16", "length": length, "offset": 0, "sha256": ""}}
    header["bytes"] = rng.choice((0, 1 << 62, -5, 128))
    try:
        content = json.dumps(header, sort_keys=True).encode("ascii")
    except ValueError:
        content = b"{}"
    import hashlib

    header["fingerprint"] = hashlib.sha256(content).hexdigest()
    text = json.dumps(header).encode("utf-8")
    path.write_bytes(struct.pack("<8sII", kind.magic, 1, len(text)) + text + bytes(512))


def _folder(path: Path, rng: random.Random) -> None:
    path.mkdir()


def _pipe(path: Path, rng: random.Random) -> None:
    os.mkfifo(path)


def _device(path: Path, rng: random.Random) -> None:
    path.symlink_to(rng.choice(("/dev/zero", "/dev/full", "/dev/null", "/dev/random")))


def _loop(path: Path, rng: random.Random) -> None:
    path.symlink_to(path.name)


def _dangling(path: Path, rng: random.Random) -> None:
    path.symlink_to("nowhere")


def _other(path: Path, rng: random.Random) -> None:
    """别的文件改成了这个名字。"""
    others = [each for each in path.parent.iterdir() if each.is_file() and each != path]
    path.write_bytes(rng.choice(sorted(others)).read_bytes())


KINDS = (_raw_pickle, _torch_pickle, _zip_bomb, _claimed, _deep, _numbers, _huge_array, _folder)
KINDS += (_pipe, _device, _loop, _dangling, _other)
_TRAIN = ("train_gpt.py", *TRAIN, "--TRAIN_ITER=28")
# 名字 → 哪些脚本读它
TARGETS = {
    artefacts.CHECKPOINT: (_TRAIN, ("infere.py", "--CHECKPOINT=checkpoint.bin")),
    artefacts.CHECKPOINT_PREVIOUS: (_TRAIN, ("quantize.py", "--CHECKPOINT=checkpoint.prev.bin")),
    artefacts.BEST_MODEL: (("infere.py",), ("quantize.py",), ("export.py", "--FORMAT=gguf")),
    artefacts.MODEL_INT8: (("infere.py", "--CHECKPOINT=model_int8.bin"), ("quantize.py",)),
    artefacts.DATASET: (_TRAIN, ("evaluate.py", "--SAMPLES=1"), ("train_dataset_one.py",)),
    artefacts.TOKENIZER_HUG: (("train_dataset_one.py",), ("train_BPEtokennizer.py",)),
    artefacts.POEMS: (("hug_face_tokenizer.py",), ("train_dataset_all.py",), ("data_clean.py",)),
    artefacts.CLEAN_REPORT: (("hug_face_tokenizer.py",), ("data_clean.py",)),
    artefacts.COPY_INDEX: (("evaluate.py", "--SAMPLES=1"),),
    artefacts.TRAIN_LOG: (_TRAIN,),
    artefacts.SAMPLES: (_TRAIN,),
    artefacts.RUN_INFO: (_TRAIN,),
    artefacts.LOCK: (("quantize.py",),),
}


def one(shop: Workshop, tally: Tally, rng: random.Random) -> None:
    """一个恶意的文件顶着一个产物的名字，读它的脚本（或 diagnose）。"""
    trial, name, kind = shop.copy(shop.whole), rng.choice(list(TARGETS)), rng.choice(KINDS)
    path = trial / name
    if path.exists():
        path.unlink()
    kind(path, rng)
    words = rng.choice((*TARGETS[name], ("diagnose.py",)))
    memory = sabotage.limit(_MEMORY, "AS")
    code, text = run(words, trial, sabotage.both(swift, memory))
    verdict, detail = judge(code, text, (0, 1))
    if (trial / "EXPLODED").exists():
        verdict, detail = WRONG, "执行了里面的命令"
    tally.add("恶意的文件", verdict, f"{words[0]} {name} {kind.__name__[1:]}：{detail}")
    shop.clear(trial)


def mistyped(shop: Workshop, tally: Tally, rng: random.Random) -> None:
    """封好的检查点，里面一项是别的类型。"""
    trial = shop.copy(shop.whole)
    name = rng.choice((artefacts.CHECKPOINT, artefacts.BEST_MODEL, artefacts.MODEL_INT8))
    state = dict(checkpoint.load(trial / name))
    where = _replace(state, rng)
    checkpoint.save(trial / name, state)
    mark = outcome.raw(trial / name)
    (trial / artefacts.CHECKPOINT_PREVIOUS).unlink()
    readers = (_TRAIN, ("infere.py",), ("quantize.py",), ("diagnose.py",))
    if name == artefacts.MODEL_INT8:
        readers = (("infere.py", "--CHECKPOINT=model_int8.bin"),)
    words = rng.choice(readers)
    memory = sabotage.limit(_MEMORY, "AS")
    code, text = run(words, trial, sabotage.both(swift, memory))
    verdict, detail = judge(code, text, (0, 1))
    if verdict == TOLD and mark not in outcome.hashes(trial):
        verdict, detail = WRONG, "说不能用，却动了它"
    tally.add("封好的错类型", verdict, f"{words[0]} {name} {where}：{detail}")
    shop.clear(trial)


def _replace(value: dict, rng: random.Random) -> str:
    """随便哪一层的一项换成别的、去掉或多一项；返回是哪一项。"""
    key = rng.choice(list(value))
    if isinstance(value[key], dict) and value[key] and rng.random() < 0.7:
        value[key] = dict(value[key])
        return f"{key}.{_replace(value[key], rng)}"
    kind = rng.random()
    if kind < 0.15:
        del value[key]
        return f"{key} 去掉"
    if kind < 0.25:
        value["多出来的"] = rng.choice(JUNK)
        return "多一项"
    junk = rng.choice((*JUNK, torch.zeros(3), torch.zeros(0), torch.ones(2, 2)))
    value[key] = junk
    return f"{key}={str(junk)[:40]!r}"
