"""逐步解码：预先分配的键值缓存，一次前向处理几行，每行有自己的位置。

数学与 gpt.GPT 的前向完全相同（测试保证贪心结果逐个 token 一致），只是为一次一个 token 精简：
q、k 归一化的权重预先乘进旋转表；残差与矩阵乘合成一次 addmm；输出层在 CPU 上存一份转置。
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_fused_norm = getattr(F, "rms_norm", None)  # torch 2.4 起


def _norm(x: torch.Tensor, weight, eps: float) -> torch.Tensor:
    """均方根归一化；weight 为 None 时不乘权重。"""
    if _fused_norm is not None:
        return _fused_norm(x, x.shape[-1:], weight, eps)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x if weight is None else x * weight


class _Product:
    """浮点矩阵乘 x @ Wᵀ；可以顺带加上残差。"""

    def __init__(self, weight: torch.Tensor, dtype, transpose: bool = False) -> None:
        weight = weight.detach().to(dtype)
        self.matrix = weight.t().contiguous() if transpose else weight.t()  # (in, out)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, self.matrix)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x + y @ Wᵀ"""
        return torch.addmm(x, y, self.matrix)


class _ModuleProduct:
    """别的线性层（int8）：直接调用它的前向。"""

    def __init__(self, module) -> None:
        self.module = module

    def __call__(self, x):
        return self.module(x)

    def add(self, x, y):
        return x + self.module(y)


def _product(module, dtype):
    floating = isinstance(module, torch.nn.Linear)
    return _Product(module.weight, dtype) if floating else _ModuleProduct(module)


class _Layer:
    """一层的权重，按解码的用法摆好。"""

    def __init__(self, block, dtype) -> None:
        self.norm1 = block.norm1.weight.detach().to(dtype)
        self.norm2 = block.norm2.weight.detach().to(dtype)
        self.qkv = _product(block.attn.qkv, dtype)
        self.out = _product(block.attn.out, dtype)
        self.gate_up = _product(block.mlp.gate_up, dtype)
        self.down = _product(block.mlp.down, dtype)


class Cache:
    """rows 行键值缓存，每层 (rows, H, capacity, hd)。"""

    def __init__(self, shape, n_block: int, device, dtype) -> None:
        self.rows, _, self.capacity, _ = shape
        make = torch.zeros  # 被遮住的位置也要是有限的数
        self.keys = [make(shape, device=device, dtype=dtype) for _ in range(n_block)]
        self.values = [make(shape, device=device, dtype=dtype) for _ in range(n_block)]

    def copy_row(self, source: int, target: int, length: int) -> None:
        """把一行的前 length 个位置抄到另一行。"""
        for stored in (*self.keys, *self.values):
            stored[target, :, :length] = stored[source, :, :length]


class Decoder:
    """摆好的权重；缓存在外面，所以一个 Decoder 可以同时服务几批。"""

    def __init__(self, model, dtype=None) -> None:
        """model: gpt.GPT 或 int8 模型（评估模式）；dtype 默认与模型相同。"""
        config = self.config = model.config
        self.device = model.norm.weight.device
        self.dtype = dtype = dtype or torch.float32
        self.embed = model.embed
        self.layers = [_Layer(block, dtype) for block in model.blocks]
        self.norm = model.norm.weight.detach().to(dtype)
        weight = getattr(model.embed, "weight", None)
        if isinstance(weight, torch.nn.Parameter):
            self.table = weight.detach().to(dtype)
            self.head = _Product(self.table, dtype, transpose=self.device.type == "cpu")
        else:
            self.table, self.head = None, model.head
        self.rope = _rope_table(model, dtype)
        self.places = torch.arange(config.max_seq_len, device=self.device)

    def new_cache(self, rows: int, capacity: int | None = None) -> Cache:
        """给 rows 行的缓存，容量默认 max_seq_len。"""
        config = self.config
        shape = (rows, config.n_head, capacity or config.max_seq_len, config.head_dim)
        return Cache(shape, config.n_block, self.device, self.dtype)

    @torch.inference_mode()
    def prefill(self, cache: Cache, row: int, ids: list) -> torch.Tensor:
        """一次前向写好一行的开头，返回最后一个位置的对数几率 (V,)，fp32。"""
        length = len(ids)

        def attend(layer, q, k, v):  # 各 (1, H, T, hd)
            cache.keys[layer][row, :, :length] = k[0]
            cache.values[layer][row, :, :length] = v[0]
            return F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)

        tokens = torch.tensor(ids, device=self.device)
        hidden = self._blocks(tokens, self.rope[:length], (1, length), attend)
        return self._logits(hidden[-1:])[0]

    @torch.inference_mode()
    def step(self, cache: Cache, tokens: list, positions: list) -> torch.Tensor:
        """缓存的前 len(tokens) 行各走一步：(B,) -> 对数几率 (B, V)，fp32。

        positions: 各行这个 token 的位置；该行此前的位置须已写好。
        """
        first, rows = positions[0], len(tokens)
        tokens = torch.tensor(tokens, device=self.device)
        if positions.count(first) == rows:
            attend, rope = self._attend_even(cache, rows, first), self.rope[first : first + 1]
        else:
            attend, rope = self._attend_ragged(cache, rows, positions)
        return self._logits(self._blocks(tokens, rope, (rows, 1), attend))

    def _attend_even(self, cache, rows, position):
        """各行一样长：不需要遮罩。"""
        end = position + 1

        def attend(layer, q, k, v):  # 各 (B, H, 1, hd)
            keys, values = cache.keys[layer][:rows], cache.values[layer][:rows]
            keys[:, :, position:end] = k
            values[:, :, position:end] = v
            return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])

        return attend

    def _attend_ragged(self, cache, rows, positions):
        """各行长短不一：按行写入，遮住每行还没有写的位置。"""
        end = max(positions) + 1
        places = torch.tensor(positions, device=self.device)
        mask = (self.places[:end] <= places[:, None]).view(rows, 1, 1, end)
        lines = torch.arange(rows, device=self.device)

        def attend(layer, q, k, v):
            keys, values = cache.keys[layer][:rows], cache.values[layer][:rows]
            keys[lines, :, places] = k[:, :, 0]
            values[lines, :, places] = v[:, :, 0]
            keys, values = keys[:, :, :end], values[:, :, :end]
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

        return attend, self.rope[places]

    def _blocks(self, tokens, rope, shape, attend):
        """tokens (N,)，N = B·T；rope (N 或 1, L, 2, 2, 1, hd) -> 归一化后的隐状态 (N, D)。"""
        config = self.config
        rows, length = shape
        heads, size, eps = config.n_head, config.head_dim, config.norm_eps
        if self.table is not None:
            x = F.embedding(tokens, self.table)
        else:
            x = self.embed(tokens).to(self.dtype)
        for index, (layer, (cos, sin)) in enumerate(zip(self.layers, _by_layer(rope))):
            qkv = layer.qkv(_norm(x, layer.norm1, eps)).view(-1, 3, heads, size)
            qk = _norm(qkv[:, :2], None, eps)
            qk = torch.addcmul(qk * cos, qk.roll(size // 2, -1), sin)  # (N, 2, H, hd)
            q, k = qk.view(rows, length, 2, heads, size).permute(2, 0, 3, 1, 4).unbind()
            v = qkv[:, 2].view(rows, length, heads, size).transpose(1, 2)  # (B, H, T, hd)
            y = attend(index, q, k, v).transpose(1, 2).reshape(-1, heads * size)
            x = layer.out.add(x, y)
            gate, up = layer.gate_up(_norm(x, layer.norm2, eps)).chunk(2, -1)
            x = layer.down.add(x, F.silu(gate).mul_(up))
        return _norm(x, self.norm, eps)

    def _logits(self, hidden):
        return self.head(hidden).float()  # (N, D) -> (N, V)


def _by_layer(rope):
    """(N, L, 2, 2, 1, hd) -> 每层的 (cos, sin)，各 (N, 2, 1, hd)。"""
    return (pair.unbind(1) for pair in rope.unbind(1))


def _rope_table(model, dtype) -> torch.Tensor:
    """(T, 层, cos|sin, q|k, 1, hd)：归一化权重 w 已乘进去。

    设 r(x) 把前后两半对调，s 前一半为 −1、后一半为 1，则
    rotate(x·w) = x·w·cos + r(x)·r(w)·s·sin。
    """
    cos, sin = model.cos.float(), model.sin.float()  # (T, hd)
    half = cos.size(-1) // 2
    sign = torch.ones(2 * half, device=cos.device)
    sign[:half] = -1
    layers = []
    for block in model.blocks:
        pairs = []
        for norm in (block.attn.q_norm, block.attn.k_norm):
            weight = norm.weight.detach().float()
            pairs.append(torch.stack((cos * weight, sin * sign * weight.roll(half)), 1))
        layers.append(torch.stack(pairs, 2))  # (T, cos|sin, q|k, hd)
    return torch.stack(layers, 1).unsqueeze(4).to(dtype).contiguous()
