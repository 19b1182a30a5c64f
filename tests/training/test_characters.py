"""同一个字的词一起学：与“自己的一份加各个字的一份”是同一回事，续训是同一次训练，旧检查点照样能用。"""

from __future__ import annotations

import pytest
import torch

import checkpoint
from gpt import GPT, GPTConfig
from tests.small_run import quick, same_when_interrupted, stop_before, values, weights, work_dir
from tests.tiny_tokenizer import train as train_tokenizer
from training import characters, loop, optim, prepare
from training.distributed import Ranks

POEMS = ["月光照着月亮", "月光照着光阴", "他看月亮，看光阴"] * 4


@pytest.fixture(autouse=True, scope="module")
def quick_start():
    with quick(poem="诗"):
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(POEMS, 300)


def test_words_with_the_same_character_are_found(tokenizer):
    spelling = characters.spelling(tokenizer)
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    words = [text for text in texts[3:] if "\ufffd" not in text]
    edges = [*spelling.of_char.tolist(), len(spelling.words)]
    groups = [{texts[word] for word in spelling.words[a:b]} for a, b in zip(edges, edges[1:])]
    inside = {char for word in words if len(word) > 1 for char in word}
    assert {"月", "光"} < inside and len(groups) == len(inside)
    for char in inside:
        assert {word for word in words if char in word} in groups


def test_without_longer_words_there_is_nothing_to_share():
    assert characters.spelling(train_tokenizer(["天", "地"], 262)) is None


def test_a_step_moves_each_word_by_itself_and_by_its_characters(tokenizer):
    """与真的把词嵌入写成两份之和来训练的，一样。"""
    spelling = characters.spelling(tokenizer)
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, max_seq_len=16, dim=8, n_head=2, ff=8, n_block=1))
    weight = model.embed.weight
    own = torch.nn.Parameter(weight.detach().clone())
    shared = torch.nn.Parameter(torch.zeros(len(spelling.of_char), 8))
    has = torch.zeros(tokenizer.vocab_size, len(spelling.of_char))
    edges = [*spelling.of_word.tolist(), len(spelling.chars)]
    for word, (start, end) in enumerate(zip(edges, edges[1:])):
        for char in spelling.chars[start:end]:
            has[word, char] += 1
    ours = optim.build(model, "adamw", 0.01, 0.01, 0.1, spelling=spelling, char_lr=0.02)
    options = {"betas": (0.9, 0.95), "weight_decay": 0.0}
    theirs = torch.optim.AdamW(
        [{"params": [own], "lr": 0.01}, {"params": [shared], "lr": 0.02}], **options
    )
    for _ in range(5):
        slope = torch.randn_like(own)
        weight.grad = slope.clone()
        ours.step(1.0)
        theirs.zero_grad()
        ((own + has @ shared) * slope).sum().backward()
        theirs.step()
    assert torch.allclose(weight, own + has @ shared, atol=1e-6)


def test_interrupted_is_the_same_run(tmp_path, data, monkeypatch):
    assert same_when_interrupted(monkeypatch, tmp_path, data, CHAR_LR=0.003)


def test_zero_leaves_every_word_to_itself(tmp_path, data):
    apart = prepare.open_run(values(work_dir(tmp_path / "apart", data), CHAR_LR=0.0), Ranks())
    assert "chars" not in apart.stepper.optimizers.members


def test_it_can_be_turned_on_later(tmp_path, data, monkeypatch):
    """检查点里没有字的一份，照样接着练，从那里起一起学。"""
    folder = work_dir(tmp_path / "old", data)
    stop_before(monkeypatch, 5)
    loop.train(values(folder, CHAR_LR=0.0))
    before = checkpoint.load(folder / "checkpoint.bin")
    assert "chars" not in before["optimizer"]
    assert loop.train(values(folder, CHAR_LR=0.003))["updates"] == 12
    after = checkpoint.load(folder / "checkpoint.bin")
    assert after["optimizer"]["chars"][0]["step"] == 7
    assert not torch.equal(weights(folder)["embed.weight"], before["weights"]["embed.weight"])
