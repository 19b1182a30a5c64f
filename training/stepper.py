"""拿到梯度以后：检查有限、裁剪、优化器走一步；fp16 时还管损失的放大倍数。"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from support import hardware
from support.console import UserError
from training.optim import Optimizers


class LossScale:
    """fp16 的损失放大：溢出减半并跳过，连续 2000 次正常加倍。其余精度恒为 1。"""

    GROWTH = 2000

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.value = 65536.0 if enabled else 1.0
        self.good = 0

    def update(self, finite: bool) -> None:
        """这次更新之后调整。"""
        if not self.enabled:
            return
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 2.0**-14)
        elif self.good == self.GROWTH:
            self.value, self.good = min(self.value * 2, 2.0**24), 0

    def state_dict(self) -> dict:
        return {"value": self.value, "good": self.good}

    def load_state_dict(self, state: dict) -> None:
        if self.enabled:
            self.value, self.good = state["value"], state["good"]


class Stepped(NamedTuple):
    """走了一步。"""

    norm: float  # 裁剪以前全部梯度的范数
    finite: bool  # 否则这次更新跳过了


class Stepper:
    """优化器和它前面的几道关。"""

    def __init__(
        self, model: nn.Module, optimizers: Optimizers, scale: LossScale, clip: float
    ) -> None:
        """clip：梯度的范数至多这么大，0 = 不限。"""
        self.params = list(model.parameters())
        self.optimizers, self.scale, self.clip = optimizers, scale, clip

    def _advance(self, lr_scale: float) -> None:
        try:
            self.optimizers.step(lr_scale)
        except RuntimeError as error:
            if not hardware.is_out_of_memory(error):
                raise
            raise UserError(
                "显存不够：梯度算好了，优化器的一步却放不下。最近的检查点是完好的。\n"
                "可以：关掉别的用显卡的程序，或 --GRAD_CHECKPOINT=on，再运行同一条命令接着训练。"
            ) from error

    def step(self, loss: float, lr_scale: float) -> Stepped:
        """用各参数的 grad 走一步；损失或梯度非有限时不走。"""
        grads = [param.grad for param in self.params if param.grad is not None]
        norm = torch.stack(torch._foreach_norm(grads)).norm().item() / self.scale.value
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            shrink = min(1.0, self.clip / (norm + 1e-6)) if self.clip else 1.0
            if shrink != 1.0 or self.scale.value != 1.0:
                torch._foreach_mul_(grads, shrink / self.scale.value)
            self._advance(lr_scale)
        self.scale.update(finite)
        return Stepped(norm, finite)
