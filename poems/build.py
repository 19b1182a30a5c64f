"""把诗编码成训练文档：先看一遍谁与谁不可分开，再逐首编码，训练与验证两边各自攒着。"""

from __future__ import annotations

import array
import dataclasses
import itertools
import random
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, NamedTuple

import numpy as np

from poems import chat_format, collection, dedup, near, wording
from support import console, container
from support.columns import Column
from support.console import UserError

DOCUMENT_ARRAYS = {  # 每篇文档一个数
    "poem_ids": "int32",  # 诗在 all_poems.json 里的序号
    "chars": "int32",  # 训练到的正文字数
    "trained": "int32",  # 训练的 token 数
    "kinds": "uint8",  # 提示词种类在 prompt_kinds 里的序号
    "whole": "uint8",  # 1 = 整首诗连同完整的提示词都在这一篇里
}
_BATCH = 512  # 一批编码这么多首诗
_SOME = 1 << 16  # 挑验证诗时，一次看多少首的字数
_VAL_SLACK = 10  # 验证诗的字数至多是 VAL_SHARE 的这么多倍
_VAL_MOST = 0.5  # 也不超过全部的一半
TRAIN, VAL = 1, 2  # 一首诗以前在哪一边；0 = 没有见过

Poems = Iterable[dict]


@dataclass(frozen=True)
class Settings:
    """数据集怎样建；原样写进头部。"""

    seed: int
    val_share: float
    max_seq_len: int
    prompts_per_poem: int
    shares: dict[str, float] | None  # 各种提示词的比例；None = 只用题目


def batches(poems: Poems) -> Iterator[list[dict]]:
    """每 _BATCH 首一批。"""
    batch = []
    for poem in poems:
        batch.append(poem)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


# ── 第一遍：查重，分训练与验证 ────────────────────────────────────────


def survey(path: Path, found: Survey) -> None:
    """读第一遍，记进 found。"""
    size = path.stat().st_size if path.is_file() else 0
    with console.progress(size, "查重", "B", unit_scale=True) as bar:
        for poems in batches(collection.iter_poems(path, bar.update)):
            found.add(poems)
    if not len(found):
        raise UserError(f"{path} 里一首诗也没有\n请运行：python data_clean.py")


class Survey:
    """每首诗的题目、作者、字数与签名，都在 folder 里的临时文件里；用完请 close()。"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = Column("uint8", folder)  # 题目、作者、题目、作者……的字节
        self.offsets = Column("int64", folder)  # 各段文字的起点，与末尾
        self.chars = Column("int64", folder)  # 各诗正文的字数
        self.digests = Column("uint64", folder)  # 各诗正文的摘要，认出同一首诗；没有文字的是 0
        self._signatures = Column("uint16", folder, dedup.HASHES)
        self._part_keys = Column("uint64", folder)
        self._part_marks = Column("uint8", folder)
        self.offsets.append(0)

    def __len__(self) -> int:
        return len(self.chars)

    def close(self) -> None:
        """丢掉临时文件。"""
        columns = (self.names, self.offsets, self.chars, self.digests)
        for column in (*columns, self._signatures, self._part_keys, self._part_marks):
            column.close()

    def add(self, poems: list[dict]) -> None:
        """再记下一批。"""
        for poem in poems:
            for text in (poem["title"], poem["author"]):
                self.names.extend(np.frombuffer(text.encode("utf-8", "replace"), np.uint8))
                self.offsets.append(len(self.names))
            key, mark = dedup.part_key(poem["title"], poem["author"])
            self._part_keys.append(key)
            self._part_marks.append(mark)
        bodies = [chat_format.body(poem) for poem in poems]
        normal = [dedup.normal_form(body) for body in bodies]
        self._signatures.extend(dedup.signature(normal))
        for body, text in zip(bodies, normal):
            self.chars.append(len(body))
            self.digests.append(dedup.digest(text) if text else 0)

    def groups(self) -> near.Groups:
        """不可分开的诗同组。"""
        return near.split_groups(self._signatures, self._part_keys, self._part_marks, self.folder)


def choose_val(
    groups: near.Groups,
    share: float,
    seed: int,
    chars: Column,
    before: np.ndarray | None = None,
) -> np.ndarray:
    """返回 bool (n,)，True 为验证诗；整组同进退，约占 share，至少一首。

    chars (n,) 是各诗的字数：验证诗的字数也有限，长诗不会把大半诗集带到验证里。
    before (n,) 是各诗以前在哪一边（VAL、TRAIN，新的诗是 0）：有旧诗的组留在原来那边，
    两边都有时算验证诗；只在全是新诗的组里挑还缺的。
    share 为 0，或分不开（只有一组，或每组都太大）时全为 False。
    """
    units = _Units(groups, chars, before)
    chosen = np.zeros(len(chars), dtype=bool)
    if share <= 0 or len(units) < 2:
        return chosen
    total = sum(int(block.sum()) for block in chars.blocks())
    wanted = max(1, round(len(chars) * share))
    limit = total * min(_VAL_MOST, _VAL_SLACK * share)
    picked, taken, weight = units.on_val_side()
    for unit, size, more, side in units.shuffled(seed):
        if taken >= wanted:
            break
        if not side and taken + size <= wanted and weight + more <= limit:
            picked.append(unit)
            taken += size
            weight += more
    if not taken:  # 每组都比要的大：取最小的一组，只要训练诗还占大半
        unit, _, more, _ = min(units.shuffled(seed), key=lambda unit: unit[1:3])
        picked += [unit] if more <= total * _VAL_MOST else []
    chosen[picked] = True
    chosen[groups.members] = chosen[groups.roots]
    return chosen


class _Units:
    """不可分的单位：一组，或不在组里的一首；用组里最小的号称呼。"""

    def __init__(self, groups: near.Groups, chars: Column, before: np.ndarray | None) -> None:
        self.chars, self.before = chars, before
        self.members = groups.members
        self.others = groups.members[groups.members != groups.roots]  # 不是组里的第一首
        roots, place, sizes = np.unique(groups.roots, return_inverse=True, return_counts=True)
        weights = np.bincount(place, weights=chars.take(groups.members), minlength=len(roots))
        sides = np.zeros(len(roots), dtype=np.uint8)
        if before is not None:
            np.maximum.at(sides, place, before[groups.members])
        rows = zip(sizes.tolist(), weights.astype(np.int64).tolist(), sides.tolist())
        self.groups = dict(zip(roots.tolist(), rows))

    def __len__(self) -> int:
        return len(self.chars) - len(self.others)

    def on_val_side(self) -> tuple[list[int], int, int]:
        """以前就在验证那边的：它们，共几首，共几字。"""
        picked = [unit for unit, (_, _, side) in self.groups.items() if side == VAL]
        taken = sum(self.groups[unit][0] for unit in picked)
        weight = sum(self.groups[unit][1] for unit in picked)
        if self.before is not None:
            alone = np.setdiff1d(np.flatnonzero(self.before == VAL), self.members)
            picked += alone.tolist()
            taken += len(alone)
            weight += int(self.chars.take(alone).sum())
        return picked, taken, weight

    def shuffled(self, seed: int) -> Iterator[tuple[int, int, int, int]]:
        """打乱了次序，逐个给出（单位，几首，几字，以前在哪边）。"""
        order = array.array("I", range(len(self)))  # 一个单位 4 字节；列表要 36
        random.Random(f"val {seed}").shuffle(order)
        gaps = self.others - np.arange(len(self.others))
        for first in range(0, len(order), _SOME):
            units = np.array(order[first : first + _SOME], dtype=np.int64)
            units += np.searchsorted(gaps, units, side="right")  # 第几个单位 → 它的号
            chars = self.chars.take(units).tolist()
            sides = [0] * len(units) if self.before is None else self.before[units].tolist()
            for unit, *row in zip(units.tolist(), itertools.repeat(1), chars, sides):
                yield (unit, *self.groups.get(unit, row))


# ── 第二遍：编码 ──────────────────────────────────────────────────────


class Asked(NamedTuple):
    """一首诗，和为它选好的提示词。"""

    poem_id: int
    is_val: bool
    prompts: list[tuple[str, str]]  # (种类, 提示词)
    body: str


class Side:
    """训练或验证的一边，都在 folder 里的临时文件里。"""

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        self.tokens = Column(dtype, folder)
        self.mask = Column("uint8", folder)
        self.ends = Column("int64", folder)  # 各篇在这一边里的末尾
        self.numbers = {name: Column(kind, folder) for name, kind in DOCUMENT_ARRAYS.items()}
        self.poems = self.longest = 0
        self.sums = dict.fromkeys(("chars", "trained"), 0)

    def add(self, ids: np.ndarray, mask: list[int], row: dict[str, int]) -> None:
        """再写一篇文档；row 是它在 DOCUMENT_ARRAYS 里的各个数。"""
        self.tokens.extend(ids)
        self.mask.extend(np.array(mask, dtype=np.uint8))
        self.ends.append(len(self.tokens))
        self.longest = max(self.longest, len(ids))
        for name, value in row.items():
            self.numbers[name].append(value)
        for name in self.sums:
            self.sums[name] += row[name]

    def totals(self) -> dict[str, int]:
        """诗、文档、token、训练的字数与 token 数。"""
        return {
            "poems": self.poems,
            "documents": len(self.ends),
            "tokens": len(self.tokens),
            **self.sums,
        }

    def close(self) -> None:
        """丢掉临时文件。"""
        for column in (self.tokens, self.mask, self.ends, *self.numbers.values()):
            column.close()


class Encoder:
    """把诗编码成文档，分到训练与验证两边。用完请 close()。"""

    def __init__(self, tok: Any, settings: Settings, folder: Path) -> None:
        self.tok, self.settings = tok, settings
        self.chat = chat_format.ChatFormat(tok)
        self.dtype = np.dtype("uint16" if tok.vocab_size <= 1 << 16 else "uint32")
        self.char_starts = _char_starts(tok)
        self.train, self.val = Side(folder, self.dtype), Side(folder, self.dtype)
        self.seen = 0
        self.kind_counts = dict.fromkeys(wording.KINDS, 0)
        self.examples: dict[str, str] = {}
        self.empty = self.split_poems = 0

    def close(self) -> None:
        """丢掉临时文件。"""
        self.train.close()
        self.val.close()

    def add_all(self, poems: Poems, val: np.ndarray) -> Iterator[int]:
        """逐批编码、拼好，给出每批的首数；val (全部诗,) 说明哪些是验证诗。

        编码在另一个线程里（tokenizers 不占 GIL），总比拼装早一批。
        """
        with ThreadPoolExecutor(1) as pool:
            waiting: tuple[list[Asked], Future] | None = None
            for batch in batches(poems):
                asks = [self._ask(poem, val) for poem in batch]
                texts = [ask.body for ask in asks]
                texts += [chat_format.question_text(text) for a in asks for _, text in a.prompts]
                encoding = pool.submit(self.tok.encode_batch, texts)
                if waiting is not None:
                    yield self._assemble(*waiting)
                waiting = asks, encoding
            if waiting is not None:
                yield self._assemble(*waiting)

    def _ask(self, poem: dict, val: np.ndarray) -> Asked:
        number, is_val = self.seen, bool(val[self.seen])
        self.seen += 1
        return Asked(number, is_val, self._prompts(poem, number, is_val), chat_format.body(poem))

    def _prompts(self, poem: dict, number: int, is_val: bool) -> list[tuple[str, str]]:
        shares = self.settings.shares
        if is_val or not shares:
            return [("title", poem["title"])]
        rng = random.Random(f"{self.settings.seed} {number}")
        return wording.choose_prompts(poem, shares, self.settings.prompts_per_poem, rng)

    def _assemble(self, asks: list[Asked], encoding: Future) -> int:
        encoded = encoding.result()
        questions = iter(encoded[len(asks) :])
        for ask, answer in zip(asks, encoded):
            asked = [(kind, text, next(questions)) for kind, text in ask.prompts]
            if not ask.body:
                self.empty += 1
                continue
            side = self.val if ask.is_val else self.train
            side.poems += 1
            for kind, text, question in asked:
                parts = self.chat.documents(text, question, answer, self.settings.max_seq_len)
                whole = len(parts[0][0]) == self.chat.length(question, answer)
                self._write(side, parts, ask.poem_id, kind, whole)
                if side is self.train:
                    self.kind_counts[kind] += 1
                    self.examples.setdefault(kind, text)
        return len(asks)

    def _write(
        self,
        side: Side,
        parts: list[chat_format.Document],
        poem_id: int,
        kind: str,
        whole: bool,
    ) -> None:
        """一首诗连同一种提示词：写下它的各篇。"""
        for ids, mask in parts:
            trained = sum(mask)
            tokens = np.array(ids, dtype=self.dtype)
            row = {
                "poem_ids": poem_id,
                "chars": int(self.char_starts[tokens[len(ids) - trained :]].sum()),
                "trained": trained,
                "kinds": wording.KINDS.index(kind),
                "whole": whole,
            }
            side.add(tokens, mask, row)
        self.split_poems += len(parts) > 1

    def pieces(self, found: Survey) -> dict[str, container.Piece]:
        """文件里的各数组，训练在前。"""
        if len(self.val.ends) and not len(self.train.ends):
            raise UserError(
                f"{self.val.poems} 首诗都是原来的 dataset.bin 验证用的，没有可训练的，"
                "什么也没有写。\n请加些诗，或换一个种子重新划分，往后的几步也用它："
                f"--SEED={self.settings.seed + 1}"
            )
        if not len(self.train.ends):
            raise UserError("没有一首诗有正文，什么也没有写\n请运行：python data_clean.py")
        train, val, before = self.train, self.val, len(self.train.tokens)
        documents = len(train.ends) + len(val.ends)
        ends = itertools.chain(train.ends.blocks(), (end + before for end in val.ends.blocks()))
        offsets = itertools.chain([np.zeros(1, dtype=np.int64)], ends)
        return {
            "tokens": _piece(train.tokens, val.tokens),
            "mask": _piece(train.mask, val.mask),
            "offsets": container.Piece("int64", documents + 1, offsets),
            **{name: _piece(train.numbers[name], val.numbers[name]) for name in DOCUMENT_ARRAYS},
            "names": _piece(found.names),
            "name_offsets": _piece(found.offsets),
        }

    def header(self, found: Survey) -> dict[str, Any]:
        """文件的头部。"""
        train, val = self.train.totals(), self.val.totals()
        return {
            "vocab_size": self.tok.vocab_size,
            "n_poems": len(found),
            "n_train": train["documents"],
            "n_val": val["documents"],
            "train_poems": train["poems"],
            "val_poems": val["poems"],
            "train_tokens": train["tokens"],
            "val_tokens": val["tokens"],
            "all_kinds": list(wording.KINDS),
            "prompt_kinds": {kind: count for kind, count in self.kind_counts.items() if count},
            **dataclasses.asdict(self.settings),
            "tokenizer": self.tok.to_json(),
        }

    def report(self) -> dict[str, Any]:
        """给人看的统计；*_chars、*_trained 为两边训练的字数与 token 数。"""
        sides = {"train": self.train, "val": self.val}
        return {
            **{f"{side}_{k}": v for side in sides for k, v in sides[side].totals().items()},
            "longest": max(self.train.longest, self.val.longest),
            "split_poems": self.split_poems,
            "empty": self.empty,
            "kinds": dict(self.kind_counts),
            "examples": dict(self.examples),
        }


def _char_starts(tok: Any) -> np.ndarray:
    """int32 (vocab,)：每个 token 里有几个字由它开头；一篇里加起来就是字数。"""
    pieces = (tok.token_bytes(token) for token in range(tok.vocab_size))
    counts = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces]
    return np.array(counts, dtype=np.int32)


def _piece(*columns: Column) -> container.Piece:
    """几列首尾相接。"""
    blocks = itertools.chain.from_iterable(column.blocks() for column in columns)
    return container.Piece(columns[0].dtype.name, sum(map(len, columns)), blocks)
