"""训练走到了哪里：检查点里 position 与 best 两项，就是这里的字段。"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields


@dataclass
class Best:
    """验证得最好的一次，以及此后有几次没有更好。"""

    val_bpc: float = math.inf
    iter: int = 0
    stale: int = 0


@dataclass
class Position:
    """做完了几次更新，用了多少 token 与秒，跳过几次，最佳是哪一次。"""

    update: int = 0
    tokens: int = 0
    seconds: float = 0.0
    bad: int = 0  # 连续几次非有限
    skipped: int = 0
    pending: dict | None = None  # 更新已做、边界上的事（验证、写诗、记录）还没做完的那一行
    best: Best = field(default_factory=Best)
    from_bpc: float | None = None  # FROM 的模型训练以前的验证；从零训练没有
    old_before: float | None = None  # 训练以前旧诗的验证；没有给 REPLAY_DATA 时没有
    old_best: float | None = None  # 最佳那一次旧诗的验证

    def advance(self, tokens: int, seconds: float, finite: bool) -> None:
        """做完一次更新。"""
        self.update += 1
        self.tokens += tokens
        self.seconds += seconds
        self.bad = 0 if finite else self.bad + 1
        self.skipped += 0 if finite else 1

    @property
    def logged(self) -> int:
        """记录里应当有的最后一次更新。"""
        return self.update - (1 if self.pending else 0)

    def to_dict(self) -> dict:
        """检查点里的 {"position", "best"}。"""
        position = asdict(self)
        best = position.pop("best")
        return {"position": position, "best": best}

    @classmethod
    def from_dict(cls, saved: dict) -> Position:
        """to_dict 的逆；saved 也可以是整个检查点。"""
        known = {item.name for item in fields(cls)} - {"best"}
        here = {name: value for name, value in saved["position"].items() if name in known}
        return cls(**here, best=Best(**saved["best"]))
