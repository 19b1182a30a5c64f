"""模型：对照 PyTorch 自己的层与朴素写法；形状表；怎样算不改变结果。"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from embeding import rope_tables, rotate
from gpt import GPT, Execution, GPTConfig

CONFIG = GPTConfig(vocab_size=97, max_seq_len=64, dim=32, n_head=4, ff=48, n_block=2)


def random_model(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    model = GPT(config)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    return model.eval()


def naive_hidden(model, ids):
    """按定义逐步写出的前向。"""
    config, heads = model.config, model.config.n_head

    def norm(x, weight):
        return F.normalize(x, dim=-1) * x.size(-1) ** 0.5 * weight

    x = model.embed.weight[ids]
    length = ids.size(1)
    angles = torch.arange(length)[:, None] * config.rope_theta ** -(
        torch.arange(0, config.head_dim, 2) / config.head_dim
    )
    turn = torch.polar(torch.ones_like(angles), angles)  # 复数旋转
    mask = torch.full((length, length), float("-inf")).triu(1)

    def spin(t):
        half = t.size(-1) // 2
        z = torch.complex(t[..., :half], t[..., half:]) * turn
        return torch.cat((z.real, z.imag), -1)

    for block in model.blocks:
        h = norm(x, block.norm1.weight)
        q, k, v = (
            (h @ part.t()).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in block.attn.qkv.weight.chunk(3)
        )
        q, k = spin(norm(q, block.attn.q_norm.weight)), spin(norm(k, block.attn.k_norm.weight))
        scores = (q @ k.transpose(-1, -2) / config.head_dim**0.5 + mask).softmax(-1)
        x = x + (scores @ v).transpose(1, 2).flatten(2) @ block.attn.out.weight.t()
        h = norm(x, block.norm2.weight)
        gate, up = block.mlp.gate_up.weight.chunk(2)
        x = x + (F.silu(h @ gate.t()) * (h @ up.t())) @ block.mlp.down.weight.t()
    return norm(x, model.norm.weight)


def test_forward_is_the_definition():
    model = random_model()
    ids = torch.randint(0, 97, (3, 20))
    with torch.no_grad():
        expected = naive_hidden(model, ids) @ model.embed.weight.t()
        assert torch.allclose(model(ids), expected, atol=1e-4)


def test_initial_model_is_the_identity_with_small_logits():
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    ids = torch.randint(0, 97, (2, 9))
    with torch.no_grad():
        logits = model(ids)
    assert torch.allclose(logits, model.head(model.norm(model.embed(ids))))
    loss = F.cross_entropy(logits.flatten(0, 1), torch.randint(0, 97, (18,)))
    assert abs(loss - np.log(97)) < 0.2


def test_padding_and_other_rows_do_not_leak():
    model = random_model()
    ids = torch.randint(0, 97, (2, 12))
    with torch.no_grad():
        alone = model.hidden(ids[:1, :7])
        assert torch.allclose(model.hidden(ids)[:1, :7], alone, atol=1e-5)


def test_rotation_depends_on_distance_only():
    cos, sin = rope_tables(8, 32, 10000.0)
    q, k = torch.randn(8), torch.randn(8)

    def score(i, j):
        return rotate(q, cos[i], sin[i]) @ rotate(k, cos[j], sin[j])

    assert torch.allclose(score(5, 2), score(25, 22), atol=1e-4)


def test_tied_gradient_equals_torch_over_two_micro_batches():
    """词嵌入既在输入又在输出：两个微批次累积的梯度，与全由 autograd 算的一样。"""
    ours, plain = random_model().train(), random_model().train()
    for _ in range(2):
        ids, labels = torch.randint(0, 97, (2, 3, 10)).unbind(0)
        (ours(ids, torch.arange(30), labels.flatten()) * 0.5).backward()
        table = plain.embed.weight
        plain.embed.forward = lambda places: F.embedding(places, plain.embed.weight)
        logits = F.linear(plain.hidden(ids), table)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        (loss * 0.5).backward()
    for a, b in zip(ours.parameters(), plain.parameters()):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4)


def test_second_forward_before_backward_is_noticed():
    """交叉熵的内存是反复用的：没反向就再来一次前向，反向会报错，而不是给出错的梯度。"""
    model = random_model().train()
    ids, where = torch.randint(0, 97, (2, 10)), torch.arange(20)
    first, _ = (model(ids, where, ids.flatten()) for _ in range(2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.backward()


def test_training_forward_scores_only_the_chosen_places():
    model = random_model()
    ids = torch.randint(0, 97, (3, 10))
    where, labels = torch.tensor([0, 4, 29]), torch.tensor([5, 6, 7])
    expected = F.cross_entropy(model(ids).flatten(0, 1)[where], labels, reduction="sum")
    assert torch.allclose(model(ids, where, labels), expected, rtol=1e-4)


def test_both_ways_of_attention_train_alike():
    """同一个模型，注意力用 SDPA 还是用矩阵乘，补不补 token，损失与梯度都一样。"""
    ids = torch.randint(0, 97, (3, 20))
    where, labels = torch.arange(60), torch.randint(0, 97, (60,))
    found = []
    for by_products, quantum in ((False, 1), (True, 1), (True, 64), (False, 64)):
        model = random_model().train()
        model.configure(by_products=by_products, quantum=quantum)
        loss = model(ids, where, labels)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for other in found[1:]:
        for a, b in zip(other, found[0]):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


def test_matrix_parameters_count_the_tied_head_once():
    per_block = 4 * 32 * 32 + 3 * 32 * 48
    assert random_model().matrix_parameters() == 97 * 32 + 2 * per_block


def test_config_survives_its_dict():
    assert GPTConfig(**CONFIG.to_dict()) == CONFIG


def test_weights_are_those_of_the_model():
    """形状表与真正的模型逐个一致；拼在一起的矩阵行数都整除。"""
    weights = CONFIG.weights()
    found = {name: tuple(value.shape) for name, value in GPT(CONFIG).state_dict().items()}
    assert {weight.name: weight.shape for weight in weights} == found
    assert all(weight.shape[0] % len(weight.qwen3) == 0 for weight in weights)
    names = [name for weight in weights for name in weight.qwen3]
    assert len(names) == len(set(names))


def test_configure_changes_only_what_is_named():
    model = GPT(CONFIG, Execution(quantum=8))
    scratch = model.execution.scratch
    model.configure(grad_checkpoint=True)
    assert model.execution == Execution(grad_checkpoint=True, quantum=8, scratch=scratch)
    with pytest.raises(TypeError):
        model.configure(gradient_checkpoint=True)


def test_recomputed_blocks_train_alike():
    """丢弃不为零时，留着激活与反向里重算，梯度逐位相同。"""
    found = []
    for grad_checkpoint in (False, True):
        model = random_model(replace(CONFIG, dropout=0.2)).train()
        model.configure(grad_checkpoint=grad_checkpoint)
        torch.manual_seed(5)
        ids = torch.randint(0, 97, (3, 20))
        model(ids, torch.arange(60), ids.flatten()).backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))
