"""dataset.bin：把诗集编码成训练文档，流式写出，内存映射读取。

文件依次是：
    魔数 8 字节 | 版本 uint32 | 头部长度 uint32 | JSON 头部 | 各数组，都从 64 字节的整数倍处开始
头部的 arrays 表给出每个数组的类型、长度和从数据区起算的位置；先是全部训练文档，后是全部验证文档。
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import json
import mmap
import random
import struct
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np

from poems import chat_format, dedup, records, wording
from support import console, files
from support.console import UserError

MAGIC = b"POEMDATA"
VERSION = 1
_HEAD = struct.Struct("<8sII")
_ALIGN = 64
_BATCH = 512  # 一批编码这么多首诗
_COPY = 1 << 22  # 拷贝时一段的字节数
_BUILD = "请运行：python train_dataset_one.py"
_DOCUMENT_ARRAYS = {  # 每篇文档一个数
    "poem_ids": "int32",  # 诗在 all_poems.json 里的序号
    "chars": "int32",  # 训练到的正文字数
    "trained": "int32",  # 训练的 token 数
    "kinds": "uint8",  # 提示词种类在 prompt_kinds 里的序号
    "whole": "uint8",  # 1 = 整首诗连同完整的提示词都在这一篇里
}


# ── 读诗 ──────────────────────────────────────────────────────────────


def iter_poems(path: Path | str, on_read: Callable[[int], None] | None = None) -> Iterator[dict]:
    """逐首给出 all_poems.json 里的诗 {"title", "para", "author"}；on_read(字节数) 供进度条用。

    没有文件、不是合法的 JSON 或缺少字段时抛出 UserError。
    """
    mend = "原文件没有动\n请运行：python data_clean.py"
    if not Path(path).is_file():
        raise UserError(f"没有找到诗集 {path}\n请运行：python data_clean.py")
    try:
        for number, record in enumerate(records.iter_records(path, on_read=on_read), 1):
            problem = _poem_problem(record)
            if problem:
                raise UserError(f"{path} 的第 {number} 首诗{problem}\n{mend}")
            yield record
    except ValueError as error:
        raise UserError(f"{error}\n{mend}") from error


def _poem_problem(record):
    if not isinstance(record, dict):
        return f"不是 {{…}} 记录，而是 {type(record).__name__}"
    for name in ("title", "author"):
        if not isinstance(record.get(name), str):
            return f"的 {name} 应是字符串"
    stanzas = record.get("para")
    if not isinstance(stanzas, list) or not all(isinstance(text, str) for text in stanzas):
        return "的 para 应是字符串的列表（一节一项）"
    return None


def find_poems(work_dir: str) -> Path:
    """WORK_DIR 里的 all_poems.json；没有时抛出 UserError。"""
    path = Path(work_dir) / "all_poems.json"
    if not path.is_file():
        raise UserError(f"没有找到诗集 {path}\n请运行：python data_clean.py")
    return path


def find_tokenizer(work_dir: str, choice: str = "auto") -> Path:
    """TOKENIZER 配置（auto | hug | bpe | 路径）→ 分词器文件；没有时抛出 UserError。"""
    names = {"hug": ("tokenizer_hug.json",), "bpe": ("tokenizer_bpe.json",)}
    names["auto"] = names["hug"] + names["bpe"]
    if choice not in names:
        found = files.find_input(choice, work_dir)
        if found is not None and found.is_file():
            return found
        raise UserError(f"没有找到分词器 TOKENIZER={choice}（可写 auto、hug、bpe 或路径）")
    for name in names[choice]:
        if (Path(work_dir) / name).is_file():
            return Path(work_dir) / name
    script = "train_BPEtokennizer.py" if choice == "bpe" else "hug_face_tokenizer.py"
    raise UserError(
        f"{work_dir} 里没有分词器（{' 或 '.join(names[choice])}）\n请运行：python {script}"
    )


# ── 建 dataset.bin ────────────────────────────────────────────────────


def build(
    poems_path: Path | str,
    tokenizer,
    out: Path | str,
    *,
    shares: dict[str, float] | None = None,
    prompts_per_poem: int = 1,
    val_share: float = 0.02,
    seed: int = 42,
    max_seq_len: int = 512,
) -> dict[str, Any]:
    """诗集 → dataset.bin，返回一份统计（report）。

    shares 为 None 时只用题目作提示词；否则每首训练诗按比例配 prompts_per_poem 种。
    验证诗总是只用题目。同样的输入和种子写出同样的字节；中途出错时旧文件原样还在。
    tokenizer 需要 encode、encode_batch、token_bytes、to_json、vocab_size 和三个特殊编号。
    """
    started = time.monotonic()
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent) as names:
        survey = _survey(poems_path, names)
        val = choose_val(survey.groups(), val_share, seed)
        settings = {
            "seed": seed,
            "val_share": val_share,
            "max_seq_len": max_seq_len,
            "prompts_per_poem": prompts_per_poem if shares else 1,
            "shares": shares,
        }
        writer = _Writer(tokenizer, settings, out.parent)
        with contextlib.closing(writer):
            with console.progress(len(val), "编码") as bar:
                for count in writer.add_all(_batches(iter_poems(poems_path)), val):
                    bar.update(count)
            writer.finish(out, survey)
    return {**writer.report(), "seconds": time.monotonic() - started, "bytes": out.stat().st_size}


def choose_val(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """各诗的组号 (n,) → bool (n,)，True 为验证诗；整组同进退，约占 share，至少一首。

    share 为 0，或只有一组（分不开）时全为 False。
    """
    chosen = np.zeros(len(groups), dtype=bool)
    labels, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if share <= 0 or len(labels) < 2:
        return chosen
    wanted = max(1, round(len(groups) * share))
    order = list(range(len(labels)))
    random.Random(f"val {seed}").shuffle(order)
    picked = np.zeros(len(labels), dtype=bool)
    taken = 0
    for label in order:
        if taken + sizes[label] <= wanted:
            picked[label] = True
            taken += sizes[label]
    if not taken:
        picked[min(order, key=lambda label: sizes[label])] = True
    return picked[group_of]


def _batches(poems):
    batch = []
    for poem in poems:
        batch.append(poem)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _survey(path, names):
    """读第一遍：题目与作者写进临时文件 names，留下各诗的签名。"""
    survey = _Survey(names)
    size = Path(path).stat().st_size if Path(path).is_file() else 0
    with console.progress(size, "查重", "B", unit_scale=True) as bar:
        for poems in _batches(iter_poems(path, on_read=bar.update)):
            survey.add(poems)
    if not survey.count:
        raise UserError(f"{path} 里一首诗也没有\n请运行：python data_clean.py")
    return survey


class _Survey:
    """每首诗的题目、作者（在临时文件里）与签名。"""

    def __init__(self, names):
        self.names, self.offsets, self.signatures, self.count = names, array.array("q", [0]), [], 0

    def add(self, poems):
        for poem in poems:
            for text in (poem["title"], poem["author"]):
                self.names.write(text.encode("utf-8", "replace"))
                self.offsets.append(self.names.tell())
        forms = [dedup.normal_form(chat_format.body(poem)) for poem in poems]
        self.signatures.append(dedup.signature(forms))
        self.count += len(poems)

    def groups(self):
        """不可分开的诗同组 → 组号 int64 (n,)。"""
        signatures = np.concatenate(self.signatures)
        self.signatures = []
        self.names.write(b"\0")  # 空文件不能映射
        self.names.flush()
        with mmap.mmap(self.names.fileno(), 0, access=mmap.ACCESS_READ) as text:
            titles, authors = self._texts(text, 0), self._texts(text, 1)
            groups = dedup.split_groups(titles, authors, signatures)
        self.names.truncate(self.offsets[-1])
        return groups

    def _texts(self, text, which):
        for place in range(which, 2 * self.count, 2):
            yield text[self.offsets[place] : self.offsets[place + 1]].decode("utf-8")


class _Split:
    """训练或验证的一边：token 与 mask 写进临时文件，每篇的数字留在内存里。"""

    def __init__(self, folder):
        self.tokens = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - close() 关
        self.mask = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.lengths = array.array("i")
        self.numbers = {
            name: array.array("B" if dtype == "uint8" else "i")
            for name, dtype in _DOCUMENT_ARRAYS.items()
        }
        self.poems = 0

    def close(self):
        self.tokens.close()
        self.mask.close()


class _Writer:
    """把诗编码成文档，分训练与验证两边攒着，最后写成一个文件。"""

    def __init__(self, tok, settings, folder):
        self.tok, self.settings = tok, settings
        self.chat = chat_format.ChatFormat(tok)
        self.dtype = np.dtype("uint16" if tok.vocab_size <= 1 << 16 else "uint32")
        self.starts = _char_starts(tok)
        self.sides = [_Split(folder), _Split(folder)]
        self.seen = 0
        self.kind_counts = dict.fromkeys(wording.KINDS, 0)
        self.examples, self.empty, self.split_poems = {}, 0, 0

    def close(self):
        for side in self.sides:
            side.close()

    def add_all(self, batches, val):
        """逐批编码、拼好，给出每批的首数；val (全部诗,) 说明哪些是验证诗。

        编码在另一个线程里（tokenizers 不占 GIL），总比拼装早一批。
        """
        with ThreadPoolExecutor(1) as pool:
            waiting = None
            for poems in batches:
                asks = self._asks(poems, val)
                texts = [text for *_, text in asks]
                texts += [chat_format.question_text(words) for ask in asks for _, words in ask[2]]
                encoding = pool.submit(self.tok.encode_batch, texts)
                if waiting is not None:
                    yield self._assemble(*waiting)
                waiting = asks, encoding
            if waiting is not None:
                yield self._assemble(*waiting)

    def _asks(self, poems, val):
        """[(诗的序号, 是否验证诗, [(种类, 提示词)], 正文)]。"""
        asks = []
        for poem in poems:
            is_val = bool(val[self.seen])
            asks.append((self.seen, is_val, self._prompts(poem, is_val), chat_format.body(poem)))
            self.seen += 1
        return asks

    def _assemble(self, asks, encoding):
        encoded = encoding.result()
        questions = iter(encoded[len(asks) :])
        for (poem_id, is_val, chosen, text), answer in zip(asks, encoded):
            asked = [(kind, words, next(questions)) for kind, words in chosen]
            if not text:
                self.empty += 1
                continue
            self.sides[is_val].poems += 1
            for kind, words, question in asked:
                self._write(self.sides[is_val], poem_id, kind, words, question, answer)
        return len(asks)

    def _prompts(self, poem, is_val):
        shares = self.settings["shares"]
        if is_val or not shares:
            return [("title", poem["title"])]
        rng = random.Random(f"{self.settings['seed']} {self.seen}")
        return wording.choose_prompts(poem, shares, self.settings["prompts_per_poem"], rng)

    def _write(self, side, poem_id, kind, words, asked, answer):
        parts = self.chat.documents(words, asked, answer, self.settings["max_seq_len"])
        whole = len(parts[0][0]) == len(self.chat.prefix(asked)) + len(answer) + 1
        for ids, mask in parts:
            trained = sum(mask)
            ids_array = np.array(ids, dtype=self.dtype)
            side.tokens.write(ids_array)
            side.mask.write(bytes(mask))
            side.lengths.append(len(ids))
            chars = int(self.starts[ids_array[len(ids) - trained :]].sum())
            row = (poem_id, chars, trained, wording.KINDS.index(kind), whole)
            for name, value in zip(_DOCUMENT_ARRAYS, row):
                side.numbers[name].append(value)
        self.split_poems += len(parts) > 1
        if side is self.sides[0]:
            self.kind_counts[kind] += 1
            self.examples.setdefault(kind, words)

    def finish(self, out, survey):
        """两边拼成 dataset.bin。"""
        train, val = self.sides
        if not train.lengths:
            raise UserError("没有一首诗有正文，什么也没有写\n请运行：python data_clean.py")
        lengths = np.concatenate([_numpy(train.lengths), _numpy(val.lengths)])
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        total = int(offsets[-1])
        pieces = {
            "tokens": (self.dtype.name, total, [train.tokens, val.tokens]),
            "mask": ("uint8", total, [train.mask, val.mask]),
            "offsets": ("int64", len(offsets), [offsets]),
        }
        for name, dtype in _DOCUMENT_ARRAYS.items():
            both = np.concatenate([_numpy(side.numbers[name]) for side in self.sides])
            pieces[name] = (dtype, len(both), [both])
        pieces["names"] = ("uint8", survey.offsets[-1], [survey.names])
        pieces["name_offsets"] = ("int64", len(survey.offsets), [_numpy(survey.offsets)])
        _write_file(out, self._header(survey, offsets), pieces)

    def _header(self, survey, offsets):
        train, val = self.sides
        kinds = [kind for kind in wording.KINDS if self.kind_counts[kind]]
        return {
            "vocab_size": self.tok.vocab_size,
            "n_poems": survey.count,
            "n_train": len(train.lengths),
            "n_val": len(val.lengths),
            "train_poems": train.poems,
            "val_poems": val.poems,
            "train_tokens": int(offsets[len(train.lengths)]),
            "val_tokens": int(offsets[-1] - offsets[len(train.lengths)]),
            "all_kinds": list(wording.KINDS),
            "prompt_kinds": {kind: self.kind_counts[kind] for kind in kinds},
            **self.settings,
            "tokenizer": self.tok.to_json(),
        }

    def report(self):
        """给人看的统计；*_chars、*_trained 为两边训练的字数与 token 数。"""
        train, val = self.sides
        sums = {}
        for name, side in (("train", train), ("val", val)):
            for key in ("chars", "trained"):
                sums[f"{name}_{key}"] = sum(side.numbers[key])
            sums[f"{name}_poems"] = side.poems
            sums[f"{name}_documents"] = len(side.lengths)
            sums[f"{name}_tokens"] = sum(side.lengths)
        return {
            **sums,
            "longest": max([*train.lengths, *val.lengths]),
            "split_poems": self.split_poems,
            "empty": self.empty,
            "kinds": dict(self.kind_counts),
            "examples": dict(self.examples),
        }


def _char_starts(tok):
    """int32 (vocab,)：每个 token 里有几个字由它开头；一篇里加起来就是字数。"""
    pieces = (tok.token_bytes(token) for token in range(tok.vocab_size))
    counts = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces]
    return np.array(counts, dtype=np.int32)


def _numpy(numbers):
    """array.array → 同类型的 numpy 数组。"""
    return np.array(numbers, dtype=np.dtype(numbers.typecode))


def _write_file(out, header, pieces):
    """先按占位的校验和写头部，拷贝数组时算出校验和，再把头部重写一遍（长度不变）。"""
    place, table = 0, {}
    for name, (dtype, length, _) in pieces.items():
        table[name] = {"dtype": dtype, "length": length, "offset": place, "sha256": "0" * 64}
        place = _aligned(place + length * np.dtype(dtype).itemsize)
    header = {**header, "bytes": place, "arrays": table, "fingerprint": "0" * 64}
    size = len(_head_bytes(header))
    with files.atomic_write(out, "wb") as file:
        file.write(bytes(size))
        for name, (_, _, sources) in pieces.items():
            file.seek(size + table[name]["offset"])
            table[name]["sha256"] = _copy(sources, file)
        file.truncate(size + place)
        header["fingerprint"] = _fingerprint(header)
        file.seek(0)
        file.write(_head_bytes(header))


def _copy(sources, file):
    digest = hashlib.sha256()
    for source in sources:
        if isinstance(source, np.ndarray):
            chunks = [source.tobytes()]
        else:
            source.seek(0)
            chunks = iter(lambda source=source: source.read(_COPY), b"")
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _head_bytes(header):
    text = json.dumps(header, ensure_ascii=False).encode("utf-8")
    head = _HEAD.pack(MAGIC, VERSION, len(text)) + text
    return head.ljust(_aligned(len(head)), b"\0")


def _fingerprint(header):
    content = {key: value for key, value in header.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def _aligned(size):
    return -(-size // _ALIGN) * _ALIGN


# ── 读 dataset.bin ────────────────────────────────────────────────────


def load(path: Path | str) -> PoemDataset:
    """内存映射打开 dataset.bin；没有、残缺、不是本项目的或版本太新时抛出 UserError。"""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"没有找到数据集 {path}\n{_BUILD}")
    try:
        with open(path, "rb") as file:
            header, start = _read_header(path, file)
            size, wanted = path.stat().st_size, start + header["bytes"]
            if size < wanted:
                raise UserError(f"{path} 不完整：应有 {wanted} 字节，只有 {size} 字节\n{_BUILD}")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return PoemDataset(header, mapped, start)
    except OSError as error:
        raise UserError(f"读不了 {path}：{error}\n{_BUILD}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} 的头部已损坏：{error!r}\n{_BUILD}") from error


def _read_header(path, file):
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or head[:8] != MAGIC:
        raise UserError(f"{path} 不是本项目的数据集文件\n{_BUILD}")
    _, version, length = _HEAD.unpack(head)
    if version != VERSION:
        raise UserError(f"{path} 的格式版本是 {version}，本程序只认 {VERSION}\n{_BUILD}")
    text = file.read(length)
    if len(text) < length:
        raise UserError(f"{path} 不完整：头部应有 {length} 字节，只有 {len(text)}\n{_BUILD}")
    return json.loads(text.decode("utf-8")), _aligned(_HEAD.size + length)


class PoemDataset:
    """内存映射的 dataset.bin。文档编号从 0 起，训练在前、验证在后；取出的数组都是只读视图。

    Windows 上打开的映射会挡住替换文件，用完请 close()（也可以用 with）。
    """

    def __init__(self, header: dict, mapped: mmap.mmap, start: int):
        self.header = header
        self.tokenizer_json: str = header["tokenizer"]
        self.prompt_kinds: list[str] = list(header["prompt_kinds"])
        self.fingerprint: str = header["fingerprint"]
        self.val_is_train: bool = header["n_val"] == 0
        self._map = mapped
        self._arrays = {
            name: np.frombuffer(mapped, item["dtype"], item["length"], start + item["offset"])
            for name, item in header["arrays"].items()
        }
        self._tokens, self._mask = self._arrays["tokens"], self._arrays["mask"]
        self.offsets = self._arrays["offsets"]  # int64 (docs+1,)
        self.poem_ids = self._arrays["poem_ids"]  # int32 (docs,)
        self.chars = self._arrays["chars"]  # int32 (docs,)
        self.whole = self._arrays["whole"].view(bool)  # bool (docs,)

    def __len__(self) -> int:
        return len(self.poem_ids)

    def __enter__(self) -> PoemDataset:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """解除映射；外面还留着视图时，等它们消失后自动解除。"""
        self._arrays = {}
        self._tokens = self._mask = self.offsets = self.poem_ids = self.chars = self.whole = None
        with contextlib.suppress(BufferError):
            self._map.close()

    def range(self, split: str) -> tuple[int, int]:
        """一边的文档编号 [first, last)；没有验证文档时 val 就是 train。"""
        n_train, n_val = self.header["n_train"], self.header["n_val"]
        if split not in ("train", "val"):
            raise ValueError(f"split={split!r} 应是 train 或 val")
        if split == "train" or self.val_is_train:
            return 0, n_train
        return n_train, n_train + n_val

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """第 index 篇 → (ids (T,), mask uint8 (T,)，1 为训练目标, 诗的序号)。"""
        first, last = self.offsets[index], self.offsets[index + 1]
        return self._tokens[first:last], self._mask[first:last], int(self.poem_ids[index])

    def documents(self, split: str) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """逐篇给出 (ids, mask, poem_id)。"""
        for index in range(*self.range(split)):
            yield self.document(index)

    def stream(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """一边的全部文档首尾相接 → (ids (N,), mask uint8 (N,))。"""
        first, last = (int(self.offsets[index]) for index in self.range(split))
        return self._tokens[first:last], self._mask[first:last]

    def lengths(self, split: str) -> np.ndarray:
        """各篇的 token 数，int64 (docs,)。"""
        first, last = self.range(split)
        return np.diff(self.offsets[first : last + 1])

    def trained(self, split: str) -> np.ndarray:
        """各篇里训练的 token 数，int32 (docs,)。"""
        first, last = self.range(split)
        return self._arrays["trained"][first:last]

    def kind(self, index: int) -> str:
        """第 index 篇的提示词种类。"""
        return self.header["all_kinds"][self._arrays["kinds"][index]]

    def body_text(self, index: int, tok) -> str:
        """第 index 篇里训练到的正文。"""
        ids, mask, _ = self.document(index)
        return tok.decode([int(token) for token in ids[mask == 1] if token != tok.end_id])

    def poem_info(self, poem_id: int) -> dict[str, str]:
        """诗的序号 → {"title", "author"}。"""
        first, middle, last = self._arrays["name_offsets"][2 * poem_id : 2 * poem_id + 3]
        names = self._arrays["names"]
        title, author = names[first:middle].tobytes(), names[middle:last].tobytes()
        return {"title": title.decode("utf-8"), "author": author.decode("utf-8")}

    def verify(self) -> list[str]:
        """重算各数组的校验和，返回对不上的数组名；没有损坏时为空。"""
        table = self.header["arrays"]
        return [
            name
            for name, data in self._arrays.items()
            if hashlib.sha256(data).hexdigest() != table[name]["sha256"]
        ]
