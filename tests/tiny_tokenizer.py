"""测试用的小分词器：当场用 tokenizers 训练，不到一秒。"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import tokenizer

SPECIAL = ["<|padding|>", "<|im_start|>", "<|im_end|>"]


def train_json(texts, vocab_size=600) -> str:
    """texts 上训练的 Qwen2 式字节级 BPE，tokenizers 的 JSON。"""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(tokenizer.SPLIT_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return inner.to_str()


def train(texts, vocab_size=600):
    """texts 上训练的 HFTokenizer。"""
    return tokenizer.HFTokenizer.from_json(train_json(texts, vocab_size))
