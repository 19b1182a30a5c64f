"""把诗编码成训练文档：先看一遍谁与谁不可分开，再逐首编码，训练与验证两边各自攒着。"""

from __future__ import annotations

import array
import dataclasses
import mmap
import random
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Iterable, Iterator, NamedTuple

import numpy as np

from poems import chat_format, collection, dedup, wording
from support import console, container
from support.console import UserError

DOCUMENT_ARRAYS = {  # 每篇文档一个数
    "poem_ids": "int32",  # 诗在 all_poems.json 里的序号
    "chars": "int32",  # 训练到的正文字数
    "trained": "int32",  # 训练的 token 数
    "kinds": "uint8",  # 提示词种类在 prompt_kinds 里的序号
    "whole": "uint8",  # 1 = 整首诗连同完整的提示词都在这一篇里
}
_BATCH = 512  # 一批编码这么多首诗
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


def survey(path: Path, names: BinaryIO) -> Survey:
    """读第一遍：题目与作者写进临时文件 names，留下各诗的签名。"""
    found = Survey(names)
    size = path.stat().st_size if path.is_file() else 0
    with console.progress(size, "查重", "B", unit_scale=True) as bar:
        for poems in batches(collection.iter_poems(path, bar.update)):
            found.add(poems)
    if not found.count:
        raise UserError(f"{path} 里一首诗也没有\n请运行：python data_clean.py")
    return found


class Survey:
    """每首诗的题目、作者（在临时文件里）与签名。"""

    def __init__(self, names: BinaryIO) -> None:
        self.names = names
        self.offsets = array.array("q", [0])  # 各段文字的起点：题目、作者、题目、作者……
        self.chars = array.array("q")  # 各诗正文的字数
        self.signatures: list[np.ndarray] = []
        self.digests = array.array("Q")  # 各诗正文的摘要，认出同一首诗；没有文字的是 0
        self.count = 0

    def add(self, poems: list[dict]) -> None:
        """再记下一批。"""
        for poem in poems:
            for text in (poem["title"], poem["author"]):
                self.names.write(text.encode("utf-8", "replace"))
                self.offsets.append(self.names.tell())
        bodies = [chat_format.body(poem) for poem in poems]
        self.chars.extend(map(len, bodies))
        normal = [dedup.normal_form(body) for body in bodies]
        self.signatures.append(dedup.signature(normal))
        self.digests.extend(dedup.digest(text) if text else 0 for text in normal)
        self.count += len(poems)

    def groups(self) -> np.ndarray:
        """不可分开的诗同组 → 组号 int64 (n,)；签名用过就放下。"""
        signatures = np.concatenate(self.signatures)
        self.signatures = []
        self.names.write(b"\0")  # 空文件不能映射
        self.names.flush()
        with mmap.mmap(self.names.fileno(), 0, access=mmap.ACCESS_READ) as text:
            titles, authors = self._texts(text, 0), self._texts(text, 1)
            groups = dedup.split_groups(titles, authors, signatures)
        self.names.truncate(self.offsets[-1])
        return groups

    def _texts(self, text: mmap.mmap, which: int) -> Iterator[str]:
        for place in range(which, 2 * self.count, 2):
            yield text[self.offsets[place] : self.offsets[place + 1]].decode("utf-8")


def choose_val(
    groups: np.ndarray,
    share: float,
    seed: int,
    chars: np.ndarray | None = None,
    before: np.ndarray | None = None,
) -> np.ndarray:
    """各诗的组号 (n,) → bool (n,)，True 为验证诗；整组同进退，约占 share，至少一首。

    chars (n,) 是各诗的字数：验证诗的字数也有限，长诗不会把大半诗集带到验证里。
    before (n,) 是各诗以前在哪一边（VAL、TRAIN，新的诗是 0）：有旧诗的组留在原来那边，
    两边都有时算验证诗；只在全是新诗的组里挑还缺的。
    share 为 0，或分不开（只有一组，或每组都太大）时全为 False。
    """
    chosen = np.zeros(len(groups), dtype=bool)
    labels, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if share <= 0 or len(labels) < 2:
        return chosen
    weights = sizes if chars is None else np.bincount(group_of, weights=chars)
    wanted = max(1, round(len(groups) * share))
    limit = weights.sum() * min(_VAL_MOST, _VAL_SLACK * share)
    order = array.array("q", range(len(labels)))  # 一组 8 字节；列表要 36
    random.Random(f"val {seed}").shuffle(order)
    side = np.zeros(len(labels), dtype=np.uint8)
    if before is not None:
        np.maximum.at(side, group_of, before)
    picked = side == VAL
    taken, weight = int(sizes[picked].sum()), float(weights[picked].sum())
    for label in order:
        if side[label]:
            continue
        if taken + sizes[label] <= wanted and weight + weights[label] <= limit:
            picked[label] = True
            taken += sizes[label]
            weight += weights[label]
    if not taken:  # 每组都比要的大：取最小的一组，只要训练诗还占大半
        smallest = min(order, key=lambda label: (sizes[label], weights[label]))
        picked[smallest] = weights[smallest] <= weights.sum() * _VAL_MOST
    return picked[group_of]


# ── 第二遍：编码 ──────────────────────────────────────────────────────


class Asked(NamedTuple):
    """一首诗，和为它选好的提示词。"""

    poem_id: int
    is_val: bool
    prompts: list[tuple[str, str]]  # (种类, 提示词)
    body: str


class Side:
    """训练或验证的一边：token 与 mask 写进临时文件，每篇的数字留在内存里。"""

    def __init__(self, folder: Path) -> None:
        self.tokens = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - close() 关
        self.mask = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.lengths = array.array("i")
        self.numbers = {
            name: array.array("B" if dtype == "uint8" else "i")
            for name, dtype in DOCUMENT_ARRAYS.items()
        }
        self.poems = 0

    def add(self, ids: np.ndarray, mask: list[int], row: dict[str, int]) -> None:
        """再写一篇文档；row 是它在 DOCUMENT_ARRAYS 里的各个数。"""
        self.tokens.write(ids)
        self.mask.write(bytes(mask))
        self.lengths.append(len(ids))
        for name, value in row.items():
            self.numbers[name].append(value)

    def totals(self) -> dict[str, int]:
        """诗、文档、token、训练的字数与 token 数。"""
        return {
            "poems": self.poems,
            "documents": len(self.lengths),
            "tokens": sum(self.lengths),
            "chars": sum(self.numbers["chars"]),
            "trained": sum(self.numbers["trained"]),
        }

    def close(self) -> None:
        """丢掉临时文件。"""
        self.tokens.close()
        self.mask.close()


class Encoder:
    """把诗编码成文档，分到训练与验证两边。"""

    def __init__(self, tok: Any, settings: Settings, folder: Path) -> None:
        self.tok, self.settings = tok, settings
        self.chat = chat_format.ChatFormat(tok)
        self.dtype = np.dtype("uint16" if tok.vocab_size <= 1 << 16 else "uint32")
        self.char_starts = _char_starts(tok)
        self.train, self.val = Side(folder), Side(folder)
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
        if not self.train.lengths:
            raise UserError("没有一首诗有正文，什么也没有写\n请运行：python data_clean.py")
        sides = (self.train, self.val)
        lengths = np.concatenate([_numpy(side.lengths) for side in sides])
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        total = int(offsets[-1])
        pieces = {
            "tokens": container.Piece(self.dtype.name, total, [side.tokens for side in sides]),
            "mask": container.Piece("uint8", total, [side.mask for side in sides]),
            "offsets": container.piece(offsets),
        }
        for name in DOCUMENT_ARRAYS:
            both = np.concatenate([_numpy(side.numbers[name]) for side in sides])
            pieces[name] = container.piece(both)
        pieces["names"] = container.Piece("uint8", found.offsets[-1], [found.names])
        pieces["name_offsets"] = container.piece(_numpy(found.offsets))
        return pieces

    def header(self, found: Survey) -> dict[str, Any]:
        """文件的头部。"""
        train, val = self.train.totals(), self.val.totals()
        return {
            "vocab_size": self.tok.vocab_size,
            "n_poems": found.count,
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
            "longest": max([*self.train.lengths, *self.val.lengths]),
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


def _numpy(numbers: array.array) -> np.ndarray:
    """array.array → 同类型的 numpy 数组。"""
    return np.array(numbers, dtype=np.dtype(numbers.typecode))
