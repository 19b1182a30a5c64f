"""一次训练的全部部件，装在一起传来传去；每一件都能单独造、单独测。"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gpt import GPT
from training.corpus import Corpus
from training.distributed import Ranks
from training.gradients import Gradients
from training.machine import Machine
from training.position import Position
from training.settings import Settings
from training.stepper import Stepper
from training.stop import StopSignal
from training.voice import Voice


@dataclass
class Run:
    """prepare.open_run 造好它，loop 推着 position 往前走。"""

    values: dict  # config.values()，存进检查点，密钥除外
    settings: Settings
    folder: Path
    ranks: Ranks
    stop: StopSignal
    voice: Voice
    corpus: Corpus
    machine: Machine
    model: GPT
    gradients: Gradients
    stepper: Stepper
    position: Position = field(default_factory=Position)
    whole: bool = True  # 权重与 position 对得上；优化器走到一半时不是
    remarks: list = field(default_factory=list)  # 起点是什么，给人看的
    resumed: bool = False
    taken_over: list = field(default_factory=list)  # 续训时与检查点不同的配置，给人看的
    warm_seconds: float = 0.0  # 由统计算出起点用的时间

    def share(self, update: int) -> list:
        """第 update 次更新里本进程算的微批次编号。"""
        numbers = self.settings.micro_batches(update)
        return self.corpus.deal(numbers, self.ranks.rank, self.ranks.world_size)

    def result(self, stopped: int = 0) -> dict:
        """训练的结果；stopped：被哪个信号停下，0 = 没有。"""
        here = self.position
        return {
            "val_bpc": here.best.val_bpc,
            "old_bpc": here.old_best,
            "iter": self.settings.iteration(here.update),
            "updates": here.update,
            "seconds": here.seconds,
            "skipped": here.skipped,
            "stopped": stopped,
        }
