"""假的 CUDA 图：录下每个算子，重放时在同样的内存上再算一遍。

录的时候与真的一样不许等设备、不许从内存搬东西上来；重放时不看 Python 的任何值，所以凡是该随
步子变的，都得在图的输入里。
"""

from __future__ import annotations

import contextlib
from typing import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_WAITS = {_aten._local_scalar_dense.default, _aten.nonzero.default}
_replaying = []  # 不空时正在重放：不算启动


def is_replaying() -> bool:
    return bool(_replaying)


class CUDAGraph:
    """torch.cuda.CUDAGraph 的样子。"""

    replays = 0  # 全部图一共重放了几次

    def __init__(self, *_: object, **__: object) -> None:
        self.nodes: list = []

    def replay(self) -> None:
        from tests.fake_cuda.device import launches

        CUDAGraph.replays += 1
        _replaying.append(True)
        try:
            for function, args, kwargs, out in self.nodes:
                if not launches(function):
                    continue
                again = _tensors(function(*args, **kwargs))
                for old, new in zip(_tensors(out), again):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)
        finally:
            _replaying.pop()


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: CUDAGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        devices = {x.device.type for x in (*_tensors((args, kwargs)), *_tensors(out))}
        if function in _WAITS or devices >= {"cpu", "cuda"}:
            raise RuntimeError(f"录图时不许 {function}：operation not permitted when capturing")
        self.graph.nodes.append((function, args, kwargs, out))
        return out


@contextlib.contextmanager
def graph(recorded: CUDAGraph, **_: object) -> Iterator[None]:
    """torch.cuda.graph 的样子。"""
    with _Recorder(recorded):
        yield


def _tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]
