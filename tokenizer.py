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

import abc
import codecs
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

from tokenizers import Regex, Tokenizer, pre_tokenizers

from kernels.bpe import MergeLearner, WordEncoder

# Qwen2 的切词规则：transformers 与 llama.cpp（pre=qwen2）都认识它
SPLIT_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ("<|padding|>", "<|im_start|>", "<|im_end|>")
PAD_ID, START_ID, END_ID = range(3)
LONGEST_WORD = 512  # 训练时一个词至多这么多字


# ── 文本、词、字节 ────────────────────────────────────────────────────

_SURROGATES = re.compile("[\ud800-\udfff]")
_SPLITTER = pre_tokenizers.Split(Regex(SPLIT_REGEX), "isolated")


def clean(text: str) -> str:
    """孤立的代理码位（写不成 UTF-8）换成 U+FFFD，其余原样。"""
    return _SURROGATES.sub("\ufffd", text)


def split_words(text: str) -> list[str]:
    """按 SPLIT_REGEX 切词；首尾相接就是原文。"""
    return [word for word, _ in _SPLITTER.pre_tokenize_str(text)]


def short_words(texts: Iterable[str]) -> Iterator[str]:
    """训练用的文本：没有标点的长文，词切成不超过 LONGEST_WORD 字的几段，各作一个文本。

    tokenizers 训练的时间与词长的平方成正比；两种训练都先经过这里，学到的合并才相同。
    """
    for text in map(clean, texts):
        words = split_words(text) if len(text) > LONGEST_WORD else [text]
        if max(map(len, words), default=0) <= LONGEST_WORD:
            yield text
            continue
        for word in words:
            for start in range(0, len(word), LONGEST_WORD):
                yield word[start : start + LONGEST_WORD]


def _byte_chars() -> list[str]:
    """256 个字节在词表文件里的写法（GPT-2 的约定）：可见字符写自己，其余从 U+0100 排起。"""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]


BYTE_CHARS = _byte_chars()
_CHAR_BYTES = {char: byte for byte, char in enumerate(BYTE_CHARS)}


def _bytes_of(names: list[str], special_ids: dict[str, int]) -> list[bytes]:
    """编号 → 字节；特殊符号是 b""。"""
    return [
        b"" if name in special_ids else bytes(_CHAR_BYTES[char] for char in name) for name in names
    ]


def _byte_ids(names: list[str]) -> list[int]:
    """字节 → 编号。"""
    ids = {name: token for token, name in enumerate(names)}
    return [ids[char] for char in BYTE_CHARS]


def count_words(texts: Iterable[str]) -> dict[str, int]:
    """全部文本切词后，每个词出现几次；太长的词切成几段。"""
    words = Counter()
    for text in short_words(texts):
        words.update(split_words(text))
    return words


# ── 自己的分词器 ──────────────────────────────────────────────────────


class Codec(abc.ABC):
    """两种分词器共有的部分。"""

    pad_id, start_id, end_id = PAD_ID, START_ID, END_ID

    def __init__(self, names: list[str], special_ids: dict[str, int]) -> None:
        """names: 编号 → 词表里的写法；special_ids: 特殊符号 → 编号。"""
        self.names, self.special_ids = names, special_ids
        self._bytes = _bytes_of(names, special_ids)

    @property
    def vocab_size(self) -> int:
        """词表大小，含特殊符号。"""
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """词表、合并与切词规则的 SHA-256；与实现、库的版本、文件的排版无关。"""
        return fingerprint(self.to_json())

    @abc.abstractmethod
    def to_json(self) -> str:
        """tokenizers 格式的 JSON。"""

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
    @abc.abstractmethod
    def from_json(cls, text: str) -> Codec:
        """由 tokenizers 格式的 JSON 造出；不是本项目能用的分词器时抛出 ValueError。"""

    @classmethod
    def load(cls, path: str | Path) -> Codec:
        """读 JSON 文件；格式不对时抛出写明文件名的 ValueError。"""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8-sig"))
        except ValueError as error:  # 也包括 UnicodeDecodeError
            raise ValueError(f"{path} 不是可用的分词器文件：{error}") from error


class BPETokenizer(Codec):
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
        super().__init__(names, {name: token for token, name in enumerate(special_tokens)})
        self.merges = {}  # (左, 右) → 新编号，按学到的先后排列
        self._encoder = WordEncoder(_byte_ids(names), self.merges, self._bytes)

    def _become(self, names: list, special_ids: dict, merges: dict) -> None:
        """换成另一套词表与合并。"""
        self.names, self.special_ids, self.merges = names, special_ids, merges
        self._bytes = _bytes_of(names, special_ids)
        self._encoder = WordEncoder(_byte_ids(names), merges, self._bytes)

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
        names = [*self.special_ids, *sorted(BYTE_CHARS)]
        learner = MergeLearner(count_words(texts), _byte_ids(names))
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
        self._become(names, self.special_ids, merges)
        return self

    def encode(self, text: str) -> list[int]:
        """文本 → 编号；全部当作普通文字。"""
        return self._encoder.encode(split_words(clean(text)))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """逐个 encode。"""
        return [self.encode(text) for text in texts]

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
        made = cls()
        made._become(sorted(ids, key=ids.get), _special_ids(spec), merges)
        return made


# ── tokenizers 库的封装 ───────────────────────────────────────────────


class HFTokenizer(Codec):
    """tokenizers 库（Rust）的薄封装：与 BPETokenizer 结果相同，快得多。"""

    def __init__(self, inner: Tokenizer) -> None:
        """inner 由 from_json 或训练而来。"""
        spec = parse(inner.to_str())
        if not hasattr(inner, "encode_special_tokens"):
            raise ValueError("tokenizers 太旧，请运行：pip install -U tokenizers")
        inner.encode_special_tokens = True  # 文件里不保存这一项，每次都要设
        ids = spec["model"]["vocab"]
        super().__init__(sorted(ids, key=ids.get), _special_ids(spec))
        self.inner = inner
        self._encode_all = getattr(inner, "encode_batch_fast", inner.encode_batch)

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
    except RecursionError as error:
        raise ValueError("JSON 嵌套太深") from error
    problem = _spec_problem(spec)
    if problem:
        raise ValueError(problem)
    return spec


def _spec_problem(spec: Any) -> str | None:
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


def _same_splitting(pre_tokenizer: Any) -> bool:
    """切词规则是否相同；trim_offsets 只影响偏移，不算。"""

    def essence(steps: list) -> list:
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
    vocab, special = spec["model"]["vocab"], _special_ids(spec)
    missing = [byte for byte, char in enumerate(BYTE_CHARS) if char not in vocab]
    if missing:
        return f"词表缺少字节 0x{missing[0]:02X}"
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
    made = {left + right: vocab[left + right] for left, right in pairs}
    learned = sorted(vocab, key=vocab.get)[: max(made.values(), default=0)]  # 再往后是人添的
    lost = [name for name in learned if not (name in made or name in special or len(name) == 1)]
    return f"没有合并写得出词表里的 {lost[0]!r}" if lost else None


def _special_ids(spec: dict) -> dict[str, int]:
    """特殊符号 → 编号，按编号排列。"""
    tokens = [(token["id"], token["content"]) for token in spec["added_tokens"] if token["special"]]
    return {name: token for token, name in sorted(tokens)}


def _merge_pairs(spec: dict) -> list[tuple[str, str]]:
    """合并表；新版写成 ["a", "b"]，旧版写成 "a b"；不是文字的是 TypeError。"""
    return [
        tuple(pair.split(" ")) if isinstance(pair, str) else (pair[0] + "", pair[1] + "")
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
    """逐个 token 解码，只给出完整的字；全部 feed 的结果加上 flush，与一次 decode 相同。"""

    def __init__(self, tokenizer: BPETokenizer | HFTokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """送入一个编号，取回因此完整了的字（可能是空串）。"""
        return self._decoder.decode(self._token_bytes(token))

    def flush(self) -> str:
        """结束：没有凑成字的字节成为 U+FFFD。"""
        return self._decoder.decode(b"", final=True)
