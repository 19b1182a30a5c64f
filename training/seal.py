"""dataset.bin 与旧诗的校验：训练一开始就在后台重算，对不上就在第一次保存之前停下。"""

from __future__ import annotations

import threading

import dataset
from support.console import UserError


class Seal:
    """正在核对的几份数据集：给人看的名字 → 数据集。"""

    def __init__(self, files: dict[str, dataset.PoemDataset]) -> None:
        self._wrong = []
        self._thread = threading.Thread(target=self._verify, args=(files,), daemon=True)
        self._thread.start()

    def _verify(self, files: dict[str, dataset.PoemDataset]) -> None:
        for name, data in files.items():
            wrong = data.verify()
            if wrong:
                self._wrong = [name, *wrong]
                return

    def check(self, wait: bool = False) -> None:
        """已经知道坏了就抛 UserError；wait：等核对完。"""
        if wait:
            self._thread.join()
        if self._wrong:
            name, *wrong = self._wrong
            raise UserError(
                f"{name} 已损坏（{'、'.join(wrong)} 与校验和不符），训练停下；"
                "用它算出的更新没有保存，原来的检查点原样还在。\n"
                "请重做数据集：python train_dataset_one.py，或换回完好的那一份"
            )
