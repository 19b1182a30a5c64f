"""逐步解码：预先分配的键值缓存，一次前向处理几行，每行有自己的位置。

数学与 gpt.GPT 的前向完全相同（测试保证贪心结果逐个 token 一致），只是为一次一个 token 精简：
归一化的权重预先乘进后面的矩阵与旋转表；矩阵乘见 kernels/products.py。字母见 gpt.py；这里 L 是
缓存里看得到的位置数。
"""

from __future__ import annotations

import ctypes
from typing import Callable, Sequence

import torch
import torch.nn.functional as F

from gpt import ACTIVATION, GPT, Block, GPTConfig, RMSNorm, activate
from kernels.native import Native, pack, shape_problem
from kernels.picking import Picking
from kernels.products import ModuleProduct, float_product, product_of
from writing.graph import Step

_ALIGNED = 16  # 显卡上缓存的长度是它的倍数，注意力的遮罩才不必再补齐


def _norm(x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """均方根归一化，不乘权重（权重已并入后面的矩阵或旋转表）；eps 是一个元素的张量。"""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * torch.addcmul(eps, size, size, value=1 / x.size(-1)).rsqrt_()


class _Layer:
    """一层的权重。"""

    def __init__(self, block: Block, dtype: torch.dtype, half: bool) -> None:
        self.qkv = product_of(block.attn.qkv, dtype, half, _scale(block.norm1))
        self.out = product_of(block.attn.out, dtype, half)
        self.gate_up = product_of(block.mlp.gate_up, dtype, half, _scale(block.norm2))
        self.down = product_of(block.mlp.down, dtype, half)


def _scale(norm: RMSNorm) -> torch.Tensor:
    """归一化的权重，fp32。"""
    return norm.weight.detach().float()


class Cache:
    """rows 行键值缓存 (层, k|v, rows, H, capacity, D)；被遮住的位置也是有限的数。"""

    def __init__(
        self,
        config: GPTConfig,
        rows: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (config.n_block, 2, rows, config.n_head, capacity, config.head_dim)
        self.pairs = torch.zeros(shape, device=device, dtype=dtype)
        self.rows, self.capacity = rows, capacity
        self.steps = {}  # 行数 → 用固定的内存走一步，见 Decoder.static

    def copy_row(self, source: int, target: int, length: int) -> None:
        """把一行的前 length 个位置抄到另一行。"""
        self.pairs[:, :, target, :, :length] = self.pairs[:, :, source, :, :length]


class Decoder:
    """摆好的权重；缓存在外面，所以一个 Decoder 可以同时服务几批。"""

    def __init__(
        self,
        model: GPT,
        dtype: torch.dtype | None = None,
        half: bool = False,
        static: bool | None = None,
        library: ctypes.CDLL | None = None,
    ) -> None:
        """model: gpt.GPT 或 int8 模型（评估模式）；dtype 默认 fp32。

        half：矩阵存成 fp16、其余仍是 fp32，CPU 上读得更快；能不能用见 half_problem。
        static：每一步都在固定的内存上算（见 graph.Step）；None = 显卡上才这样。
        library：编译好的前向（compiler.pick），算 half 与 int8 的；这个模型用不了它就不用。
        """
        config = self.config = model.config
        self.device = model.norm.weight.device
        self.dtype = dtype = dtype or torch.float32
        self.embed = model.embed
        self.layers = [_Layer(block, dtype, half) for block in model.blocks]
        weight = getattr(model.embed, "weight", None)
        if weight is None:  # int8 的词嵌入
            self.table, self.head = None, ModuleProduct(model.embed.head, _scale(model.norm))
        else:
            self.table = weight.detach().to(dtype)
            self.head = float_product(weight, dtype, half, _scale(model.norm))
        self.rope = _rope_table(model, dtype)
        self.eps = torch.tensor([config.norm_eps], device=self.device, dtype=dtype)
        self.static = self.device.type == "cuda" if static is None else static
        self.places = torch.arange(config.max_seq_len + _ALIGNED, device=self.device)
        self.native = self.picking = None
        if library is not None and _fits(config):
            native = _native(library, model, self.rope)
            if self._agrees(native):
                self.native, self.picking = native, Picking(library)

    def new_cache(self, rows: int, capacity: int | None = None) -> Cache:
        """给 rows 行的缓存，容量默认 max_seq_len。"""
        capacity = capacity or self.config.max_seq_len
        if self.static:
            capacity += -capacity % _ALIGNED
        return Cache(self.config, rows, capacity, self.device, self.dtype)

    @torch.inference_mode()
    def prefill(self, cache: Cache, row: int, ids: list) -> torch.Tensor:
        """一次前向写好一行的开头，返回最后一个位置的对数几率 (V,)，fp32。"""
        length = len(ids)
        if self.native is not None:
            return self._native_step(cache, ids, [row] * length, range(length), 1)[0]
        stored = cache.pairs[:, :, row, :, :length].unbind(0)  # 每层 (2, H, T, D)

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)  # 各 (1, H, T, D)
            stored[layer].copy_(qkv[:, 1:].permute(1, 2, 0, 3))
            return F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)

        tokens = torch.tensor(ids, device=self.device)
        hidden = self._blocks(tokens, self.rope[:length].unbind(1), attend)
        return self._logits(hidden[-1:])[0]

    @torch.inference_mode()
    def step(self, cache: Cache, tokens: list, positions: list) -> torch.Tensor:
        """缓存的前 len(tokens) 行各走一步：(B,) -> 对数几率 (B, V)，fp32。

        positions: 各行这个 token 的位置；该行此前的位置须已写好。
        """
        if self.static:
            return self._static_step(cache, tokens, positions)
        first, rows = positions[0], len(tokens)
        if self.native is not None:
            return self._native_step(cache, tokens, range(rows), positions, rows)
        tokens = torch.tensor(tokens, device=self.device)
        if positions.count(first) == rows:
            attend, rope = self._attend_even(cache, rows, first), self.rope[first].unbind(0)
        else:
            attend, rope = self._attend_ragged(cache, rows, positions)
        return self._logits(self._blocks(tokens, rope, attend))

    def _native_step(
        self, cache: Cache, tokens: list, lines: Sequence, positions: Sequence, wanted: int
    ) -> torch.Tensor:
        x = self._embedded(torch.tensor(tokens))
        return self.native(x, cache.pairs, lines, positions, wanted)

    def _agrees(self, native: Native) -> bool:
        """编译器也会出错：用真的权重与普通的算法核对一次。"""
        ids = list(range(5))
        plain = self.prefill(self.new_cache(1, len(ids)), 0, ids)
        cache, x = self.new_cache(1, len(ids)), self._embedded(torch.tensor(ids))
        found = native(x, cache.pairs, [0] * len(ids), ids, 1)[0]
        return bool((found - plain).norm() < 0.05 * plain.norm())

    def _static_step(self, cache: Cache, tokens: list, positions: list) -> torch.Tensor:
        """行数凑成 2 的幂（至多缓存的行数），图只有几种；多算的行写在没有人用的行里。"""
        rows = min(cache.rows, 1 << (len(tokens) - 1).bit_length())
        if rows not in cache.steps:

            def compute(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
                attend, rope = self._attend_static(cache, rows, places)
                return self._logits(self._blocks(tokens, rope, attend))

            cache.steps[rows] = Step(compute, rows, self.device)
        return cache.steps[rows](tokens, positions)

    def _attend_static(self, cache: Cache, rows: int, places: torch.Tensor) -> tuple:
        """同 _attend_ragged，但总是看整个缓存，位置 (B,) 是设备上的张量。"""
        hidden = self.places[: cache.capacity] > places[:, None]  # (B, L)
        bias = torch.zeros(hidden.shape, device=self.device, dtype=self.dtype)
        bias = bias.masked_fill_(hidden, -torch.inf).view(rows, 1, 1, -1)
        lines = self.places[:rows]

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            pairs = cache.pairs[layer]  # (2, rows, H, L, D)
            pairs[:, lines, :, places] = qkv[:, 1:]
            keys, values = pairs[:, :rows].unbind(0)
            q = qkv[:, 0].unsqueeze(2)
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)

        return attend, self.rope[places].unbind(1)

    def _attend_even(self, cache: Cache, rows: int, position: int) -> Callable:
        """各行一样长：不需要遮罩。"""
        known = [pair.unbind(0) for pair in cache.pairs[:, :, :rows, :, : position + 1].unbind(0)]
        fresh = cache.pairs[:, :, :rows, :, position].unbind(0)

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:  # (B, 3, H, D)
            fresh[layer].copy_(qkv[:, 1:].transpose(0, 1))
            keys, values = known[layer]  # 各 (B, H, L, D)
            return F.scaled_dot_product_attention(qkv[:, 0].unsqueeze(2), keys, values)

        return attend

    def _attend_ragged(self, cache: Cache, rows: int, positions: list) -> tuple:
        """各行长短不一：按行写入，遮住每行还没有写的位置。"""
        end = max(positions) + 1
        places = torch.tensor(positions, device=self.device)
        mask = (self.places[:end] <= places[:, None]).view(rows, 1, 1, end)
        lines = torch.arange(rows, device=self.device)
        known = cache.pairs[:, :, :rows, :, :end].unbind(0)

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            keys, values = known[layer].unbind(0)
            keys[lines, :, places] = qkv[:, 1]
            values[lines, :, places] = qkv[:, 2]
            q = qkv[:, 0].unsqueeze(2)
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

        return attend, self.rope[places].unbind(1)

    def _blocks(self, tokens: torch.Tensor, rope: tuple, attend: Callable) -> torch.Tensor:
        """tokens (N,) -> 归一化（未乘权重）的隐状态 (N, C)。

        rope: 每层的 cos、sin 依次排着，各 (N 或没有, 2, 1, D)；attend(层, qkv (N, 3, H, D))
        存下新的 k、v，返回注意力的结果 (B, H, T, D)，N = B·T。
        """
        heads, size, eps = self.config.n_head, self.config.head_dim, self.eps
        x = self._embedded(tokens)
        for index, layer in enumerate(self.layers):
            cos, sin = rope[2 * index], rope[2 * index + 1]
            qkv = layer.qkv(_norm(x, eps)).view(-1, 3, heads, size)
            qk = qkv[:, :2]
            unit = _norm(qk, eps)
            torch.addcmul(unit * cos, unit.roll(size // 2, -1), sin, out=qk)
            y = attend(index, qkv).transpose(1, 2).reshape(-1, heads * size)
            x = layer.out.add(x, y)
            x = layer.down.add(x, activate(layer.gate_up(_norm(x, eps))))
        return _norm(x, eps)

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            return self.embed(tokens)
        return F.embedding(tokens, self.table)  # (N,) -> (N, C)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden).float()  # (N, C) -> (N, V)


def _fits(config: GPTConfig) -> bool:
    return shape_problem(ACTIVATION, config.head_dim, config.ff) is None


def _native(library: ctypes.CDLL, model: GPT, rope: torch.Tensor) -> Native:
    """同样的权重，摆给编译好的前向。"""
    matrices = []
    for block in model.blocks:
        matrices += [
            pack(block.attn.qkv, _scale(block.norm1)),
            pack(block.attn.out),
            pack(block.mlp.gate_up, _scale(block.norm2)),
            pack(block.mlp.down),
        ]
    matrices.append(pack(model.embed, _scale(model.norm)))
    return Native(library, matrices, rope, model.config.n_head, model.config.norm_eps)


def _rope_table(model: GPT, dtype: torch.dtype) -> torch.Tensor:
    """(T, 层·(cos, sin), q|k, 1, D)：归一化权重 w 已乘进去。

    设 r(x) 把前后两半对调，s 前一半为 −1、后一半为 1，则
    rotate(x·w) = x·w·cos + r(x)·r(w)·s·sin。
    """
    cos, sin = model.cos.float(), model.sin.float()  # (T, D)
    half = cos.size(-1) // 2
    sign = torch.ones(2 * half, device=cos.device)
    sign[:half] = -1
    layers = []
    for block in model.blocks:
        pairs = []
        for norm in (block.attn.q_norm, block.attn.k_norm):
            weight = norm.weight.detach().float()
            pairs.append(torch.stack((cos * weight, sin * sign * weight.roll(half)), 1))
        layers.append(torch.stack(pairs, 2))  # (T, cos|sin, q|k, D)
    table = torch.stack(layers, 1).unsqueeze(4)  # (T, 层, cos|sin, q|k, 1, D)
    return table.flatten(1, 2).to(dtype)
