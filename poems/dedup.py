"""找重复的诗：规范形式、MinHash 签名、标题的部分标记。只用 numpy，不依赖项目里的其他模块。

一首诗先化成“规范形式”（只留字母、数字与汉字），再切成三字片段；两首诗共有的片段越多越像。
签名是 64 个 16 位的 MinHash（Broder 1997，"On the resemblance and containment of documents"）：
两首诗的签名有多大比例相同，它们片段集合的 Jaccard 系数就约为多少。一首诗只占 128 字节。
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from typing import Sequence

import numpy as np

SHINGLE = 3  # 片段的字数
HASHES = 64  # 一个签名里 MinHash 的个数
NOTHING = 0xFFFF  # 整行都是它的签名是“没有文字”，与谁都不像
_BATCH = 1 << 16  # 一批的片段数：让中间结果留在处理器缓存里

_NOT_WORD = re.compile(r"[\W_]+")


# ── 规范形式与相似度 ──────────────────────────────────────────────────


def normal_form(text: str) -> str:
    """去掉标点与空白，统一全角半角与大小写：规范形式相同的诗就是同一首。

    >>> normal_form("ＡＢ，春　天！") == normal_form("ab春天")
    True
    """
    return unicodedata.normalize("NFKC", _NOT_WORD.sub("", text)).lower()


def digest(normal: str) -> int:
    """规范形式的 64 位摘要，用来找完全重复。"""
    data = normal.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def shingles(normal: str) -> Counter:
    """规范形式 → 各三字片段出现的次数。"""
    return Counter(
        normal[i : i + SHINGLE] for i in range(max(1, len(normal) - SHINGLE + 1)) if normal
    )


def overlap(first: Counter, second: Counter) -> float:
    """较短一首的片段里，有多大比例也在另一首里（计次数），0 到 1。节选与全诗的重合度为 1。"""
    if sum(first.values()) > sum(second.values()):
        first, second = second, first
    total = sum(first.values())
    shared = sum(min(count, second[piece]) for piece, count in first.items())
    return shared / total if total else 0.0


# ── MinHash 签名 ──────────────────────────────────────────────────────


def signature(texts: Sequence[str]) -> np.ndarray:
    """规范形式 n 首 → uint16 数组 (n, 64)。空诗的签名全为 NOTHING。"""
    result = np.full((len(texts), HASHES), NOTHING, dtype=np.uint16)
    start = 0
    while start < len(texts):
        end, size = start, 0
        while end < len(texts) and size < _BATCH:
            size += len(texts[end])
            end += 1
        _sign_batch(texts[start:end], result[start:end])
        start = end
    return result


def _sign_batch(texts: Sequence[str], result: np.ndarray) -> None:
    """算一批签名，写进 result (n, 64)。"""
    padded = [text.ljust(SHINGLE, "\0") for text in texts]
    lengths = np.array([len(text) for text in padded], dtype=np.int64)
    codes = np.frombuffer(
        "".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32
    ).astype(np.uint64)
    # 三个码位（各不足 21 位）拼成一个 63 位整数，再打散成 32 位；跨诗的片段去掉
    packed = codes[:-2] | codes[1:-1] << np.uint64(21) | codes[2:] << np.uint64(42)
    inside = np.ones(len(packed), dtype=bool)
    ends = np.cumsum(lengths)
    for back in (1, 2):
        inside[ends[:-1] - back] = False
    hashed = _scramble(packed[inside])
    counts = lengths - (SHINGLE - 1)
    starts = np.cumsum(counts) - counts
    work = np.empty_like(hashed)
    for k in range(HASHES):
        # 先异或再乘奇数，是 32 位整数上的一个置换；取其最小者
        np.bitwise_xor(hashed, _XOR[k], out=work)
        np.multiply(work, _ODD[k], out=work)
        result[:, k] = np.minimum.reduceat(work, starts)  # 只留低 16 位
    result[[not text for text in texts]] = NOTHING


def _scramble(values: np.ndarray) -> np.ndarray:
    """64 位整数 → 打散的 32 位整数（splitmix64 的收尾步骤）。"""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (values >> np.uint64(32)).astype(np.uint32)


_XOR, _ODD = (
    _scramble(np.arange(start, start + HASHES, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    for start in (1, 1 + HASHES)
)
_ODD |= np.uint32(1)


# ── 标题与作者 ────────────────────────────────────────────────────────


def title_key(title: str, author: str) -> int:
    """（标题，作者）的 64 位摘要，不为 0。"""
    return digest(f"{normal_form(author)}\n{normal_form(title)}") or 1


def part_key(title: str, author: str) -> tuple[int, bool]:
    """（标题去掉部分标记，作者）的摘要，与标题里有没有部分标记：同一首诗的各部分摘要相同。"""
    base = base_title(title)
    return title_key(base, author), base != _flat(title)


# ── 标题里的部分标记 ──────────────────────────────────────────────────

_NUMBER = r"(?:[〇零一二三四五六七八九十百两]+|\d{1,3}|[IVX]{1,6})"
_UNIT = "[章首辑部节回篇卷段组幕场页]"
_NAMED = (  # 写明了的：之一、其二、第三章、（四）、（上）
    rf"(?:之\s*{_NUMBER}|其{_NUMBER}|第{_NUMBER}{_UNIT}"
    rf"|[(\[]\s*(?:之|其|第)?(?:{_NUMBER}|[上中下])\s*{_UNIT}?\s*[)\]])"
)
_LOOSE = (  # 只在标题末尾才算的
    r"(?:[(\[_]*(?:长诗|组诗)?节选[)\]]*|[(\[_: ]+(?:长诗|组诗)?选[一二三四五六七八九十\d]*[)\]]*"
    rf"|[(\[_]组诗[)\]]?|[(\[]外?{_NUMBER}首[)\]]|[上中下][篇部卷阕]"
    rf"|[\s:·,、\-_]+(?:part\s*)?{_NUMBER}|[\s:·_\-]+[上中下]"
    r"|(?<=[^\d.])\d{1,3}|(?<=[^IVXA-Za-z])[IVX]{1,4}"
    r"|(?<=..)[一二三四五六七八九十]+)"
)
_MID = re.compile(rf"^(.+?)[\s:·\-—_]*{_NAMED}(?:[:\s]|——|--|·).*$", re.IGNORECASE)
_END = re.compile(rf"^(.+?)[\s:·,、\-—_]*(?:{_NAMED}|{_LOOSE})$")
_SUITE = re.compile(r"^([^:]{2,}):.+$")  # 组诗名：分题
_LABEL = re.compile(r"^(?:组诗|长诗|诗剧)[:\s]+(?=.)")
_ONLY_NUMBERS = re.compile(r"^[〇零一二三四五六七八九十百\d\W]*$")


def base_title(title: str) -> str:
    """去掉标题里的部分标记，得到整首诗的名字（统一了全角半角）。没有标记时原样。

    >>> [base_title(t) for t in ("秋歌之四", "繁星：一三六", "太阳_节选", "歌（二十）", "在路上")]
    ['秋歌', '繁星', '太阳', '歌', '在路上']
    >>> base_title("青楼之三：四道指痕"), base_title("第二章"), base_title("1998")
    ('青楼', '第二章', '1998')
    """
    base = _LABEL.sub("", _flat(title))
    for pattern in (_MID, _SUITE, _END, _END):
        match = pattern.match(base)
        if match and not _ONLY_NUMBERS.match(match.group(1)):
            base = match.group(1).rstrip(" :·,、-—_")
    return base


def _flat(title: str) -> str:
    return unicodedata.normalize("NFKC", title).strip()
