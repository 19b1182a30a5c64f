"""解码的一步录成 CUDA 图：以后每个 token 只启动一次，不必由 Python 逐个启动上百个小核。

图里的内存都是固定的，所以输入先抄进自己的缓冲区；第一步照常执行（各种库要先准备好），第二步录，
此后重放。录不成就一直照常执行。
"""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import Any, Callable, Iterator

import torch

_RECORDING = threading.Lock()


class Step:
    """rows 行走一步；compute(tokens (B,), places (B,)) -> 对数几率 (B, V)，只读写固定的内存。"""

    def __init__(
        self,
        compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        rows: int,
        device: torch.device,
    ) -> None:
        self.compute, self.rows = compute, rows
        self._inputs = torch.zeros(2, rows, dtype=torch.long, device=device)
        self._can_record = device.type == "cuda"
        self._graph: Any = None
        self._logits: Any = None
        self._ready = False

    def __call__(self, tokens: list, places: list) -> torch.Tensor:
        """tokens、places 可以比 rows 短：后面的行算的是没有用的。"""
        count, spare = len(tokens), [0] * (self.rows - len(tokens))
        self._inputs.copy_(torch.tensor([[*tokens, *spare], [*places, *spare]]))
        if self._ready and self._can_record and self._graph is None:
            self._record()
        self._ready = True
        if self._graph is None:
            return self.compute(*self._inputs)[:count]
        self._graph.replay()
        return self._logits[:count]

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # 别的线程可能正在训练：只管本线程
            with _without_collecting(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._logits = self.compute(*self._inputs)
        except RuntimeError:
            self._can_record, self._logits = False, None
            return
        self._graph = graph


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """先把没人要的收走，里面不再收：录的时候销毁不了别的图。收不收是全进程的，所以一次只录一个。"""
    with _RECORDING:
        was_on = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            if was_on:
                gc.enable()
