"""Poet：载入的模型与分词器，会写诗。"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Sequence

import torch

import checkpoint
from gpt import GPT
from kernels import compiler
from kernels.products import half_problem
from support import hardware
from support.artefacts import BOX
from tokenizer import HFTokenizer
from writing import request as requests
from writing.decoder import Decoder
from writing.pace import Paces
from writing.request import Request
from writing.session import Row, Session
from writing.vocabulary import Vocabulary

_loaded = {}
_home = {}  # 第一次载入模型的进程
_load_lock = threading.Lock()


def _settle_after_fork() -> None:
    """fork 出来的进程里没有父进程的 OpenMP 线程，等它们就永远等下去：只用一个线程。"""
    if _home.setdefault("pid", os.getpid()) == os.getpid():
        return
    _home["pid"] = os.getpid()
    torch.set_num_threads(1)
    for poet in _loaded.values():
        poet.paces = poet.paces and Paces()


class Piece(NamedTuple):
    """刚写出来的一段：第几首、文字、它的进度。"""

    index: int
    text: str
    row: Row


class Written(NamedTuple):
    """写完的一首。"""

    text: str
    finish_reason: str  # stop 是自己收的尾


class Poet:
    """载入的模型与分词器，可以反复、并发地用。"""

    def __init__(
        self,
        model: GPT,
        tok: HFTokenizer,
        prompt_kinds: list | None = None,
        path: Path | None = None,
        half: bool = False,
        dtype: torch.dtype | None = None,
        library: ctypes.CDLL | None = None,
    ) -> None:
        """model 也可以是 int8 的；half、dtype、library 见 Decoder。"""
        self.model, self.tok, self.path = model, tok, path
        self.prompt_kinds = list(prompt_kinds) if prompt_kinds is not None else None
        self.config = model.config
        self.decoder = Decoder(model, dtype, half, library=library)
        self.paces = None  # 载入来写诗的才管线程数；训练中写示例的不动它
        self.vocabulary = Vocabulary(tok)

    @classmethod
    def load(
        cls,
        given: str = "",
        work_dir: str = ".",
        device: str = "auto",
        dtype: str = "auto",
        compiling: str = "off",
    ) -> Poet:
        """检查点文件 → Poet；同一个文件（路径、时间、大小都没变）只载入一次。

        dtype 为 auto 或 fp16 时 CPU 上矩阵存成 fp16（激活与累加仍是 fp32），快近一倍，
        几率只差千分之几；fp32 时逐位等于训练用的模型。显卡上 auto 就是 fp32：一步的时间多在启动，
        半精度省不了多少；明说了 fp16、bf16 就用它。
        compiling（COMPILE 配置）：CPU 上 fp16 与 int8 的前向用编译好的，见 compiler.pick。
        """
        _settle_after_fork()
        path = Path(checkpoint.find_to_write(work_dir, given)).resolve()
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size, device, dtype, compiling)
        with _load_lock:
            if key not in _loaded:
                if path == checkpoint.BOX_FILE and not given:
                    print(f"（{work_dir} 里没有模型，用随附的 {BOX}）", file=sys.stderr, flush=True)
                state = checkpoint.load(path)
                chosen = hardware.pick_device(device)
                model, tok = checkpoint.rebuild(state, chosen)
                half = dtype in ("auto", "fp16") and half_problem(chosen) is None
                exact = chosen.type != "cuda" or dtype == "auto"
                precision = None if exact else hardware.pick_dtype(dtype, chosen)
                native = chosen.type == "cpu" and dtype in ("auto", "fp16")
                library = compiler.pick(compiling) if native else None
                for old in [other for other in _loaded if other[0] == key[0]]:
                    del _loaded[old]
                poet = cls(model, tok, state["prompt_kinds"], path, half, precision, library)
                if chosen.type == "cpu":
                    poet.paces = Paces()
                    hardware.keep_memory()  # 每一步都要几块同样大的内存，还给系统再要就慢一倍
                _loaded[key] = poet
            return _loaded[key]

    def request(self, question: object = None, **given: object) -> Request:
        """检查一次提问的全部选项（见 poems/options.py），写成 token；有问题时抛出 UserError。"""
        limit = self.config.max_seq_len
        return requests.make(self.vocabulary, limit, self.prompt_kinds, question, given)

    def row(self, request: Request, seed: int, scored: bool = False) -> Row:
        """一首还没有开始写的诗。"""
        return Row(self.vocabulary, request, self.config.max_seq_len, seed, scored)

    def session(self, size: int, longest: int | None = None) -> Session:
        """至多 size 首同时写的一批。"""
        return Session(self.decoder, size, longest, self.paces)

    def poems(self, request: Request, n: int = 1, scored: bool = True) -> Iterator[Piece]:
        """写 n 首，逐步给出写好的文字；同一提问的几首共用一次预填。

        scored：n > 1 时累计对数概率（Row.score），供排名用。
        """
        longest = len(request.prompt) + len(request.prefix) + request.options.max_new_tokens
        session, seed = self.session(n, longest), request.seed()
        rows = [self.row(request, seed + index, scored and n > 1) for index in range(n)]
        changed = session.start(rows)
        while changed:
            for row in changed:
                text = row.take()
                if text:
                    yield Piece(rows.index(row), text, row)
            changed = session.step()
        for index, row in enumerate(rows):
            yield Piece(index, "", row)

    def write_all(
        self,
        wanted: Sequence[Request],
        together: int = 8,
        on_done: Callable[[int], object] | None = None,
    ) -> list:
        """每个请求写一首，至多 together 首同时写：[Written, …]，次序与请求相同。

        on_done(首数)：写好几首就调用，供进度条用。
        """
        found = []
        for first in range(0, len(wanted), together):
            session, rows = self.session(together), []
            for request in wanted[first : first + together]:
                rows += session.start([self.row(request, request.seed())])
            while session.step():
                pass
            found += [Written(row.take(), row.finish_reason) for row in rows]
            if on_done is not None:
                on_done(len(rows))
        return found
