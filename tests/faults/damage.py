"""文件坏了：每一种文件翻一位、截断、抹零、接上别的；读它的代码要么说坏了，要么读出来的与原来一样。"""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path

import checkpoint
import dataset
from poems import collection
from support import artefacts, files
from support.console import UserError
from tests.faults import outcome
from tests.faults.tally import FINE, TOLD, TRACE, WRONG, Tally, judge, problem, random_bytes
from tests.faults.workshop import Workshop, run, swift
from tokenizer import HFTokenizer
from web import chat_api, live
from writing import originality


def _checkpoint(path: Path) -> str:
    return outcome.digest(checkpoint.load(path))


def _dataset(path: Path) -> str:
    with dataset.load(path) as data:
        wrong = data.verify()
        if wrong:
            raise UserError("、".join(wrong))
        return data.fingerprint


def _tokenizer(path: Path) -> str:
    try:
        return HFTokenizer.load(path).fingerprint
    except (OSError, ValueError) as error:  # 各脚本都把它们说成一句话
        raise UserError(str(error)) from error


def _poems(path: Path) -> str:
    """变过要提醒；没有提醒时与原来相同。"""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        collection.find_cleaned(str(path.parent))
        poems = list(collection.iter_poems(path))
    if "变过" in said.getvalue():
        raise UserError(said.getvalue())
    return outcome.digest(poems)


def _copies(path: Path) -> str:
    """坏了就重建，所以总与原来相同。"""
    with contextlib.redirect_stderr(io.StringIO()):
        index = originality.load(str(path.parent))
    return outcome.digest([bytes(index.units), index.longest_copy("一只鸟在想方向").describe()])


def _status(path: Path) -> str:
    """训练页：记录坏了也要有一页能看。"""
    chat_api.to_json(live.status(str(path.parent), now=0.0))
    return ""


READERS = {
    artefacts.CHECKPOINT: _checkpoint,
    artefacts.BEST_MODEL: _checkpoint,
    artefacts.MODEL_INT8: _checkpoint,
    artefacts.DATASET: _dataset,
    artefacts.TOKENIZER_HUG: _tokenizer,
    artefacts.TOKENIZER_BPE: _tokenizer,
    artefacts.POEMS: _poems,
    artefacts.COPY_INDEX: _copies,
    artefacts.TRAIN_LOG: _status,
    artefacts.SAMPLES: _status,
    artefacts.RUN_INFO: _status,
}
# 这些读起来最快，也最要紧，多试
_OFTEN = (artefacts.CHECKPOINT, artefacts.BEST_MODEL, artefacts.MODEL_INT8, artefacts.DATASET)
_OFTEN += (artefacts.TOKENIZER_HUG, artefacts.TOKENIZER_BPE, artefacts.POEMS)


def spoil(data: bytes, rng: random.Random) -> tuple:
    """弄坏一份内容 → (怎样坏的, 新的内容)。"""
    place = rng.randrange(len(data) or 1)
    how = rng.choices(("翻一位", "截断", "抹零", "接上", "乱写", "换位"), (12, 3, 2, 1, 2, 1))[0]
    if how == "翻一位" and data:
        bit = 1 << rng.randrange(8)
        return f"{how} {place}:{bit}", data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
    if how == "截断":
        return f"{how} {place}", data[:place]
    size = rng.randrange(1, 600)
    if how == "抹零":
        return f"{how} {place}+{size}", data[:place] + bytes(size) + data[place + size :]
    if how == "接上":
        return f"{how} {size}", data + random_bytes(rng, size)
    if how == "乱写":
        return f"{how} {place}+{size}", data[:place] + random_bytes(rng, size) + data[
            place + size :
        ]
    other = rng.randrange(len(data) or 1)
    return f"{how} {place}、{other}", data[:place] + data[other : other + size] + data[
        place + size :
    ]


class Spoiled:
    """一个目录里的文件轮流弄坏再换回好的。"""

    def __init__(self, shop: Workshop, tally: Tally) -> None:
        self.shop, self.tally = shop, tally
        self.folder = shop.copy(shop.whole)
        originality.load(str(self.folder))
        self.good = {name: (self.folder / name).read_bytes() for name in READERS}
        self.mark = {name: read(self.folder / name) for name, read in READERS.items()}

    def one(self, rng: random.Random) -> None:
        """弄坏一个文件，读。"""
        name = rng.choice(_OFTEN) if rng.random() < 0.8 else rng.choice(list(READERS))
        how, data = spoil(self.good[name], rng)
        path = self.folder / name
        path.write_bytes(data)
        try:
            same = READERS[name](path) == self.mark[name]
            verdict, detail = (FINE, "") if same else (WRONG, "没有说，读出来的却不同")
        except UserError as error:
            verdict, detail = TOLD, str(error)
        except Exception as error:
            verdict, detail = TRACE, problem(error)
        self.tally.add(f"坏文件 {name}", verdict, f"{how}：{detail}")
        path.write_bytes(self.good[name])


# 各脚本读哪些文件；坏了要么做成，要么一句话，别的文件不动
USERS = {
    ("train_gpt.py",): (*outcome.STATES[:3], artefacts.DATASET, artefacts.TRAIN_LOG),
    ("infere.py",): (artefacts.BEST_MODEL,),
    ("quantize.py",): (artefacts.BEST_MODEL,),
    ("export.py", "--FORMAT=hf"): (artefacts.BEST_MODEL,),
    ("export.py", "--FORMAT=checkpoint"): (artefacts.EXPORT_HF,),
    ("evaluate.py", "--SAMPLES=2"): (artefacts.BEST_MODEL, artefacts.DATASET, artefacts.COPY_INDEX),
    ("hug_face_tokenizer.py", "--VOCAB_SIZE=400"): (artefacts.POEMS, artefacts.CLEAN_REPORT),
    ("train_dataset_one.py",): (artefacts.POEMS, artefacts.TOKENIZER_HUG, artefacts.DATASET),
    ("data_clean.py", "--RAW_DATA=nowhere"): (artefacts.POEMS, artefacts.CLEAN_REPORT),
    ("diagnose.py",): (*READERS, artefacts.RUN_INFO, artefacts.SAMPLES),
}


def scripts(shop: Workshop, tally: Tally, rng: random.Random) -> None:
    """弄坏一个文件，运行读它的脚本。"""
    words = rng.choice(list(USERS))
    trial = shop.copy(shop.whole)
    path = trial / rng.choice(USERS[words])
    if path.is_dir():
        path = rng.choice(sorted(path.iterdir()))
    if not path.exists():
        files.write_text(path, "")
    how, data = spoil(path.read_bytes(), rng)
    path.write_bytes(data)
    before = {each.name: outcome.raw(each) for each in trial.iterdir()}
    extra = _train_words() if words[0] == "train_gpt.py" else ()
    code, text = run((*words, *extra), trial, swift)
    verdict, detail = judge(code, text, allowed=(0, 1))
    if verdict == TOLD:
        here = outcome.hashes(trial)
        for name in (artefacts.COPY_INDEX, artefacts.RUN_INFO):  # 坏了就重建；开训就换的计划
            before.pop(name, None)
        lost = [name for name, mark in before.items() if mark not in here]
        if lost:
            verdict, detail = WRONG, f"说不能做，却动了 {'、'.join(lost)}：{text[-200:]}"
    name = f"{words[0]} {path.name} {how}"
    tally.add("脚本读坏文件", verdict, f"{name}：{detail}")
    shop.clear(trial)


def _train_words() -> tuple:
    from tests.faults.workshop import TRAIN

    return (*TRAIN, "--TRAIN_ITER=32")
