"""训练在什么上、以什么精度执行，编译不编译。"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from gpt import GPT
from support import cuda, hardware
from training.settings import Settings


@dataclass
class Machine:
    """设备、精度、编译；编译要等模型造好才定。"""

    device: torch.device
    dtype: torch.dtype
    compiled: bool = False
    compile_reason: str = "还没有编译"

    @classmethod
    def pick(cls, settings: Settings, local_rank: int = 0) -> Machine:
        """按 DEVICE 与 DTYPE 挑；挑不到抛 UserError。"""
        device = hardware.pick_device(settings.device, local_rank)
        if device.type == "cuda":
            cuda.set_up(device)
        return cls(device, hardware.pick_dtype(settings.dtype, device))

    @property
    def dtype_name(self) -> str:
        return hardware.dtype_name(self.dtype)

    @property
    def muon_dtype(self) -> torch.dtype:
        """Muon 正交化的精度；fp32 时一个进程与几个进程才一致，显卡上绝不用模拟的 bf16。"""
        emulated = self.device.type == "cuda" and not hardware.native_bf16(self.device)
        exact = self.dtype == torch.float32 or emulated
        return torch.float32 if exact else torch.bfloat16

    @property
    def warning(self) -> str | None:
        """这样选会很慢时的一句话。"""
        if self.device.type != "cuda" or self.dtype != torch.bfloat16:
            return None
        if hardware.native_bf16(self.device):
            return None
        return "这张卡没有 bf16 的硬件，是模拟的，会慢几倍；请用 --DTYPE=auto"

    def chosen(self) -> dict:
        """auto 选了什么；随检查点沿用。"""
        return {
            "DEVICE": self.device.type,
            "DTYPE": self.dtype_name,
            "COMPILE": "on" if self.compiled else "off",
        }

    def stop_compiling(self, model: GPT, reason: str) -> None:
        """退回逐个算子地执行。"""
        model.configure(compiled=False)
        self.compiled, self.compile_reason = False, reason

    def peak_report(self) -> str:
        """真的用了多少显存（一行，前面带换行），好与开场的预计比；不是显卡时为空。"""
        if self.device.type != "cuda":
            return ""
        return f"\n显存峰值 {torch.cuda.max_memory_allocated(self.device) >> 20} MB"

    def autocast(self) -> AbstractContextManager:
        return hardware.autocast(self.device, self.dtype)

    def hold(self, array: np.ndarray) -> torch.Tensor:
        """numpy 数组 → 主机上的张量；要搬上显卡的放进锁页内存，搬的时候不必等。"""
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor
        torch.cuda.set_device(self.device)  # 在后台的线程里：不要在 0 号卡上另开一份上下文
        try:
            return tensor.pin_memory()
        except RuntimeError:  # 主机锁不下更多内存：照平常搬，只是要等
            return tensor

    def tensor(self, array: np.ndarray | torch.Tensor) -> torch.Tensor:
        """numpy 数组或 hold 过的张量 → 设备上的张量。"""
        held = array if isinstance(array, torch.Tensor) else self.hold(array)
        return held.to(self.device, non_blocking=self.device.type == "cuda")
