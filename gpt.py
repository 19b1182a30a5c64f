"""GPT 模型：与 Qwen3 同构的解码器（RMSNorm、RoPE、逐头 q/k 归一化、SwiGLU、共享词嵌入）。

权重与 transformers 的 Qwen3ForCausalLM 一一对应，只是 q|k|v 与 gate|up 各自按行拼成一个矩阵。
一行只放一首诗，因此注意力只需因果遮罩，SDPA 的 flash 路径不必带显式遮罩；只有 CPU 上的半精度
训练不用 SDPA，改用批量矩阵乘（见 _Products）。块内的数据是摊平的 (N, D)，只有注意力看得见行。
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from embeding import TokenEmbedding, gradient_of, rope_tables, rotate
from support import hardware


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


class Scratch:
    """反复使用的几块内存，按名字取；省得每次分配大块，把堆切碎。"""

    def __init__(self) -> None:
        self._kept = {}

    def take(self, name: str, shape: tuple, dtype, device) -> torch.Tensor:
        """名为 name 的那一块，形状为 shape；内容是上次留下的。"""
        count = math.prod(shape)
        flat = self._kept.get(name)
        if flat is None or flat.numel() < count or (flat.dtype, flat.device) != (dtype, device):
            flat = self._kept[name] = torch.empty(count, dtype=dtype, device=device)
        return flat[:count].view(shape)


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

    def project(self, x, rows, cos, sin, size):
        """(N, D) -> q、k、v 各 (B, H, S, hd)，S = size ≥ T。

        N 个位置的前 B·T 个是 B 行，其余是填充；第 T 行以后补零。
        """
        length = cos.size(0)
        qkv = self.qkv(x)[: rows * length].view(rows, length, 3, self.n_head, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, T, 3, H, hd) -> 3 × (B, H, T, hd)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        q = q * self.head_dim**-0.5
        heads = q.to(v.dtype), k.to(v.dtype), v
        if size == length:
            return heads
        return tuple(F.pad(each, (0, 0, 0, size - length)).contiguous() for each in heads)

    def merge(self, y, length, count):
        """(B, H, S, hd) -> (N, D)：取前 length 行拼起来，N = count，填充的位置补零。"""
        y = y[:, :, :length].transpose(1, 2).flatten(2).flatten(0, 1)  # -> (B·T, D)
        return self.out(F.pad(y, (0, 0, 0, count - y.size(0))))


@dataclass
class Sight:
    """一次前向里各层注意力共用的：看得到哪里，怎样算。"""

    length: int  # T
    mask: torch.Tensor | None = None  # 显式的遮罩；None = 因果
    cache: KVCache | None = None
    by_products: bool = False  # 用矩阵乘来算（见 _Products），否则用 SDPA

    @property
    def size(self) -> int:
        """q、k、v 的长度 S：矩阵乘要补到 16 的倍数，整块的快，形状也少。"""
        return self.length // 16 * 16 + 16 if self.by_products else self.length

    def attend(self, layer, q, k, v):
        """(B, H, S, hd) -> (B, H, S, hd)"""
        if self.by_products:
            flat = (x.flatten(0, 1) for x in (q, k, v))  # (B·H, S, hd)
            return _Products.apply(*flat).view_as(q)
        causal = self.mask is None and (self.cache is None or q.size(2) > 1)
        if self.cache is not None:
            k, v = self.cache.append(layer, k, v)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.mask, is_causal=causal, scale=1.0
        )


class _Products(torch.autograd.Function):
    """用批量矩阵乘写出的因果注意力 softmax(q @ kᵀ) @ v；q（已除以 √hd）、k、v：(G, S, hd)。

    CPU 上半精度的 SDPA 反向比 fp32 还慢，而半精度的批量矩阵乘快得多。一次算 _WIDTH 行：
    它们看不到更后面的键，不必算，省近一半。
    """

    @staticmethod
    def forward(ctx, q, k, v):
        out, saved = torch.empty_like(q), []
        for start, end in _spans(q.size(1)):
            weights = _weights(q, k, start, end)
            out[:, start:end] = weights @ v[:, :end]  # (G, t, T) @ (G, T, hd) -> (G, t, hd)
            saved.append(weights)
        short = q.size(1) <= _KEPT
        ctx.save_for_backward(q, k, v, *(saved if short else ()))
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *saved = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for start, end in _spans(q.size(1)):
            weights = saved.pop(0) if saved else _weights(q, k, start, end)
            part = grad[:, start:end]
            grad_v[:, :end] += weights.transpose(1, 2) @ part
            scores = part @ v[:, :end].transpose(1, 2)  # (G, t, hd) -> (G, t, T)
            torch._softmax_backward_data(scores, weights, -1, scores.dtype, grad_input=scores)
            grad_q[:, start:end] = scores @ k[:, :end]
            grad_k[:, :end] += scores.transpose(1, 2) @ q[:, start:end]
        return grad_q, grad_k, grad_v


_WIDTH = 128  # 一次算几行注意力
_KEPT = 256  # 长度不超过它时，注意力的权重留给反向用；更长的占内存，反向里重算


def _weights(q, k, start, end):
    """第 start 到 end 行的注意力权重 (G, t, T)。"""
    scores = q[:, start:end] @ k[:, :end].transpose(1, 2)  # (G, t, hd) -> (G, t, T)
    scores[:, :, start:] += _future(end - start, scores)
    return torch.softmax(scores, -1, out=scores)


def _future(size, like):
    """(size, size)：看不到的位置是 -inf，其余是 0。"""
    return torch.full((size, size), -math.inf, dtype=like.dtype, device=like.device).triu_(1)


def _spans(size):
    """(起, 止)：这些行只看得到前“止”个键。"""
    return [(start, min(size, start + _WIDTH)) for start in range(0, size, _WIDTH)]


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

    def forward(self, x, rows, cos, sin, sight, noise=None, fast=None):
        """(N, D) -> (N, D)；noise：(2, N, D) 的随机数，None = 不丢弃；fast：编译过的前后两半。"""
        before, after = fast or (Block.before, Block.after)
        q, k, v = before(self, x, rows, cos, sin, sight.size)
        y = sight.attend(self.attn.layer, q, k, v)
        return after(self, x, y, sight.length, noise)

    def before(self, x, rows, cos, sin, size):
        """注意力之前：(N, D) -> q、k、v 各 (B, H, S, hd)。"""
        return self.attn.project(self.norm1(x), rows, cos, sin, size)

    def after(self, x, y, length, noise):
        """注意力之后：x (N, D)、y (B, H, S, hd) -> (N, D)。"""
        x = x + self._drop(self.attn.merge(y, length, x.size(0)), noise, 0)
        return x + self._drop(self.mlp(self.norm2(x)), noise, 1)

    def _drop(self, x, noise, index):
        return x if noise is None else drop(x, noise[index], self.dropout)


def drop(x, noise, rate):
    """dropout：noise（int16，均匀）落在最小的 rate 那一份的位置清零，其余放大。"""
    lost = round(rate * 65536)
    return torch.where(noise >= lost - 32768, x * (65536 / (65536 - lost)), 0.0)


def random_noise(shape: tuple, device) -> torch.Tensor:
    """均匀的 int16 随机数。"""
    if device.type != "cpu":
        return torch.randint(-32768, 32768, shape, dtype=torch.int16, device=device)
    count = math.prod(shape)
    words = torch.empty(-(-count // 4), dtype=torch.int64)  # 一次取 64 位，比逐个取快几倍
    return words.random_(-(2**63), None).view(torch.int16)[:count].view(shape)


class GPT(nn.Module):
    """从 token 编号到下一个 token 的对数几率。"""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpoint = False
        self.quantum = 1  # 训练时一个微批次的 token 数补到它的倍数
        self.by_products = None  # 注意力用矩阵乘还是 SDPA；None = CPU 上半精度才用矩阵乘
        self.disable_compile()
        self.scratch = Scratch()
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
        rows, length = ids.shape
        start = cache.length if cache is not None else 0
        cos, sin = self.cos[start : start + length], self.sin[start : start + length]
        sight = self._sight(start, length, cache)
        x = self.embed(self._flat(ids))  # (B, T) -> (N, D)
        dropout = self.config.dropout if self.training else 0.0
        if dropout:
            x = drop(x, random_noise(x.shape, x.device), dropout)
        fast = self.fast_block if self.training else None
        for block in self.blocks:
            noise = random_noise((2, *x.shape), x.device) if dropout else None
            options = rows, cos, sin, sight, noise, fast
            if self.training and self.grad_checkpoint:
                x = checkpoint(block, x, *options, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, *options)
        if cache is not None:
            cache.length += length
        return self.norm(x)[: rows * length].view(rows, length, -1)  # (N, D) -> (B, T, D)

    def _flat(self, ids):
        """(B, T) -> (N,)；训练时 N 补到 quantum 的倍数：形状只有几种，核与内存都能重复使用。"""
        flat = ids.flatten()
        return F.pad(flat, (0, -len(flat) % self.quantum)) if self.training else flat

    def _sight(self, start, length, cache):
        by_products = self.by_products
        if by_products is None:
            on_cpu = self.cos.device.type == "cpu"
            by_products = on_cpu and hardware.autocast_dtype("cpu") is not None
        if by_products and cache is None:
            return Sight(length, by_products=True)
        mask = None
        if start and length > 1:
            mask = _offset_causal_mask(start, length, self.cos.device)
        return Sight(length, mask, cache)

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
        return linear_cross_entropy(
            chosen,
            self.embed.weight,
            labels,
            kernel=self.fast_kernel,
            scratch=self.scratch if self.training else None,
        )

    def enable_compile(self) -> None:
        """训练时用 torch.compile 过的块；各块共用一份编译结果，形状从第一步起就是动态的。"""
        self._use(functools.partial(torch.compile, dynamic=True))

    def disable_compile(self) -> None:
        """逐个算子地执行。"""
        self._use(lambda function: function)

    def _use(self, make):
        self.fast_block = make(Block.before), make(Block.after)
        self.fast_kernel = make(_softmax_parts)

    def new_cache(self, batch: int, capacity: int | None = None, dtype=None) -> KVCache:
        """给 batch 行准备的键值缓存，容量默认 max_seq_len。"""
        weight = self.blocks[0].attn.qkv.weight
        half = None if weight.device.type == "cpu" else hardware.autocast_dtype(weight.device.type)
        dtype = dtype or half or weight.dtype
        capacity = capacity or self.config.max_seq_len
        return KVCache(self.config, batch, capacity, weight.device, dtype)

    def matrix_parameters(self) -> int:
        """矩阵参数个数：共享的词嵌入（输出层）只算一次，归一化不算。"""
        return sum(p.numel() for p in self.parameters() if p.dim() > 1)

    def flops_per_token(self) -> int:
        """训练一个 token 的浮点运算数：6 × 矩阵参数（注意力的 T² 部分不算）。"""
        return 6 * self.matrix_parameters()


def _offset_causal_mask(start, length, device):
    """缓存里已有 start 个位置时，新来 length 个位置的因果遮罩 (T, start + T)。"""
    full = torch.ones(length, start + length, dtype=torch.bool, device=device)
    return full.tril(diagonal=start)


# ── 输出层与交叉熵合在一起，整块 logits 从不同时存在 ──────────────────

_SIZES = 4  # 最后一块补零到一块的几分之一的倍数：形状只有这么多种；补的行是零，不影响梯度


class _LinearCrossEntropy(torch.autograd.Function):
    """分块算 logits、损失与梯度：梯度在前向里就算好，所以反向不必重算 logits。

    做法同 Liger Kernel 的 fused linear cross entropy；softmax 的分母折进行缩放，
    每个 logit 只算一次 exp。weight 的梯度直接加进 weight.grad。
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels, sizes, dtype, kernel, scratch):
        rows, piece = sizes
        total = hidden.new_zeros((), dtype=torch.float32)
        take = functools.partial(scratch.take, device=weight.device)
        matrix = take("matrix", weight.shape, dtype).copy_(weight)
        need = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        if need:
            grad_hidden = torch.empty_like(hidden, dtype=torch.float32)
            grad_weight = take("grad", weight.shape, torch.float32).zero_()
        for start in range(0, hidden.size(0), rows):
            part = hidden[start : start + rows].to(dtype)  # (n, D)
            target = labels[start : start + rows]  # (n,)
            real, spare = len(part), -len(part) % (max(1, rows // _SIZES))
            part, target = F.pad(part, (0, 0, 0, spare)), F.pad(target, (0, spare))
            logits = take("logits", (len(part), len(matrix)), dtype)
            torch.mm(part, matrix.t(), out=logits)  # (n, D) @ (D, V) -> (n, V)
            loss, inverse = _exponentiate(logits, target, piece, kernel)  # 从此 logits 里是 exp
            total += loss[:real].sum()
            if need:
                grad = (logits @ matrix).float() * inverse - matrix[target].float()  # (n, D)
                grad_hidden[start : start + rows] = grad[:real]
                product = take("product", weight.shape, dtype)
                _add_weight_grad(grad_weight, logits, part, inverse, target, product)
        if need:
            ctx.save_for_backward(grad_hidden, grad_weight)
            ctx.dtype, ctx.weight = hidden.dtype, weight
        return total

    @staticmethod
    def backward(ctx, grad_output):
        grad_hidden, grad_weight = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            gradient_of(ctx.weight).addcmul_(grad_weight.to(ctx.weight.dtype), grad_output)
        return (grad_hidden.mul_(grad_output).to(ctx.dtype), *(None,) * 6)


def _exponentiate(logits, target, piece, kernel):
    """同 _softmax_parts，一次算 piece 行。"""
    pairs = [kernel(*each) for each in zip(logits.split(piece), target.split(piece))]
    losses, inverses = zip(*pairs)
    return torch.cat(losses), torch.cat(inverses)


def _softmax_parts(logits, target):
    """logits (n, V) -> 各行的损失 (n,)、exp 的行和的倒数 (n, 1)；logits 就地换成
    exp(logits − 行最大值)。"""
    exact = logits.float()
    top = exact.amax(-1, keepdim=True)
    expo = (exact - top).exp()
    total = expo.sum(-1, keepdim=True)
    loss = total.log() + top - exact.gather(1, target[:, None])
    logits.copy_(expo)
    return loss.squeeze(1), total.reciprocal()


def _add_weight_grad(grad_weight, expo, part, inverse, target, product):
    """输出层梯度：expoᵀ @ (part / 行和)，再在目标行减去 part；product 放乘积。"""
    scaled = (part.float() * inverse).to(part.dtype)
    if grad_weight.dtype == expo.dtype:
        grad_weight.addmm_(expo.t(), scaled)  # (V, n) @ (n, D) -> (V, D)
    else:
        grad_weight += torch.mm(expo.t(), scaled, out=product)
    grad_weight.index_add_(0, target, part.to(grad_weight.dtype), alpha=-1)


def chunk_rows(device: str) -> tuple:
    """(一块算多少行, 其中 exp 一次算多少行)。

    一块太少则每块都要加一遍输出层梯度，太多则 logits 占内存；exp 的中间结果是 fp32，
    在 CPU 上一次算少些就留在高速缓存里。
    """
    return (512, 64) if device == "cpu" else (2048, 2048)


def linear_cross_entropy(
    hidden, weight, labels, sizes: tuple | None = None, kernel=_softmax_parts, scratch=None
):
    """sum(交叉熵(hidden @ weightᵀ, labels))；hidden (N, D)，weight (V, D)，labels (N,)。

    反向把 weight 的梯度加进 weight.grad，所以要用 backward()，不能用 torch.autograd.grad。
    sizes 见 chunk_rows，默认按设备。给了 scratch 就用它的内存；再用它之前要先反向，否则反向报错。
    """
    device = hidden.device.type
    dtype = hardware.autocast_dtype(device) or hidden.dtype
    sizes = sizes or chunk_rows(device)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(
            hidden, weight, labels, sizes, dtype, kernel, scratch or Scratch()
        )
