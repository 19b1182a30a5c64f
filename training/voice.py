"""训练时对人说话：有进度条时从它上面写，免得搅在一起；只有写文件的进程说。"""

from __future__ import annotations

import os
import sys
from typing import Any

from support import console
from training.distributed import Ranks


class Voice:
    """说一行话；进度条打开着就写在它上面。"""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.bar: Any = None

    def say(self, text: str) -> None:
        if not self.ranks.is_main:
            return
        try:
            (self.bar.write if self.bar is not None else print)(text)
        except OSError:  # 终端已经关掉
            _talk_to_nobody()

    def open_bar(self, total: int, unit: str, done: int = 0) -> None:
        """打开进度条。"""
        if self.ranks.is_main:
            self.bar = console.progress(total, "训练", unit, initial=done)

    def show(self, done: int, text: str) -> None:
        """进度条走到 done，后面写 text；没有进度条时什么也不做。"""
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """关掉进度条；之后说的话直接打印。"""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _talk_to_nobody() -> None:
    """往后的话都丢掉：训练照常收场，退出时也不因写不出去而改了退出码。"""
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
