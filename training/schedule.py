"""训练的日程：学习率走什么形状，什么时候结束。

按次数的用于正常训练，按秒数的用于测速；循环只认 Schedule 的几样。
"""

from __future__ import annotations

from typing import Protocol

from training.position import Position
from training.settings import Settings

WARMUP_SHARE = 0.02  # 按秒数训练时，预热占多少时间
LOWEST = 0.02  # 按秒数训练时，学习率最后停在几倍：时间到了才停，不知道哪次更新是最后一次
LONG_SECONDS = 60  # 训练至少这么多秒，才值得先花一分钟编译
LONG_WORK = {"cuda": 6e14}  # 同上，按浮点运算数；其余设备是 _LONG_WORK
_LONG_WORK = 1e14


def lr_scale(update: int, total: int, warmup: int, decay_share: float) -> float:
    """第 update 次更新（从 0 数）的学习率倍数：线性预热、保持、最后 decay_share 线性降到 0。"""
    warmup = min(warmup, total // 10)
    rise = (update + 1) / (warmup + 1)
    fall = (total - update) / max(1.0, decay_share * total)
    return max(0.0, min(1.0, rise, fall))


class Schedule(Protocol):
    """循环要问日程的几件事。"""

    def share(self, here: Position) -> float:
        """走过了全程的多少。"""

    def scale(self, here: Position) -> float:
        """接下来这次更新的学习率倍数。"""

    def is_over(self, here: Position) -> bool:
        """该结束了。"""

    def is_long(self, flops_per_token: int, device: str) -> bool:
        """长到值得先花一分钟编译。"""


class ByUpdates(Schedule):
    """TRAIN_ITER 次迭代；EARLY_STOP 时可以提前结束。"""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def scale(self, here: Position) -> float:
        s = self.settings
        return lr_scale(here.update, s.updates, s.warmup_steps, s.decay_share)

    def share(self, here: Position) -> float:
        return here.update / self.settings.updates

    def is_over(self, here: Position) -> bool:
        return self.is_complete(here) or self.is_stale(here)

    def is_complete(self, here: Position) -> bool:
        """更新的次数够了。"""
        return here.update >= self.settings.updates

    def is_stale(self, here: Position) -> bool:
        """验证很久没有进步，该提前结束。"""
        return bool(self.settings.early_stop) and here.best.stale >= self.settings.early_stop

    def is_long(self, flops_per_token: int, device: str) -> bool:
        work = self.settings.train_iter * self.settings.budget * flops_per_token
        return work > LONG_WORK.get(device, _LONG_WORK)


class BySeconds(Schedule):
    """训练 seconds 秒，学习率随用掉的时间走。"""

    def __init__(self, seconds: float, decay_share: float) -> None:
        self.seconds, self.decay_share = seconds, decay_share

    def scale(self, here: Position) -> float:
        left = 1 - here.seconds / self.seconds
        rise = (here.seconds + 1) / (WARMUP_SHARE * self.seconds)
        return min(1.0, rise, max(LOWEST, left / self.decay_share))

    def share(self, here: Position) -> float:
        return here.seconds / self.seconds

    def is_over(self, here: Position) -> bool:
        return here.seconds >= self.seconds

    def is_long(self, flops_per_token: int, device: str) -> bool:
        return self.seconds >= LONG_SECONDS
