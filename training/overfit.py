"""过拟合：验证降到头又升上去，说一声，连同怎样办。"""

from __future__ import annotations

LATER = 3  # 最好的一次之后至少又验证了这么多次
WORSE = 1.01  # 且高出这么多倍
NOTE = "过拟合"


def began(best: float, last: float, later: int) -> bool:
    """最好的一次之后又验证了 later 次，最近一次是 last：是不是开始背训练诗了。"""
    return later >= LATER and last > WORSE * best


def mend(iteration: int, dropout: float, taught: bool) -> str:
    """怎样办；iteration：最好的一次在第几次迭代；taught：有老师教。"""
    more = min(0.5, max(0.1, dropout + 0.1))
    by_teachers = "或先练两个老师再由它们教（--TEACHER=2 --RESUME=off，时间是三倍），"
    return (
        f"best_model.bin 是最好的那一次，可以现在就停。下次：加大 DROPOUT（--DROPOUT={more:.1g}），"
        f"或少练些（--TRAIN_ITER={max(1, iteration)}，或 --EARLY_STOP={LATER}），"
        f"{'' if taught else by_teachers}诗多些最管用，也可以从读过许多诗的模型开始（--FROM）"
    )


def message(best: float, last: float, iteration: int, dropout: float, taught: bool) -> str:
    """途中与结尾说的。"""
    return (
        f"{NOTE}：验证在第 {iteration} 次迭代最好（{best:.3f}），"
        f"现在是 {last:.3f}。{mend(iteration, dropout, taught)}。"
    )
