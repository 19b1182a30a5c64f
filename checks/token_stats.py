"""分词器的体检：压缩率、切碎的字、用不到的与最长的 token。"""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice
from typing import Iterable

import numpy as np

from tokenizer import Codec, clean


def report(tokenizer: Codec, texts: Iterable[str], longest: int = 10) -> dict:
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


def longest_tokens(tokenizer: Codec, count: int = 10) -> list[str]:
    """字数最多的几个 token（同长的编号小的在前）；含残缺的字的不算。"""
    found = []
    for token in range(tokenizer.vocab_size):
        text = tokenizer.decode([token])
        if text and "\ufffd" not in text:
            found.append((-len(text), token, text))
    return [text for _, _, text in sorted(found)[:count]]
