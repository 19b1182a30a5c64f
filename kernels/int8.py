"""int8 权重：每个输出通道一个比例，对称量化；词嵌入与输出层共享，也只量化一次。

CPU 上用 torch._weight_int8pack_mm（PyTorch 的私有函数，有就用）：激活转成 bf16，权重一直是
int8，单首生成时要读的字节只有 fp32 的四分之一。别的设备或没有它时，载入时一次还原成 fp32。
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

MARK = "int8"
WIDTH = 32  # int8 矩阵乘要求输入宽度是它的倍数
_FEW_ROWS = 32  # 行数不超过它才用 int8 矩阵乘；再多时还原成 fp32 更快


def quantize(weight: torch.Tensor) -> tuple:
    """(out, in) 的矩阵 → (int8 (out, in), 比例 bf16 (out,))；weight ≈ int8 × 比例。

    比例先取成 bf16 再量化，所以运行时比例没有误差；0 行的比例为 1。
    """
    widest = weight.float().abs().amax(1)
    scale = (widest / 127).to(torch.bfloat16)
    short = scale.float() * 127.49 < widest  # 舍小了就进到下一个 bf16，免得截断
    scale = torch.where(short, (scale.float() * (1 + 2**-7)).to(torch.bfloat16), scale)
    scale = torch.where(widest > 0, scale, torch.ones_like(scale))
    codes = (weight.float() / scale.float()[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


def restore(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """int8 与比例 → fp32 矩阵。"""
    return codes.float() * scale.float()[:, None]


def quantize_weights(weights: dict) -> dict:
    """名字 → 张量：矩阵 x.weight 换成 x.codes 与 x.scale，其余（归一化）原样。"""
    found = {}
    for name, value in weights.items():
        if value.dim() == 2:
            stem = name[: -len(".weight")]
            found[stem + ".codes"], found[stem + ".scale"] = quantize(value)
        else:
            found[name] = value
    return found


def restore_weights(weights: dict) -> dict:
    """quantize_weights 的反向：全部还原成 fp32；还有没量化的矩阵就不是它写的，抛 ValueError。"""
    found = {}
    for name, value in weights.items():
        if name.endswith(".codes"):
            stem = name[: -len(".codes")]
            found[stem + ".weight"] = restore(value, weights[stem + ".scale"])
        elif value.dim() == 2:
            raise ValueError(f"{name} 没有量化")
        elif not name.endswith(".scale"):
            found[name] = value
    return found


class Int8Linear(nn.Module):
    """x @ Wᵀ，W 存成 int8。"""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(out_features, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.codes, self.scale)


class Int8Embedding(Int8Linear):
    """词嵌入与输出层共享的 int8 矩阵。"""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return restore(self.codes[ids].flatten(0, -2), self.scale[ids].flatten()).view(
            *ids.shape, -1
        )

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return product(hidden, self.codes, self.scale)


def install(model: nn.Module) -> None:
    """把 model 里的 nn.Linear 全部换成空的 Int8Linear，等着装权重。"""
    for owner in list(model.modules()):
        for name, old in list(owner.named_children()):
            if isinstance(old, nn.Linear):
                setattr(owner, name, Int8Linear(old.out_features, old.in_features))


def product(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(..., in) -> (..., out)，与 x 同精度。"""
    rows = x.numel() // x.size(-1)
    if rows > _FEW_ROWS or x.device.type != "cpu":
        return F.linear(x, restore(codes, scale).to(x.dtype))
    flat = x.reshape(rows, -1).to(torch.bfloat16)
    found = torch._weight_int8pack_mm(flat, codes, scale)
    return found.to(x.dtype).view(*x.shape[:-1], -1)


@functools.lru_cache(maxsize=None)
def fast_problem() -> str | None:
    """用不了 int8 矩阵乘的原因；能用时为 None。"""
    if not hasattr(torch, "_weight_int8pack_mm"):
        return "这个版本的 PyTorch 没有 int8 矩阵乘"
    weight = torch.arange(-32, 32).repeat(32, 1).to(torch.int8)
    x = torch.ones(1, 64, dtype=torch.bfloat16)
    try:
        found = torch._weight_int8pack_mm(x, weight, torch.ones(32, dtype=torch.bfloat16))
    except (RuntimeError, NotImplementedError, TypeError):
        return "这台机器的 int8 矩阵乘用不了"
    return None if bool((found == -32).all()) else "这台机器的 int8 矩阵乘结果不对"
