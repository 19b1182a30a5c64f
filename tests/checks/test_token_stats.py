"""分词器的统计：与逐字逐个地数相同，两种实现相同。"""

from __future__ import annotations

import random

import pytest

from checks import token_stats
from tests.test_tokenizer import ALPHABETS, HAN, poem_corpus, random_text, train_hf
from tokenizer import BPETokenizer, HFTokenizer


@pytest.fixture(scope="module")
def ours() -> BPETokenizer:
    return BPETokenizer().train(poem_corpus(), 1500)


@pytest.fixture(scope="module")
def theirs() -> HFTokenizer:
    return train_hf(poem_corpus(), 1500)


def test_report_counts_by_hand() -> None:
    made = BPETokenizer().train(["山水"] * 9 + ["月月"] * 5, 263)
    # 4 个合并都在“山水”里：山、水各两步；月仍是 3 个字节
    found = token_stats.report(made, ["山水月", "a"])
    ids = made.encode("山水月") + made.encode("a")
    assert found["texts"] == 2
    assert found["chars"] == 4
    assert found["tokens"] == len(ids)
    assert found["chars_per_token"] == pytest.approx(4 / len(ids))
    assert found["split_char_share"] == pytest.approx(_split_chars(made, ["山水月", "a"]) / 4)
    assert found["unused_tokens"] == made.vocab_size - 3 - len(set(ids))
    assert all("è" not in text and "\ufffd" not in text for text in found["longest_tokens"])


def _split_chars(tok: BPETokenizer, texts: list[str]) -> int:
    """逐字地数：一个字的字节落在几个 token 里。"""
    split = 0
    for text in texts:
        owners = [n for n, token in enumerate(tok.encode(text)) for _ in tok.token_bytes(token)]
        for char in text:
            size = len(char.encode("utf-8"))
            split += len(set(owners[:size])) > 1
            owners = owners[size:]
    return split


def test_report_agrees_with_counting_one_by_one(ours: BPETokenizer, theirs: HFTokenizer) -> None:
    rng = random.Random(17)
    texts = [random_text(rng, rng.choice(ALPHABETS)) for _ in range(1200)]
    found = token_stats.report(ours, iter(texts))
    assert found == token_stats.report(theirs, texts)
    assert found["split_char_share"] == pytest.approx(
        _split_chars(ours, texts) / sum(map(len, texts))
    )


def test_report_on_nothing(ours: BPETokenizer) -> None:
    for texts in ([], ["", ""]):
        found = token_stats.report(ours, texts)
        assert found["chars_per_token"] == found["split_char_share"] == 0
        assert found["unused_tokens"] == ours.vocab_size - 3


def test_longest_tokens_are_real_characters(ours: BPETokenizer) -> None:
    longest = token_stats.longest_tokens(ours, 5)
    assert len(longest) == 5
    assert [len(text) for text in longest] == sorted(map(len, longest), reverse=True)
    assert any(char in HAN for char in longest[0])
