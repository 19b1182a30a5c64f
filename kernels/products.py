"""逐步解码用的矩阵乘 x @ Wᵀ：按设备与精度摆好一次，以后每个 token 都用。

三种有同样的用法：product(x)，与顺带加上残差的 product.add(x, y) = x + y @ Wᵀ。
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import nn


class Product:
    """浮点矩阵乘。"""

    def __init__(
        self, weight: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None = None
    ) -> None:
        """weight (out, in)；scale (in,) 并入 weight：x·scale @ Wᵀ = x @ (W·scale)ᵀ。"""
        weight = _scaled(weight, scale).to(dtype)
        # 向量乘宽矩阵，CPU 上按列存快一倍；方的和窄的不必
        wide = weight.device.type == "cpu" and weight.size(0) > weight.size(1)
        self._matrix = weight.t().contiguous() if wide else weight.t()  # (in, out)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, self._matrix)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.addmm(x, y, self._matrix)


class HalfProduct:
    """权重存成 fp16、激活与累加是 fp32 的矩阵乘（FBGEMM，只在 x86 的 CPU 上）。"""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor | None = None) -> None:
        weight = _scaled(weight, scale).contiguous()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self._packed)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + self(y)


class ModuleProduct:
    """别的线性层（int8）：直接调用；scale 乘在输入上。"""

    def __init__(
        self, linear: Callable[[torch.Tensor], torch.Tensor], scale: torch.Tensor | None = None
    ) -> None:
        self._linear, self._scale = linear, scale

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x if self._scale is None else x * self._scale)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + self(y)


def product_of(
    linear: nn.Module, dtype: torch.dtype, half: bool, scale: torch.Tensor | None = None
) -> Product | HalfProduct | ModuleProduct:
    """线性层 → 摆好的矩阵乘；half 时浮点权重存成 fp16。"""
    if not isinstance(linear, nn.Linear):
        return ModuleProduct(linear, scale)
    return float_product(linear.weight, dtype, half, scale)


def float_product(
    weight: torch.Tensor, dtype: torch.dtype, half: bool, scale: torch.Tensor | None = None
) -> Product | HalfProduct:
    """浮点权重 (out, in) → 摆好的矩阵乘；half 时存成 fp16。"""
    return HalfProduct(weight, scale) if half else Product(weight, dtype, scale)


def half_problem(device: torch.device) -> str | None:
    """用不了 fp16 权重的原因；能用时为 None。"""
    if device.type != "cpu":
        return "fp16 权重只用于 CPU"
    try:
        product = HalfProduct(torch.ones(8, 8))
        return None if bool((product(torch.ones(1, 8)) == 8).all()) else "结果不对"
    except (RuntimeError, NotImplementedError, AttributeError):
        return "这个版本的 PyTorch 没有 fp16 权重的矩阵乘"


def _scaled(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return weight.detach() if scale is None else weight.detach() * scale
