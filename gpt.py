"""GPT 模型：与 Qwen3 同构的解码器（RMSNorm、RoPE、逐头 q/k 归一化、SwiGLU、共享词嵌入）。

权重与 transformers 的 Qwen3ForCausalLM 一一对应，只是 q|k|v 与 gate|up 各自按行拼成一个矩阵。
一行只放一首诗，因此注意力只需因果遮罩，SDPA 的 flash 路径不必带显式遮罩；只有 CPU 上的半精度
训练不用 SDPA，改用批量矩阵乘（见 kernels/attention.py）。

形状注释里的字母：
    B 行数（一行一首诗）    T 行长（token 数）    S 注意力里补齐的行长，S ≥ T
    N 摊平的位置数，N ≥ B·T，多出来的是填充；块内的数据都是摊平的，只有注意力看得见行
    C 宽（dim）    H 头数    D 头宽（C / H）    V 词表大小
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from embeding import TokenEmbedding, rope_tables, rotate
from kernels.attention import attention_by_products, padded_length
from kernels.cross_entropy import (
    Candidates,
    Chunks,
    Scratch,
    Soft,
    linear_cross_entropy,
    softmax_parts,
)
from kernels.dropout import FUSED, drop, random_noise
from kernels.norm import rms_norm
from support import hardware

# ── 激活函数：换一个只改这三处 ────────────────────────────────────────

ACTIVATION = "silu"  # 在 Qwen3 的 config.json 里叫什么
ACTIVATION_COPIES = 4  # 反向要用的、前馈宽的张量有几个：gate、up、silu(gate)、它与 up 的积


def activate(gate_up: torch.Tensor) -> torch.Tensor:
    """前馈网络的中间一步：(..., 2·ff) -> (..., ff)。"""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


# ── 形状与权重 ────────────────────────────────────────────────────────


class Weight(NamedTuple):
    """模型的一个权重。"""

    name: str  # 在 state_dict 里的名字
    shape: tuple
    qwen3: tuple  # 在 Qwen3 里的名字；有几个就是按行拼在一起的几个矩阵

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2


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

    def problem(self) -> str | None:
        """由别处读来的形状哪里不对；没有问题时为 None。"""
        for name, value in self.to_dict().items():
            kinds = (int, float) if isinstance(getattr(GPTConfig, name, 0), float) else (int,)
            least = 0 if name == "dropout" else 1e-12
            if type(value) not in kinds or not value >= least:
                return f"{name}={value!r}"
        return (
            None if self.dim % (2 * self.n_head) == 0 else f"dim={self.dim}、n_head={self.n_head}"
        )

    def weights(self) -> list[Weight]:
        """全部权重：名字、形状、与 Qwen3 的对照。"""
        found = [
            Weight("embed.weight", (self.vocab_size, self.dim), ("model.embed_tokens.weight",))
        ]
        for index in range(self.n_block):
            for name, shape, qwen3 in self._block_weights():
                theirs = tuple(f"model.layers.{index}.{part}.weight" for part in qwen3)
                found.append(Weight(f"blocks.{index}.{name}.weight", shape, theirs))
        return [*found, Weight("norm.weight", (self.dim,), ("model.norm.weight",))]

    def _block_weights(self) -> tuple:
        """一块里的权重；名字都从块算起，不带 .weight。"""
        c, d, ff = self.dim, self.head_dim, self.ff
        qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        return (
            Weight("norm1", (c,), ("input_layernorm",)),
            Weight("attn.qkv", (3 * c, c), qkv),
            Weight("attn.q_norm", (d,), ("self_attn.q_norm",)),
            Weight("attn.k_norm", (d,), ("self_attn.k_norm",)),
            Weight("attn.out", (c, c), ("self_attn.o_proj",)),
            Weight("norm2", (c,), ("post_attention_layernorm",)),
            Weight("mlp.gate_up", (2 * ff, c), ("mlp.gate_proj", "mlp.up_proj")),
            Weight("mlp.down", (c, ff), ("mlp.down_proj",)),
        )

    def matrix_parameters(self) -> int:
        """矩阵参数个数：共享的词嵌入（输出层）只算一次，归一化不算。"""
        return sum(math.prod(weight.shape) for weight in self.weights() if weight.is_matrix)

    def flops_per_token(self) -> int:
        """训练一个 token 的浮点运算数：6 × 矩阵参数（注意力的 T² 部分不算）。"""
        return 6 * self.matrix_parameters()


# ── 怎样算 ────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Execution:
    """怎样算：只关系到快慢与内存，不关系到模型是什么。"""

    grad_checkpoint: bool = False  # 训练时不留块内的激活，反向里重算
    compiled: bool = False  # 训练时用 torch.compile 过的块与交叉熵
    quantum: int = 1  # 训练时一个微批次的 token 数补到它的倍数
    by_products: bool | None = None  # 注意力用矩阵乘；None = CPU 上半精度才用，否则用 SDPA
    blocks: int | None = None  # 只算前几块，其余的还是恒等映射；None = 全部
    fused: bool | None = None  # 逐个执行时用设备的融合核；None = 显卡上才用；编译过的不用
    chunks: Chunks | None = None  # 交叉熵怎样分块；None = 按设备
    scratch: Scratch = field(default_factory=Scratch)  # 训练时交叉熵反复用的内存


class _Steps(NamedTuple):
    """训练中逐块执行的函数，编译过或没有编译。"""

    before: Callable
    after: Callable
    softmax: Callable


def _steps(compiled: bool) -> _Steps:
    plain = _Steps(Block.before, Block.after, softmax_parts)
    if not compiled:
        return plain
    # 各块共用一份编译结果，形状从第一步起就是动态的
    return _Steps(*map(functools.partial(torch.compile, dynamic=True), plain))


class _Layout(NamedTuple):
    """一次前向里各块共用的：行的排法、旋转表、怎样算注意力。"""

    rows: int  # B
    length: int  # T
    cos: torch.Tensor  # (T, D)
    sin: torch.Tensor
    by_products: bool

    @property
    def size(self) -> int:
        """q、k、v 的长度 S。"""
        return padded_length(self.length) if self.by_products else self.length


# ── 模型 ──────────────────────────────────────────────────────────────


class RMSNorm(nn.Module):
    """均方根归一化（Zhang & Sennrich 2019），在 fp32 里计算。"""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.fused: bool | None = None  # 见 Execution.fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        if x.is_cuda if self.fused is None else self.fused:
            return rms_norm(x, self.weight, self.eps)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """因果多头自注意力；q、k 逐头归一化后再旋转。"""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def project(
        self, x: torch.Tensor, rows: int, cos: torch.Tensor, sin: torch.Tensor, size: int
    ) -> tuple:
        """(N, C) -> q（已除以 √D）、k、v 各 (B, H, S, D)，S = size；第 T 行以后补零。"""
        length = cos.size(0)
        qkv = self.qkv(x)[: rows * length].view(rows, length, 3, self.n_head, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, T, 3, H, D) -> 3 × (B, H, T, D)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        q = q * self.head_dim**-0.5
        heads = q.to(v.dtype), k.to(v.dtype), v
        if size == length:
            return heads
        return tuple(F.pad(each, (0, 0, 0, size - length)).contiguous() for each in heads)

    def merge(self, y: torch.Tensor, length: int, count: int) -> torch.Tensor:
        """(B, H, S, D) -> (N, C)：取前 length 行拼起来，N = count，填充的位置补零。"""
        y = y[:, :, :length].transpose(1, 2).flatten(2).flatten(0, 1)  # -> (B·T, C)
        return self.out(F.pad(y, (0, 0, 0, count - y.size(0))))


class FeedForward(nn.Module):
    """门控前馈网络 down(silu(gate) · up)（SwiGLU，Shazeer 2020）。"""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.ff, bias=False)
        self.down = nn.Linear(config.ff, config.dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(activate(self.gate_up(x)))


class Block(nn.Module):
    """先归一化的残差块：注意力，然后前馈。"""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm1 = RMSNorm(config.dim, config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self, x: torch.Tensor, layout: _Layout, noise: torch.Tensor | None, steps: _Steps
    ) -> torch.Tensor:
        """(N, C) -> (N, C)；noise：(2, N, C) 的随机数，None = 不丢弃。"""
        rows, length, cos, sin, by_products = layout
        q, k, v = steps.before(self, x, rows, cos, sin, layout.size)
        if by_products:
            y = attention_by_products(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        return steps.after(self, x, y, length, noise)

    def before(
        self, x: torch.Tensor, rows: int, cos: torch.Tensor, sin: torch.Tensor, size: int
    ) -> tuple:
        """注意力之前：(N, C) -> q、k、v 各 (B, H, S, D)。"""
        return self.attn.project(self.norm1(x), rows, cos, sin, size)

    def after(
        self, x: torch.Tensor, y: torch.Tensor, length: int, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """注意力之后：x (N, C)、y (B, H, S, D) -> (N, C)。"""
        x = x + self._drop(self.attn.merge(y, length, x.size(0)), noise, 0)
        return x + self._drop(self.mlp(self.norm2(x)), noise, 1)

    def _drop(self, x: torch.Tensor, noise: torch.Tensor | str | None, index: int) -> torch.Tensor:
        if noise is None:
            return x
        return drop(x, noise if noise is FUSED else noise[index], self.dropout)


class GPT(nn.Module):
    """从 token 编号到下一个 token 的对数几率。"""

    def __init__(self, config: GPTConfig, execution: Execution | None = None) -> None:
        super().__init__()
        self.config = config
        self.execution = execution or Execution()
        self._steps = _steps(self.execution.compiled)
        self.embed = TokenEmbedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_block))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        cos, sin = rope_tables(config.head_dim, config.max_seq_len, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset_parameters()
        self.configure()

    def reset_parameters(self) -> None:
        """输出投影从零开始（每块起初是恒等映射），其余矩阵按输入宽度缩放。"""
        nn.init.normal_(self.embed.weight, std=0.02)
        for block in self.blocks:
            for linear in (block.attn.qkv, block.mlp.gate_up):
                nn.init.normal_(linear.weight, std=0.5 / math.sqrt(self.config.dim))
            for linear in (block.attn.out, block.mlp.down):
                nn.init.zeros_(linear.weight)

    def configure(self, **changes: Any) -> None:
        """改变怎样算；changes 是 Execution 的字段，没有提到的不变。"""
        self.execution = replace(self.execution, **changes)
        self._steps = _steps(self.execution.compiled)
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.fused = False if self.execution.compiled else self.execution.fused

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """最后一层归一化之后的隐状态：(B, T) -> (B, T, C)。"""
        rows, length = ids.shape
        layout = _Layout(rows, length, self.cos[:length], self.sin[:length], self._by_products())
        x = self.embed(self._flat(ids))  # (B, T) -> (N, C)
        dropout = self.config.dropout if self.training else 0.0
        if dropout:
            x = drop(x, self._noise(x.shape), dropout)
        steps = self._steps if self.training else _steps(compiled=False)
        for block in self.blocks[: self.execution.blocks]:
            noise = self._noise((2, *x.shape)) if dropout else None
            inputs = x, layout, noise, steps
            if self.training and self.execution.grad_checkpoint:
                x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(*inputs)
        return self.norm(x)[: rows * length].view(rows, length, -1)  # (N, C) -> (B, T, C)

    def _flat(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (N,)；训练时补到 quantum 的倍数：形状只有几种，核与内存都能重复使用。"""
        flat = ids.flatten()
        spare = -len(flat) % self.execution.quantum if self.training else 0
        return F.pad(flat, (0, spare)) if spare else flat

    def _noise(self, shape: tuple) -> torch.Tensor | str:
        """dropout 的随机数；反向里要重算的不能现取，两次会不同。"""
        if self._fused() and not self.execution.grad_checkpoint:
            return FUSED
        return random_noise(shape, self.cos.device)

    def _fused(self) -> bool:
        chosen, compiled = self.execution.fused, self.execution.compiled
        return not compiled and (self.cos.is_cuda if chosen is None else chosen)

    def _by_products(self) -> bool:
        chosen = self.execution.by_products
        if chosen is None:
            on_cpu = self.cos.device.type == "cpu"
            return on_cpu and hardware.autocast_dtype("cpu") is not None
        return chosen

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.embed.head(hidden)  # (..., C) -> (..., V)

    def forward(
        self,
        ids: torch.Tensor,
        where: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        soft: Soft | None = None,
        candidates: Candidates | None = None,
    ) -> torch.Tensor:
        """没有 labels：(B, T) -> 对数几率 (B, T, V)。

        有 labels：返回这些位置交叉熵之和（标量）。where：(n,)，展平后 B·T 中要训练的位置；
        labels：(n,)，各位置的下一个 token。soft：老师在这些位置上的看法，只改梯度。
        candidates：只在词表的这几个词里算，labels 是在这里面的第几个；得到的是估计。
        """
        if labels is None:
            return self.head(self.hidden(ids))
        hidden = self.hidden(ids)
        chosen = hidden.flatten(0, 1).index_select(0, where)  # (B, T, C) -> (n, C)
        half = hardware.autocast_dtype(self.cos.device.type) is not None
        return linear_cross_entropy(
            chosen,
            self.embed.weight,
            labels,
            chunks=self.execution.chunks,
            kernel=None if self._fused() and half else self._steps.softmax,
            scratch=self.execution.scratch if self.training else None,
            soft=soft,
            candidates=candidates,
        )

    def matrix_parameters(self) -> int:
        """见 GPTConfig.matrix_parameters。"""
        return self.config.matrix_parameters()

    def flops_per_token(self, words: int | None = None, whole: bool = False) -> int:
        """见 GPTConfig.flops_per_token；输出层只算 words 个词、停着的块（除非 whole）不数。"""
        config, blocks = self.config, None if whole else self.execution.blocks
        config = replace(config, vocab_size=words or config.vocab_size)
        return replace(config, n_block=blocks or config.n_block).flops_per_token()
