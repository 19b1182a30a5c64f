"""模型、优化器、排批：对照 PyTorch 自己的层与朴素写法。"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gpt
from embeding import rope_tables, rotate
from gpt import GPT, GPTConfig, linear_cross_entropy
from training import batching, optim, validation

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


def loss_and_gradients(function, hidden, weight):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(hidden, weight)
    (loss * 0.5).backward()
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_fused_cross_entropy_equals_torch(rows):
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 16), torch.randn(97, 16) * 3
    labels = torch.randint(0, 97, (50,))
    ours = loss_and_gradients(
        lambda h, w: linear_cross_entropy(h, w, labels, (rows, 5)), hidden, weight
    )
    plain = loss_and_gradients(
        lambda h, w: F.cross_entropy(h @ w.t(), labels, reduction="sum"), hidden, weight
    )
    for a, b in zip(ours, plain):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_cross_entropy_under_autocast(dtype):
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16), torch.randn(97, 16)
    labels = torch.randint(0, 97, (40,))
    with torch.autocast("cpu", dtype=dtype):
        ours = loss_and_gradients(lambda h, w: linear_cross_entropy(h, w, labels), hidden, weight)
    exact = loss_and_gradients(
        lambda h, w: F.cross_entropy(h @ w.t(), labels, reduction="sum"), hidden, weight
    )
    for a, b in zip(ours, exact):
        assert (a - b).norm() < 0.03 * b.norm() and a.dtype == torch.float32


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


def test_cached_steps_equal_one_pass():
    model = random_model()
    ids = torch.randint(0, 97, (2, 20))
    cache = model.new_cache(2)
    with torch.no_grad():
        steps = [model.hidden(ids[:, :7], cache), model.hidden(ids[:, 7:12], cache)]
        steps += [model.hidden(ids[:, i : i + 1], cache) for i in range(12, 20)]
        assert torch.allclose(torch.cat(steps, 1), model.hidden(ids), atol=1e-5)


@pytest.mark.parametrize("length", [1, 15, 16, 33, 200, 300])
def test_attention_by_products_equals_sdpa(length):
    """前向与 q、k、v 的梯度都与 PyTorch 的注意力一致；300 会在反向里重算权重。"""
    torch.manual_seed(0)
    q, k, v, grad = torch.randn(4, 2, 3, length, 8).unbind(0)
    size = gpt.Sight(length, by_products=True).size
    assert size > length and size % 16 == 0

    def run(attend):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        y = attend(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, grad)]

    def ours(*heads):
        q, k, v = (F.pad(x, (0, 0, 0, size - length)) for x in heads)
        sight = gpt.Sight(length, by_products=True)
        return sight.attend(0, q * q.size(-1) ** -0.5, k, v)[:, :, :length]

    plain = run(lambda *heads: F.scaled_dot_product_attention(*heads, is_causal=True))
    for a, b in zip(run(ours), plain):
        assert torch.allclose(a, b, atol=1e-4)


def test_both_ways_of_attention_train_alike():
    """同一个模型，注意力用 SDPA 还是用矩阵乘，补不补 token，损失与梯度都一样。"""
    ids = torch.randint(0, 97, (3, 20))
    where, labels = torch.arange(60), torch.randint(0, 97, (60,))
    found = []
    for by_products, quantum in ((False, 1), (True, 1), (True, 64), (False, 64)):
        model = random_model().train()
        model.by_products, model.quantum = by_products, quantum
        loss = model(ids, where, labels)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for other in found[1:]:
        for a, b in zip(other, found[0]):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


def test_dropout_keeps_the_mean_and_drops_its_share():
    torch.manual_seed(3)
    noise = gpt.random_noise((1000, 101), torch.device("cpu"))
    x = gpt.drop(torch.ones(1000, 101), noise, 0.1)
    assert abs((x == 0).float().mean() - 0.1) < 0.005 and abs(x.mean() - 1) < 0.01
    torch.manual_seed(3)
    assert torch.equal(noise, gpt.random_noise((1000, 101), torch.device("cpu")))
    assert torch.equal(gpt.drop(x, noise, 0.0), x)


def test_matrix_parameters_count_the_tied_head_once():
    per_block = 4 * 32 * 32 + 3 * 32 * 48
    assert random_model().matrix_parameters() == 97 * 32 + 2 * per_block


# ── 优化器 ────────────────────────────────────────────────────────────


def test_orthogonalize_flattens_singular_values():
    torch.manual_seed(0)
    for shape in ((3, 24, 24), (2, 40, 16), (2, 16, 40)):
        values = torch.linalg.svdvals(optim.orthogonalize(torch.randn(shape), torch.float32))
        assert values.min() > 0.1 and values.max() < 1.3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="这个 torch 没有 torch.optim.Muon")
def test_muon_follows_torch_muon():
    """与 torch.optim.Muon 同步走五步；它在 bf16 里正交化，所以只到百分之几。"""
    torch.manual_seed(0)
    start = torch.randn(48, 16)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    group = {"params": [ours], "parts": [1]}
    mine = optim.Muon([group], lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="original")
    for _ in range(5):
        ours.grad = torch.randn(48, 16)
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    assert (ours - theirs).norm() < 0.03 * (ours - start).norm()


def test_joined_matrices_are_orthogonalized_apart():
    torch.manual_seed(0)
    joined = torch.nn.Parameter(torch.randn(48, 16))
    apart = [torch.nn.Parameter(part.clone()) for part in joined.detach().chunk(3)]
    joined.grad = torch.randn(48, 16)
    for part, grad in zip(apart, joined.grad.chunk(3)):
        part.grad = grad.clone()
    optim.Muon([{"params": [joined], "parts": [3]}], lr=0.02).step()
    optim.Muon([{"params": apart, "parts": [1, 1, 1]}], lr=0.02).step()
    assert torch.allclose(joined, torch.cat(list(apart)), atol=1e-6)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_has_one_optimizer(kind):
    model = random_model()
    built = optim.build(model, kind, 1e-3, 1e-2, 0.1)
    held = [id(p) for m in built.members.values() for g in m.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


# ── 排批与打分 ────────────────────────────────────────────────────────


def test_plan_covers_each_epoch_and_is_a_pure_function():
    lengths = np.random.default_rng(0).integers(5, 60, 300)
    plan, again = (batching.BatchPlan(lengths, 128, seed=3) for _ in range(2))
    total = plan.per_epoch
    orders = []
    for epoch in range(2):
        batches = [plan.documents(epoch * total + i) for i in range(total)]
        assert sorted(np.concatenate(batches)) == list(range(300))
        assert all(len(b) * lengths[b].max() <= 128 for b in batches)
        orders.append(np.concatenate(batches))
    assert not np.array_equal(*orders)
    number = total + 3
    assert np.array_equal(again.documents(number), plan.documents(number))


def test_batch_targets_are_the_next_tokens():
    documents = [
        (np.array([1, 5, 6, 7, 2]), np.array([0, 0, 1, 1, 1])),
        (np.array([1, 9, 2]), np.array([0, 1, 1])),
    ]
    batch = batching.assemble(documents)
    assert batch.inputs.tolist() == [[1, 5, 6, 7], [1, 9, 0, 0]]
    assert batch.targets.tolist() == [[-1, 6, 7, 2], [9, 2, -1, -1]]
    assert (batch.tokens, batch.trained) == (6, 5)
    parts = batch.parts(2)
    assert sum(len(part[2]) for part in parts) == 5 and len(parts) == 2


def test_scores_equal_torch():
    model = random_model()
    rng = np.random.default_rng(0)
    documents = [(rng.integers(3, 97, n), (np.arange(n) >= 2).astype(int)) for n in (9, 4, 17)]
    nats = validation.document_nats(model, documents, budget=20, device="cpu")
    for (ids, mask), value in zip(documents, nats):
        ids = torch.from_numpy(ids)
        with torch.no_grad():
            logits = model(ids[None, :-1])[0]
        losses = F.cross_entropy(logits, ids[1:], reduction="none")
        assert value.item() == pytest.approx(
            losses[torch.from_numpy(mask[1:]) == 1].sum().item(), rel=1e-5
        )
    assert gpt.GPTConfig(**model.config.to_dict()) == model.config
