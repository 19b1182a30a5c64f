"""训练在什么上、以什么精度执行，编译不编译。"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from support import hardware
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
        return cls(device, hardware.pick_dtype(settings.dtype, device))

    @property
    def dtype_name(self) -> str:
        return hardware.dtype_name(self.dtype)

    @property
    def muon_dtype(self) -> torch.dtype:
        """Muon 正交化的精度；fp32 时一个进程与几个进程才一致。"""
        return torch.float32 if self.dtype == torch.float32 else torch.bfloat16

    def chosen(self) -> dict:
        """auto 选了什么；随检查点沿用。"""
        return {
            "DEVICE": self.device.type,
            "DTYPE": self.dtype_name,
            "COMPILE": "on" if self.compiled else "off",
        }

    def autocast(self) -> AbstractContextManager:
        return hardware.autocast(self.device, self.dtype)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """numpy 数组 → 设备上的张量。"""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
