"""均方根归一化的融合写法：显卡上前向一个核、反向两个，只留下输入与每行的一个数。

别的设备（与没有这个核的 PyTorch）上同一个函数由几个算子拼成：数相同，留下的也相同，所以
显存可以在 CPU 上模拟。
"""

from __future__ import annotations

from typing import Any

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / √(行的均方 + eps) · weight；x (..., C) 与 weight (C,) 都是 fp32。"""
    return _RMSNorm.apply(x, weight, eps)


def _has_kernel(x: torch.Tensor) -> bool:
    return x.is_cuda and hasattr(torch.ops.aten, "_fused_rms_norm")


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if _has_kernel(x):
            out, inverse = torch.ops.aten._fused_rms_norm(x, [x.size(-1)], weight, eps)
        else:
            inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
            out = x * inverse * weight
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        x, weight, inverse = ctx.saved_tensors
        if _has_kernel(x):
            backward = torch.ops.aten._fused_rms_norm_backward
            shape, wanted = [x.size(-1)], list(ctx.needs_input_grad[:2])
            grads = backward(grad.contiguous(), x, shape, inverse, weight, wanted)
            return (*grads, None)
        unit = x * inverse
        grad_weight = (grad * unit).flatten(0, -2).sum(0)  # (..., C) -> (C,)
        inner = grad * weight
        along = (inner * unit).mean(-1, keepdim=True)
        return inverse * (inner - unit * along), grad_weight, None
