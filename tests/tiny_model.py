"""测试用的极小模型：真的分词器、随机权重、真的检查点文件。"""

from __future__ import annotations

import torch

import checkpoint
from gpt import GPT, GPTConfig
from poems import wording
from tokenizer import BPETokenizer, HFTokenizer

TEXTS = [
    "春天来了，花开在山坡上\n夏天的雨落在河边\n秋天的风吹过麦田",
    "冬天的雪压着屋顶\n\n月亮照在窗前，灯光昏黄\n我想起故乡和母亲",
    "一只鸟在想方向\n它飞过海洋，飞过远方\n天空很长。\n夜色苍茫",
    "user\nassistant\n写一首诗，题目是《春天》，8行的诗，藏头是“春夏秋冬”",
]


def tokenizer() -> HFTokenizer:
    """由 TEXTS 学来的小分词器：常用的字是整字 token，其余是字节。"""
    return HFTokenizer.from_json(BPETokenizer().train(TEXTS * 2, 480).to_json())


def model(vocab_size: int, max_seq_len: int = 128, seed: int = 0, std: float = 0.25) -> GPT:
    """随机权重的小模型；权重够大，各 token 的概率差得开。"""
    torch.manual_seed(seed)
    found = GPT(GPTConfig(vocab_size, max_seq_len, dim=32, n_head=2, ff=64, n_block=2))
    for value in found.parameters():
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=std)
        else:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return found.eval()


def save(path, *, seed=0, max_seq_len=128, kinds=wording.KINDS, whole_chars=False, **extra) -> dict:
    """写一个随机权重的检查点，返回 state；whole_chars 时它几乎只写整字与换行。"""
    tok = tokenizer()
    network = model(tok.vocab_size, max_seq_len, seed)
    if whole_chars:
        texts = [tok.token_bytes(i).decode("utf-8", "replace") for i in range(tok.vocab_size)]
        other = [i for i, text in enumerate(texts) if text != "\n" and not text.isalpha()]
        other += [i for i, text in enumerate(texts) if text.isascii() and text != "\n"]
        network.embed.weight.data[sorted(set(other) - {tok.end_id})] *= 0.01
    weights = checkpoint.weights_of(network)
    state = {**checkpoint.new_state(network.config, weights, tok.to_json(), kinds), **extra}
    checkpoint.save(path, state)
    return state
