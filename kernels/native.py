"""写诗的一步前向，用 native.cpp 编译出来的库：权重摆成它要的样子，一次调用算完几个 token。

数学与 writing/decoder.py 的相同，权重也同样舍入成 fp16（或本来就是 int8），激活与累加是 fp32。
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from kernels.int8 import Int8Linear

ACTIVATION = "silu"  # native.cpp 里写着的前馈激活
PANEL, WIDE = 32, 8  # 同 native.cpp


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "gain")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "heads", "size", "feed")),
        ("eps", ctypes.c_float),
        ("rope", ctypes.c_void_p),
        ("matrices", ctypes.POINTER(_Matrix)),
    )


class Packed(NamedTuple):
    """摆好的一个矩阵；scale、gain 见 native.cpp。"""

    weight: torch.Tensor
    scale: torch.Tensor | None
    gain: torch.Tensor | None
    shape: tuple  # (out, in)


def pack(linear: nn.Module, gain: torch.Tensor | None = None) -> Packed:
    """线性层（或与输出层共享的词嵌入）→ 摆好的矩阵；gain (in,) 先乘在输入上。"""
    if isinstance(linear, Int8Linear):
        codes, scale = linear.codes, linear.scale.float()
        return Packed(_panels(codes), scale, gain, tuple(codes.shape))
    weight = linear.weight.detach().float()
    weight = weight if gain is None else weight * gain
    return Packed(_panels(weight.half()), None, None, tuple(weight.shape))


def _panels(weight: torch.Tensor) -> torch.Tensor:
    """(out, in) -> (组, in, PANEL)；最后一组不满时补 0。"""
    weight = F.pad(weight, (0, 0, 0, -weight.size(0) % PANEL))
    return weight.view(-1, PANEL, weight.size(1)).transpose(1, 2).contiguous()


class Native:
    """一个模型的一步前向。"""

    def __init__(
        self,
        library: ctypes.CDLL,
        matrices: Sequence[Packed],
        rope: torch.Tensor,
        heads: int,
        eps: float,
    ) -> None:
        """matrices：每层 qkv、out、gate_up、down，最后是输出层；rope 见 decoder.py 的表。"""
        self._forward = library.forward
        self._forward.restype = None
        self._kept = [*matrices, rope]  # 库里只有地址
        self._matrices = (_Matrix * len(matrices))()
        for place, packed in zip(self._matrices, matrices):
            place.weight, place.scale, place.gain = map(_address, packed[:3])
            place.outputs, place.inputs = packed.shape
        self.vocab_size, width = matrices[-1].shape
        layers, feed = len(matrices) // 4, matrices[3].shape[1]
        self._model = _Model(
            layers, heads, width // heads, feed, eps, rope.data_ptr(), self._matrices
        )

    def __call__(
        self, x: torch.Tensor, cache: torch.Tensor, lines: list, places: list, wanted: int
    ) -> torch.Tensor:
        """词向量 x (N, C)（会被改写）-> 最后 wanted 个的对数几率 (wanted, V)。

        各 token 写进 cache (层, k|v, rows, H, L, D) 的第 lines 行、第 places 个位置，那一行此前的
        位置须已写好，或就在这些 token 里。
        """
        logits = torch.empty(wanted, self.vocab_size)
        where = torch.tensor([lines, places])  # (2, N)
        self._forward(
            ctypes.byref(self._model),
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_int64(len(lines)),
            *map(ctypes.c_void_p, (where[0].data_ptr(), where[1].data_ptr(), cache.data_ptr())),
            *map(ctypes.c_int64, (cache.size(2), cache.size(4), wanted)),
            ctypes.c_void_p(logits.data_ptr()),
            torch.get_num_threads(),
        )
        return logits


def shape_problem(activation: str, head_dim: int, feed: int) -> str | None:
    """这样的模型用不了的原因；能用时为 None。"""
    if activation != ACTIVATION:
        return f"前馈的激活不是 {ACTIVATION}"
    if head_dim % WIDE or feed % WIDE:
        return f"头宽与前馈宽要是 {WIDE} 的倍数"
    return None


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
