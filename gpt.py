"""GPT 模型：与 Qwen3 同构的解码器（RMSNorm、RoPE、逐头 q/k 归一化、SwiGLU、共享词嵌入）。

权重与 transformers 的 Qwen3ForCausalLM 一一对应，只是 q|k|v 与 gate|up 各自按行拼成一个矩阵。
一行只放一首诗，因此注意力只需因果遮罩，SDPA 的 flash 路径不必带显式遮罩。
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import common
from embeding import TokenEmbedding, rope_tables, rotate


@dataclass(frozen=True)
class GPTConfig:
    """模型形状；检查点存它，重建模型只用它。"""

    vocab_size: int
    max_seq_len: int = 512
    dim: int = 256
    n_head: int = 8
    ff: int = 1024
    n_block: int = 6
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    dropout: float = 0.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_head

    def to_dict(self) -> dict:
        return asdict(self)


class RMSNorm(nn.Module):
    """均方根归一化（Zhang & Sennrich 2019），在 fp32 里计算。"""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class KVCache:
    """预先分配的键值缓存：每层 (B, H, capacity, hd)，length 是已写入的位置数。"""

    def __init__(self, config: GPTConfig, batch: int, capacity: int, device, dtype) -> None:
        shape = (config.n_block, batch, config.n_head, capacity, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple:
        """写入新的 k、v：(B, H, T, hd)，返回到目前为止的全部。"""
        end = self.length + k.size(2)
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Attention(nn.Module):
    """因果多头自注意力；q、k 逐头归一化后再旋转。"""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.wide = None  # 注意力升到 fp32 计算；None = 在 CPU 上才升

    def forward(self, x, cos, sin, cache=None, mask=None):
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.n_head, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, T, 3, H, hd) -> 3 × (B, H, T, hd)
        wide = x.device.type == "cpu" if self.wide is None else self.wide
        v = v.float() if wide else v
        q = rotate(self.q_norm(q), cos, sin).to(v.dtype)
        k = rotate(self.k_norm(k), cos, sin).to(v.dtype)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        causal = mask is None and (cache is None or length > 1)
        y = _attend(q, k, v, mask, causal, wide)
        return self.out(y.transpose(1, 2).reshape(batch, length, dim))  # (B, H, T, hd) -> (B, T, D)


def _attend(q, k, v, mask, causal, wide):
    """(B, H, T, hd) -> (B, H, T, hd)；CPU 的半精度 SDPA 反向比 fp32 的慢两三倍，所以升上去算。"""
    if not wide:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


class SwiGLU(nn.Module):
    """门控前馈网络 down(silu(gate) · up)（Shazeer 2020）。"""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.ff, bias=False)
        self.down = nn.Linear(config.ff, config.dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """先归一化的残差块：注意力，然后前馈。"""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm1 = RMSNorm(config.dim, config.norm_eps)
        self.attn = Attention(config, layer)
        self.norm2 = RMSNorm(config.dim, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x, cos, sin, cache=None, mask=None):
        x = x + self._drop(self.attn(self.norm1(x), cos, sin, cache, mask))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, x):
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class GPT(nn.Module):
    """从 token 编号到下一个 token 的对数几率。"""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpoint = False
        self.disable_compile()
        self.embed = TokenEmbedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_block))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        cos, sin = rope_tables(config.head_dim, config.max_seq_len, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """输出投影从零开始（每块起初是恒等映射），其余矩阵按输入宽度缩放。"""
        nn.init.normal_(self.embed.weight, std=0.02)
        for block in self.blocks:
            for linear in (block.attn.qkv, block.mlp.gate_up):
                nn.init.normal_(linear.weight, std=0.5 / math.sqrt(self.config.dim))
            for linear in (block.attn.out, block.mlp.down):
                nn.init.zeros_(linear.weight)

    def hidden(self, ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """最后一层归一化之后的隐状态：(B, T) -> (B, T, D)；给了 cache 就接着它算并更新它。"""
        start = cache.length if cache is not None else 0
        length = ids.size(1)
        cos, sin = self.cos[start : start + length], self.sin[start : start + length]
        mask = _offset_causal_mask(start, length, ids.device) if start and length > 1 else None
        x = self.embed(ids)
        if self.config.dropout:
            x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            if not self.training:
                x = block(x, cos, sin, cache, mask)
            elif self.grad_checkpoint:
                x = checkpoint(self.fast_block, block, x, cos, sin, use_reentrant=False)
            else:
                x = self.fast_block(block, x, cos, sin)
        if cache is not None:
            cache.length += length
        return self.norm(x)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V)"""
        return self.embed.head(hidden)

    def forward(self, ids, where=None, labels=None):
        """没有 labels：(B, T) -> 对数几率 (B, T, V)。

        有 labels：返回这些位置交叉熵之和（标量）。where：(N,)，展平后 B·T 中要训练的位置；
        labels：(N,)，各位置的下一个 token。
        """
        if labels is None:
            return self.head(self.hidden(ids))
        hidden = self.hidden(ids)
        chosen = hidden.flatten(0, 1).index_select(0, where)  # (B, T, D) -> (N, D)
        return linear_cross_entropy(chosen, self.embed.weight, labels, kernel=self.fast_kernel)

    def enable_compile(self) -> None:
        """训练时用 torch.compile 过的块；各块共用一份编译结果，形状从第一步起就是动态的。"""
        self.fast_block = torch.compile(_run_block, dynamic=True)
        self.fast_kernel = torch.compile(_softmax_parts, dynamic=True)

    def disable_compile(self) -> None:
        self.fast_block, self.fast_kernel = _run_block, _softmax_parts

    def new_cache(self, batch: int, capacity: int | None = None, dtype=None) -> KVCache:
        """给 batch 行准备的键值缓存，容量默认 max_seq_len。"""
        weight = self.blocks[0].attn.qkv.weight
        half = None if weight.device.type == "cpu" else common.autocast_dtype(weight.device.type)
        dtype = dtype or half or weight.dtype
        capacity = capacity or self.config.max_seq_len
        return KVCache(self.config, batch, capacity, weight.device, dtype)

    def matrix_parameters(self) -> int:
        """矩阵参数个数：共享的词嵌入（输出层）只算一次，归一化不算。"""
        return sum(p.numel() for p in self.parameters() if p.dim() > 1)

    def flops_per_token(self) -> int:
        """训练一个 token 的浮点运算数：6 × 矩阵参数（注意力的 T² 部分不算）。"""
        return 6 * self.matrix_parameters()


def _run_block(block, x, cos, sin):
    return block(x, cos, sin)


def _offset_causal_mask(start, length, device):
    """缓存里已有 start 个位置时，新来 length 个位置的因果遮罩 (T, start + T)。"""
    full = torch.ones(length, start + length, dtype=torch.bool, device=device)
    return full.tril(diagonal=start)


# ── 输出层与交叉熵合在一起，整块 logits 从不同时存在 ──────────────────


class _LinearCrossEntropy(torch.autograd.Function):
    """分块算 logits、损失与梯度：梯度在前向里就算好，所以反向不必重算 logits。

    做法同 Liger Kernel 的 fused linear cross entropy；softmax 的分母折进行缩放，
    每个 logit 只算一次 exp。
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels, rows, dtype, kernel):
        total = hidden.new_zeros((), dtype=torch.float32)
        matrix = weight.to(dtype)
        need = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        if need:
            grad_hidden = torch.empty_like(hidden, dtype=torch.float32)
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, hidden.size(0), rows):
            part = hidden[start : start + rows].to(dtype)  # (n, D)
            target = labels[start : start + rows]  # (n,)
            logits = part @ matrix.t()  # (n, D) @ (D, V) -> (n, V)
            loss, expo, inverse = kernel(logits, target)
            total += loss
            if need:
                grad = (expo @ matrix).float() * inverse - matrix[target].float()  # (n, D)
                grad_hidden[start : start + rows] = grad
                _add_weight_grad(grad_weight, expo, part, inverse, target)
        if need:
            ctx.save_for_backward(grad_hidden, grad_weight)
            ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad_output):
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        grad_hidden = (grad_hidden * grad_output).to(hidden_dtype)
        return grad_hidden, (grad_weight * grad_output).to(weight_dtype), None, None, None, None


def _softmax_parts(logits, target):
    """logits (n, V) -> 损失之和、exp(logits − 行最大值) (n, V)、行和的倒数 (n, 1)。"""
    exact = logits.float()
    top = exact.amax(-1, keepdim=True)
    expo = (exact - top).exp()
    total = expo.sum(-1, keepdim=True)
    picked = exact.gather(1, target[:, None])
    loss = (total.log() + top - picked).sum()
    return loss, expo.to(logits.dtype), total.reciprocal()


def _add_weight_grad(grad_weight, expo, part, inverse, target):
    """输出层梯度：expoᵀ @ (part / 行和)，再在目标行减去 part。"""
    scaled = (part.float() * inverse).to(part.dtype)
    if grad_weight.dtype == expo.dtype:
        grad_weight.addmm_(expo.t(), scaled)  # (V, n) @ (n, D) -> (V, D)
    else:
        grad_weight += expo.t() @ scaled
    grad_weight.index_add_(0, target, part.to(grad_weight.dtype), alpha=-1)


def chunk_rows(device: str) -> int:
    """一块算多少行：太少则每块都要加一遍输出层梯度，太多则 logits 占内存。"""
    return 512 if device == "cpu" else 2048


def linear_cross_entropy(hidden, weight, labels, rows: int | None = None, kernel=_softmax_parts):
    """sum(交叉熵(hidden @ weightᵀ, labels))；hidden (N, D)，weight (V, D)，labels (N,)。"""
    device = hidden.device.type
    dtype = common.autocast_dtype(device) or hidden.dtype
    rows = rows or chunk_rows(device)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden, weight, labels, rows, dtype, kernel)
