"""字节级 BPE 分词器：自己的实现（学合并、用合并），和 tokenizers 库的薄封装；两者文件格式相同。

BPE 三句话：
1. 文本先按 SPLIT_REGEX 切成“词”，每个词写成 UTF-8 字节，256 个字节就是最初的词表；
2. 训练：反复找出现次数最多的一对相邻 token，合成一个新 token，直到词表够大；
3. 编码：在一个词里反复做最早学到的那个合并，直到没有可做的。

>>> tokenizer = BPETokenizer().train(["看山看山看山", "看水"], vocab_size=264)
>>> [tokenizer.decode([token]) for token in tokenizer.encode("看山🌙")][:1]
['看山']
>>> tokenizer.decode(tokenizer.encode("看山🌙"))
'看山🌙'

特殊符号（填充、开始、结束）的编号是 0、1、2；正文里写着 "<|im_end|>" 也只是普通文字。
"""

from __future__ import annotations

import codecs
import hashlib
import heapq
import json
import re
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

import numpy as np
from tokenizers import Regex, Tokenizer, pre_tokenizers

# Qwen2 的切词规则：transformers 与 llama.cpp（pre=qwen2）都认识它
SPLIT_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ("<|padding|>", "<|im_start|>", "<|im_end|>")
PAD_ID, START_ID, END_ID = range(3)


# ── 文本、词、字节 ────────────────────────────────────────────────────

_SURROGATES = re.compile("[\ud800-\udfff]")
_SPLITTER = pre_tokenizers.Split(Regex(SPLIT_REGEX), "isolated")


def clean(text: str) -> str:
    """孤立的代理码位（写不成 UTF-8）换成 U+FFFD，其余原样。"""
    return _SURROGATES.sub("\ufffd", text)


def split_words(text: str) -> list[str]:
    """按 SPLIT_REGEX 切词；首尾相接就是原文。"""
    return [word for word, _ in _SPLITTER.pre_tokenize_str(text)]


def _byte_chars() -> list[str]:
    """256 个字节在词表文件里的写法（GPT-2 的约定）：可见字符写自己，其余从 U+0100 排起。"""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]


BYTE_CHARS = _byte_chars()
_CHAR_BYTES = {char: byte for byte, char in enumerate(BYTE_CHARS)}


def _token_bytes(name: str) -> bytes:
    """词表里的写法 → 字节。"""
    return bytes(_CHAR_BYTES[char] for char in name)


# ── 训练：学合并 ──────────────────────────────────────────────────────
#
# 全部不同的词排成一个大数组，词与词之间隔一格；相邻关系是双向链表，合并只改链表：
#
#     合并前  | 看 山 看 山 | 看 |        合并 (看, 山) 之后  | 看山 × 看山 × | 看 |
#
# 每一对 token 记着自己出现在哪些位置（升序）。合并时只碰这些位置，由它们的左右邻居直接得出
# 新的对和次数，从不重数语料。合并也会拆掉旁边的对，堆里的次数因此可能偏大：等它来到
# 堆顶，再按记着的位置核对，少了就改小、放回去（惰性删除）。
#
# 同一个字符串不会由两对不同的 token 合成：它两头的边界若一直没有被跨过，里面每一步
# 怎么合并就只取决于它自己。所以每次合并必得一个新编号，一对的位置也总是一次记全。

_GAP = -1  # 词与词之间
_DEAD = -2  # 已经并入左邻的位置


def _pair_key(left, right):
    """一对编号 → 一个整数，大小次序与 (left, right) 相同；整数与数组都行。"""
    return (left << 32) | right


class _Pairs:
    """一次合并带来的新对：各自的次数和位置，按（次数大、编号小）的次序逐个取出。

    keys (N,) 升序；counts (N,)；第 i 对的位置是 places[starts[i]:starts[i + 1]]。
    """

    __slots__ = ("_order", "_taken", "counts", "keys", "places", "starts")

    def __init__(self, keys: np.ndarray, places: np.ndarray, weights: np.ndarray) -> None:
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        changes = np.ones(len(keys), dtype=bool)
        changes[1:] = keys[1:] != keys[:-1]
        first = np.flatnonzero(changes)
        self.keys = keys[first]
        self.starts = np.append(first, len(keys))
        self.places = places[order]
        self.counts = np.add.reduceat(weights[order], first) if len(first) else weights[:0]
        self._order = np.lexsort((self.keys, -self.counts)).astype(np.int32)
        self._taken = 0

    def take(self) -> int | None:
        """下一对的序号；取完了为 None。"""
        if self._taken == len(self._order):
            return None
        self._taken += 1
        return int(self._order[self._taken - 1])


class _Candidate(NamedTuple):
    """堆里的一项；次数取负，heapq 最先给出的就是次数最大、编号最小的一对。"""

    minus_count: int
    key: int
    batch: int  # 出自第几批 _Pairs
    slot: int  # 那一批里的序号
    rechecked: bool  # 次数改小后放回来的

    @property
    def pair(self) -> tuple[int, int]:
        return self.key >> 32, self.key & 0xFFFFFFFF


class _MergeLearner:
    """从 {词: 次数} 里学合并：反复 best() 找出最好的一对，merge() 把它合成新 token。"""

    def __init__(self, words: dict[str, int], byte_ids: Sequence[int]) -> None:
        # 0xFF 不会出现在 UTF-8 里，正好用作词与词之间的空格
        text = b"\xff" + b"".join(word.encode("utf-8") + b"\xff" for word in words)
        raw = np.frombuffer(text, dtype=np.uint8)
        table = np.array(byte_ids, dtype=np.int32)
        table[0xFF] = _GAP
        place = np.int32 if len(raw) < 1 << 31 else np.int64
        counts = np.fromiter(words.values(), dtype=np.int64, count=len(words))
        self.ids = table[raw]  # (P,) 每个位置上的 token
        self.left = np.arange(-1, len(raw) - 1, dtype=place)  # (P,) 左邻的位置
        self.right = np.arange(1, len(raw) + 1, dtype=place)  # (P,) 右邻的位置
        self.weights = np.ones(len(raw), dtype=np.int64)  # (P,) 所在的词出现几次
        self.weights[1:] = np.repeat(counts, np.diff(np.flatnonzero(raw == 0xFF)))
        self._batches: list[_Pairs] = []
        self._heap: list[_Candidate] = []
        self._add(self._first_pairs())

    def _first_pairs(self) -> _Pairs:
        places = np.flatnonzero((self.ids[:-1] >= 0) & (self.ids[1:] >= 0))
        places = places.astype(self.left.dtype)
        keys = _pair_key(self.ids[places].astype(np.int64), self.ids[places + 1])
        return _Pairs(keys, places, self.weights[places])

    def _add(self, pairs: _Pairs) -> None:
        self._batches.append(pairs)
        self._push_next(len(self._batches) - 1)

    def _push_next(self, batch: int) -> None:
        """每一批只有当前最好的一对在堆里，取走一个补一个：与全部入堆同效，却省内存。"""
        pairs = self._batches[batch]
        slot = pairs.take()
        if slot is not None:
            count, key = int(pairs.counts[slot]), int(pairs.keys[slot])
            heapq.heappush(self._heap, _Candidate(-count, key, batch, slot, False))

    def best(self) -> _Candidate | None:
        """次数最多的一对（相同取编号小的）；没有可合并的对时为 None。"""
        while self._heap:
            top = heapq.heappop(self._heap)
            if not top.rechecked:
                self._push_next(top.batch)
            count = int(self.weights[self._places(top)].sum())
            if count == -top.minus_count:
                return top
            if count > 0:
                heapq.heappush(self._heap, top._replace(minus_count=-count, rechecked=True))
        return None

    def _places(self, candidate: _Candidate) -> np.ndarray:
        """登记过的位置里，此刻仍是这一对的。"""
        pairs, slot = self._batches[candidate.batch], candidate.slot
        left_id, right_id = candidate.pair
        places = pairs.places[pairs.starts[slot] : pairs.starts[slot + 1]]
        places = places[self.ids[places] == left_id]
        return places[self.ids[self.right[places]] == right_id]

    def merge(self, best: _Candidate, new: int) -> None:
        """把 best 这一对都合成 new，并登记由此出现的新对。"""
        places = self._places(best)
        if best.pair[0] == best.pair[1]:  # 哈哈哈：从左到右两个两个地合
            places = self._every_other(places)
        seconds = self.right[places]
        nexts = self.right[seconds]
        self.ids[places] = new
        self.ids[seconds] = _DEAD
        self.right[places] = nexts
        self.left[nexts] = places

        prevs = self.left[places]
        prev_ids = self.ids[prevs].astype(np.int64)
        next_ids = self.ids[nexts].astype(np.int64)
        has_prev = prev_ids >= 0
        has_next = (next_ids >= 0) & (next_ids != new)  # 右邻也是 new 的，由右邻登记
        weights = self.weights[places]
        self._add(
            _Pairs(
                np.concatenate(
                    (_pair_key(prev_ids[has_prev], new), _pair_key(new, next_ids[has_next]))
                ),
                np.concatenate((prevs[has_prev], places[has_next])),
                np.concatenate((weights[has_prev], weights[has_next])),
            )
        )

    def _every_other(self, places: np.ndarray) -> np.ndarray:
        """首尾相接的一串位置里，取第 1、3、5…个。"""
        index = np.arange(len(places))
        starts = np.ones(len(places), dtype=bool)
        starts[1:] = self.right[places[:-1]] != places[1:]
        start_of = np.maximum.accumulate(np.where(starts, index, 0))
        return places[(index - start_of) % 2 == 0]


def count_words(texts: Iterable[str]) -> dict[str, int]:
    """全部文本切词后，每个词出现几次。"""
    words = Counter()
    for text in texts:
        words.update(split_words(clean(text)))
    return words


# ── 自己的分词器 ──────────────────────────────────────────────────────

_CACHE_PIECES = 1 << 19  # 编码时最多记住这么多碎片


class _Codec:
    """两种分词器共有的部分；子类给出 names（编号 → 词表里的写法）与 special_ids。"""

    names: list[str]
    special_ids: dict[str, int]
    pad_id, start_id, end_id = PAD_ID, START_ID, END_ID

    def _prepare_decoding(self) -> None:
        special = set(self.special_ids.values())
        self._bytes = [
            b"" if token in special else _token_bytes(name) for token, name in enumerate(self.names)
        ]

    @property
    def vocab_size(self) -> int:
        """词表大小，含特殊符号。"""
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """词表、合并与切词规则的 SHA-256；与实现、库的版本、文件的排版无关。"""
        return fingerprint(self.to_json())

    def to_json(self) -> str:
        """tokenizers 格式的 JSON。"""
        raise NotImplementedError

    def token_bytes(self, token: int) -> bytes:
        """一个 token 的字节；特殊符号是 b""。编号不在词表里时抛出 ValueError。"""
        if not 0 <= token < len(self._bytes):
            raise ValueError(f"编号 {token} 不在词表里（共 {len(self._bytes)} 个）")
        return self._bytes[token]

    def decode(self, ids: Iterable[int]) -> str:
        """编号 → 文本；特殊符号略去，残缺的字节成为 U+FFFD。"""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def save(self, path: str | Path) -> None:
        """存成 tokenizers 格式的 JSON 文件。"""
        Path(path).write_bytes(self.to_json().encode("utf-8"))

    @classmethod
    def from_json(cls, text: str):
        """由 tokenizers 格式的 JSON 造出；不是本项目能用的分词器时抛出 ValueError。"""
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path):
        """读 JSON 文件；格式不对时抛出写明文件名的 ValueError。"""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8-sig"))
        except ValueError as error:  # 也包括 UnicodeDecodeError
            raise ValueError(f"{path} 不是可用的分词器文件：{error}") from error


def _crossings(token: bytes) -> Iterator[tuple[bytes, bytes]]:
    """token 跨过的每个字界：(字界左边那个字在 token 里的字节, 右边的)。"""
    starts = [at for at in range(1, len(token)) if token[at] & 0xC0 != 0x80]
    edges = [0, *starts, len(token)]
    for before, at, after in zip(edges, starts, edges[2:]):
        yield token[before:at], token[at:after]


class BPETokenizer(_Codec):
    """从零写成的字节级 BPE。"""

    def __init__(self, special_tokens: Sequence[str] = SPECIAL_TOKENS) -> None:
        """只有特殊符号和 256 个字节、还没有合并的分词器。"""
        special_tokens = list(special_tokens)
        if len(set(special_tokens)) != len(special_tokens):
            raise ValueError(f"特殊符号有重复：{special_tokens}")
        for token in special_tokens:
            if len(split_words(token)) < 2:
                raise ValueError(f"特殊符号 {token!r} 会与普通的词混淆，请写成 <|名字|> 的样子")
        names = special_tokens + sorted(BYTE_CHARS)
        self._set(names, {name: token for token, name in enumerate(special_tokens)}, {})

    def _set(self, names: list, special_ids: dict, merges: dict) -> None:
        """names: 编号 → 写法；merges: (左, 右) → 新编号，按学到的先后排列。"""
        self.names = names
        self.special_ids = special_ids
        self.merges = merges
        self._rank = {pair: rank for rank, pair in enumerate(merges)}
        self._merged = list(merges.values())
        ids = {name: token for token, name in enumerate(names)}
        self._byte_ids = [ids[char] for char in BYTE_CHARS]
        self._prepare_decoding()
        self._crossings = {}  # 字界左边的字节 → 右边的各种字节，凡有 token 跨过的
        for before, after in (found for token in self._bytes for found in _crossings(token)):
            self._crossings.setdefault(before, set()).add(after)
        self._edges = {}  # 字 → _add_edge 的结果
        self._pieces = {}  # 碎片 → 编号

    def train(
        self,
        texts: Iterable[str],
        vocab_size: int,
        on_token: Callable[[int], None] | None = None,
    ) -> BPETokenizer:
        """从 texts 学合并，直到词表有 vocab_size 个 token 或没有可合并的对；返回自己。

        与 tokenizers 的 BpeTrainer（min_frequency=0，初始字母表为 256 个字节）学到的
        合并逐条相同。on_token(词表大小) 在每次合并后调用，供进度条用。
        """
        words = count_words(texts)
        names = [*self.special_ids, *sorted(BYTE_CHARS)]
        ids = {name: token for token, name in enumerate(names)}
        learner = _MergeLearner(words, [ids[char] for char in BYTE_CHARS])
        del words
        merges = {}
        while len(names) < vocab_size:
            best = learner.best()
            if best is None:
                break
            left, right = best.pair
            merges[best.pair] = len(names)
            learner.merge(best, len(names))
            names.append(names[left] + names[right])
            if on_token:
                on_token(len(names))
        self._set(names, self.special_ids, merges)
        return self

    # 编码

    def encode(self, text: str) -> list[int]:
        """文本 → 编号；全部当作普通文字。"""
        ids = []
        known = self._pieces.get
        for word in split_words(clean(text)):
            for piece in self._cut(word):
                ids += known(piece) or self._encode_piece(piece)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """逐个 encode。"""
        return [self.encode(text) for text in texts]

    def _cut(self, word: str) -> list[str]:
        """在没有任何 token 会跨过的地方切开：两边互不影响，碎片又短又常见，记住结果即可。"""
        pieces, start, reach = [], 0, ()
        known = self._edges.get
        for at, char in enumerate(word):
            heads, next_reach = known(char) or self._add_edge(char)
            if at and (not reach or reach.isdisjoint(heads)):
                pieces.append(word[start:at])
                start = at
            reach = next_reach
        pieces.append(word[start:])
        return pieces

    def _add_edge(self, char: str) -> tuple[list[bytes], set[bytes]]:
        """(这个字的各种开头, 有 token 从这个字跨到的下一个字的各种开头)。"""
        raw = char.encode("utf-8")
        heads = [raw[:length] for length in range(1, len(raw) + 1)]
        reach = set().union(*(self._crossings.get(raw[at:], ()) for at in range(len(raw))))
        self._edges[char] = heads, reach
        return heads, reach

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        ids = tuple(self._merge([self._byte_ids[byte] for byte in piece.encode("utf-8")]))
        if len(self._pieces) >= _CACHE_PIECES:
            self._pieces.clear()
        self._pieces[piece] = ids
        return ids

    def _merge(self, ids: list[int]) -> list[int]:
        """反复合并最早学到的一对（相同取最左边的）；用堆找它，用链表删除，长词也不慢。"""
        rank = self._rank.get
        count = len(ids)
        left = list(range(-1, count - 1))
        right = list(range(1, count + 1))
        heap = [(rank(pair), at) for at, pair in enumerate(zip(ids, ids[1:])) if pair in self._rank]
        heapq.heapify(heap)
        while heap:
            best, at = heapq.heappop(heap)
            after = right[at]
            if after >= count or rank((ids[at], ids[after])) != best:
                continue  # 这一对已经被别的合并拆掉
            ids[at], ids[after] = self._merged[best], _DEAD
            after = right[at] = right[after]
            if after < count:
                left[after] = at
            for first, second in ((left[at], at), (at, after)):
                if first >= 0 and second < count:
                    found = rank((ids[first], ids[second]))
                    if found is not None:
                        heapq.heappush(heap, (found, first))
        return [token for token in ids if token != _DEAD]

    # 文件

    def to_json(self) -> str:
        """tokenizers 格式的 JSON，与该库存出的一字不差。"""
        names = self.names
        spec = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": token, "content": name, **_ADDED_TOKEN}
                for name, token in self.special_ids.items()
            ],
            "normalizer": None,
            "pre_tokenizer": _PRE_TOKENIZER,
            "post_processor": None,
            "decoder": _BYTE_LEVEL,
            "model": {
                **_MODEL,
                "vocab": {name: token for token, name in enumerate(names)},
                "merges": [[names[left], names[right]] for left, right in self.merges],
            },
        }
        return json.dumps(spec, ensure_ascii=False, indent=2)

    @classmethod
    def from_json(cls, text: str) -> BPETokenizer:
        """由 JSON 造出；不是本项目能用的分词器时抛出 ValueError。"""
        spec = parse(text)
        ids = spec["model"]["vocab"]
        merges = {(ids[left], ids[right]): ids[left + right] for left, right in _merge_pairs(spec)}
        made = cls.__new__(cls)
        made._set(sorted(ids, key=ids.get), _special_ids(spec), merges)
        return made


# ── tokenizers 库的封装 ───────────────────────────────────────────────


class HFTokenizer(_Codec):
    """tokenizers 库（Rust）的薄封装：与 BPETokenizer 结果相同，快得多。"""

    def __init__(self, inner: Tokenizer) -> None:
        """inner 由 from_json 或训练而来。"""
        spec = parse(inner.to_str())
        if not hasattr(inner, "encode_special_tokens"):
            raise ValueError("tokenizers 太旧，请运行：pip install -U tokenizers")
        inner.encode_special_tokens = True  # 文件里不保存这一项，每次都要设
        ids = spec["model"]["vocab"]
        self.inner = inner
        self.names = sorted(ids, key=ids.get)
        self.special_ids = _special_ids(spec)
        self._encode_all = getattr(inner, "encode_batch_fast", inner.encode_batch)
        self._prepare_decoding()

    @classmethod
    def from_json(cls, text: str) -> HFTokenizer:
        """由 JSON 造出；不是本项目能用的分词器时抛出 ValueError。"""
        parse(text)
        try:
            return cls(Tokenizer.from_str(text))
        except ValueError:
            raise
        except Exception as error:  # 库对一切问题都只抛 Exception
            raise ValueError(f"tokenizers 读不了：{error}") from error

    def encode(self, text: str) -> list[int]:
        """文本 → 编号；全部当作普通文字。"""
        return self.inner.encode(clean(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """多个文本一起编码（多线程）。"""
        cleaned = [clean(text) for text in texts]
        return [found.ids for found in self._encode_all(cleaned, add_special_tokens=False)]

    def to_json(self) -> str:
        """tokenizers 格式的 JSON。"""
        return self.inner.to_str(pretty=True)


# ── 文件格式 ──────────────────────────────────────────────────────────

_ADDED_TOKEN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": SPLIT_REGEX},
            "behavior": "Isolated",
            "invert": False,
        },
        _BYTE_LEVEL,
    ],
}
_MODEL = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def parse(text: str) -> dict:
    """读 tokenizers 格式的 JSON，核对它是本项目的字节级 BPE；不是就抛出 ValueError。"""
    try:
        spec = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"第 {error.lineno} 行第 {error.colno} 列不是合法的 JSON：{error.msg}"
        ) from error
    problem = _spec_problem(spec)
    if problem:
        raise ValueError(problem)
    return spec


def _spec_problem(spec) -> str | None:
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        return "没有 model.vocab，不像 tokenizers 的文件"
    differing = [key for key, value in _MODEL.items() if model.get(key, value) != value]
    if differing:
        return f"model 的 {'、'.join(differing)} 与字节级 BPE 不符"
    if spec.get("normalizer") or not _same_splitting(spec.get("pre_tokenizer")):
        return "切词规则不是 Qwen2 的（本项目的编码、导出都以它为准）"
    vocab = model["vocab"]
    whole = all(type(token) is int for token in vocab.values())
    if not whole or sorted(vocab.values()) != list(range(len(vocab))):
        return f"词表的编号不是 0 到 {len(vocab) - 1} 各一个"
    return _special_problem(spec) or _vocab_problem(spec)


def _same_splitting(pre_tokenizer) -> bool:
    """切词规则是否相同；trim_offsets 只影响偏移，不算。"""

    def essence(steps):
        return [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps]

    try:
        return essence(pre_tokenizer["pretokenizers"]) == essence(_PRE_TOKENIZER["pretokenizers"])
    except (TypeError, KeyError, AttributeError):
        return False


def _special_problem(spec: dict) -> str | None:
    try:
        special_ids = _special_ids(spec)
    except (TypeError, KeyError):
        return "added_tokens 残缺"
    if sorted(special_ids.values())[: END_ID + 1] != [PAD_ID, START_ID, END_ID]:
        return "编号 0、1、2 应是填充、开始、结束三个特殊符号"
    vocab = spec["model"]["vocab"]
    wrong = [name for name, token in special_ids.items() if vocab.get(name) != token]
    return f"特殊符号 {wrong[0]} 在词表里的编号对不上" if wrong else None


def _vocab_problem(spec: dict) -> str | None:
    vocab = spec["model"]["vocab"]
    missing = [byte for byte, char in enumerate(BYTE_CHARS) if char not in vocab]
    if missing:
        return f"词表缺少字节 0x{missing[0]:02X}"
    special = _special_ids(spec)
    for name in vocab:
        if name not in special and not (name and set(name) <= _CHAR_BYTES.keys()):
            return f"词表里的 {name!r} 不是字节级的写法"
    try:
        pairs = _merge_pairs(spec)
    except (TypeError, ValueError, LookupError):
        return "model.merges 的写法不对"
    for left, right in pairs:
        if not (left in vocab and right in vocab and left + right in vocab):
            return f"合并 {left} + {right} 用到了词表里没有的 token"
    return None


def _special_ids(spec: dict) -> dict[str, int]:
    """特殊符号 → 编号，按编号排列。"""
    tokens = [(token["id"], token["content"]) for token in spec["added_tokens"] if token["special"]]
    return {name: token for token, name in sorted(tokens)}


def _merge_pairs(spec: dict) -> list[tuple[str, str]]:
    """合并表；新版写成 ["a", "b"]，旧版写成 "a b"。"""
    return [
        tuple(pair.split(" ")) if isinstance(pair, str) else (pair[0], pair[1])
        for pair in spec["model"]["merges"]
    ]


def fingerprint(text: str) -> str:
    """分词器 JSON 的 SHA-256；只看词表、合并、特殊符号，与库的版本和排版无关。"""
    spec = parse(text)
    essence = [spec["model"]["vocab"], _merge_pairs(spec), _special_ids(spec), SPLIT_REGEX]
    canonical = json.dumps(essence, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


# ── 边生成边显示 ──────────────────────────────────────────────────────


class StreamDecoder:
    """逐个 token 解码，只给出完整的字：跨 token 的字等它的字节到齐。

    全部 feed 的结果加上 flush，与一次 decode 相同。
    """

    def __init__(self, tokenizer: BPETokenizer | HFTokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """送入一个编号，取回因此完整了的字（可能是空串）。"""
        return self._decoder.decode(self._token_bytes(token))

    def flush(self) -> str:
        """结束：没有凑成字的字节成为 U+FFFD。"""
        return self._decoder.decode(b"", final=True)


# ── 体检 ──────────────────────────────────────────────────────────────


def report(tokenizer: BPETokenizer | HFTokenizer, texts: Iterable[str], longest: int = 10) -> dict:
    """分词器在 texts 上的表现。

    返回 vocab_size；texts、chars、tokens 的个数；chars_per_token；split_char_share（被
    切到几个 token 里的字所占的份额，0–1）；unused_tokens（一次没用到的普通 token 数）；
    longest_tokens（词表里最长的几个 token，真正的文字）。texts 可以是很大的迭代器。
    """
    used = np.zeros(tokenizer.vocab_size, dtype=bool)
    special = list(tokenizer.special_ids.values())
    lengths = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
    total = Counter()
    source = iter(texts)
    while True:
        batch = [clean(text) for text in islice(source, 1000)]
        if not batch:
            break
        ids = np.array(list(chain.from_iterable(tokenizer.encode_batch(batch))), dtype=np.int64)
        used[ids] = True
        raw = np.frombuffer("".join(batch).encode("utf-8"), dtype=np.uint8)
        char_of = np.cumsum((raw & 0xC0) != 0x80) - 1  # 每个字节属于第几个字
        ends = np.cumsum(lengths[ids])[:-1]  # token 之间的边界
        inside = char_of[ends[char_of[ends] == char_of[ends - 1]]]
        total.update(
            texts=len(batch),
            chars=sum(map(len, batch)),
            tokens=len(ids),
            split=len(np.unique(inside)),
        )
    used[special] = True
    return {
        "vocab_size": tokenizer.vocab_size,
        "texts": total["texts"],
        "chars": total["chars"],
        "tokens": total["tokens"],
        "chars_per_token": total["chars"] / max(total["tokens"], 1),
        "split_char_share": total["split"] / max(total["chars"], 1),
        "unused_tokens": int(np.count_nonzero(~used)),
        "longest_tokens": longest_tokens(tokenizer, longest),
    }


def longest_tokens(tokenizer: BPETokenizer | HFTokenizer, count: int = 10) -> list[str]:
    """字数最多的几个 token（同长的编号小的在前）；含残缺的字的不算。"""
    found = []
    for token in range(tokenizer.vocab_size):
        text = tokenizer.decode([token])
        if text and "\ufffd" not in text:
            found.append((-len(text), token, text))
    return [text for _, _, text in sorted(found)[:count]]
