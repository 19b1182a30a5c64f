"""学合并、用合并：与照定义写的 BPE（tests/plain_bpe.py）处处相同；一个词再长也是线性的。"""

from __future__ import annotations

import random

import pytest

from kernels.bpe import MergeLearner, WordEncoder
from tests import plain_bpe

BYTE_IDS = list(range(3, 259))  # 字节 → 编号，前面留给三个特殊符号
ALPHABETS = (
    "ab",
    "aab",
    "哈",
    "哈呵a",
    "春风花月夜山水的一",
    "的一二三" + "".join(map(chr, range(0x4E00, 0x4E40))),
)


def random_words(seed: int) -> dict:
    rng = random.Random(seed)
    alphabet = ALPHABETS[seed % len(ALPHABETS)]
    texts = ("".join(rng.choices(alphabet, k=rng.randint(1, 12))) for _ in range(40))
    return {text: rng.randint(1, 5) for text in texts}


def learn(words: dict, limit: int) -> dict:
    learner, merges = MergeLearner(words, BYTE_IDS), {}
    while len(merges) < limit:
        best = learner.best()
        if best is None:
            break
        merges[best.pair] = 259 + len(merges)
        learner.merge(best, merges[best.pair])
    return merges


def encoder_of(merges: dict) -> WordEncoder:
    token_bytes = [b""] * 3 + [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        token_bytes.append(token_bytes[left] + token_bytes[right])
    return WordEncoder(BYTE_IDS, merges, token_bytes)


@pytest.mark.parametrize("seed", range(24))
def test_learning_is_the_definition(seed):
    words = random_words(seed)
    for limit in (0, 1, 20, 10_000):
        assert list(learn(words, limit).items()) == list(
            plain_bpe.learn(words, BYTE_IDS, 259, limit).items()
        )


@pytest.mark.parametrize("seed", range(12))
def test_encoding_is_the_definition(seed):
    merges = plain_bpe.learn(random_words(seed), BYTE_IDS, 259, 60)
    encoder = encoder_of(merges)
    for other in (seed, seed + 1, seed + 6):
        words = list(random_words(other))
        expected = [token for word in words for token in plain_bpe.apply(word, BYTE_IDS, merges)]
        assert encoder.encode(words) == expected
        assert encoder.encode(words) == expected  # 第二遍取自记住的碎片
