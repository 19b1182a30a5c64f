"""写成 auto 的自己定：DROPOUT、WEIGHT_DECAY、GROW_AT、SAMPLED_SOFTMAX 由这次训练过几遍数据、
更新多少次来。

规则是 docs/LOG.md 里“许多遍”一节的小样量出来的：
  丢弃：诗只见一两遍、或模型比诗小得多时背不下来，丢弃只碍事；见得多又背得下，不丢弃就开始背。
  衰减：它的快慢是 1 ÷（学习率 × 衰减）次更新，约是全程的 0.45 倍时最好；所以练得越长、数越小。
  由浅到深：诗没有读重、全程的 token 不到参数的几倍时，同样的时间里多读诗比深的几块管用；
  再长是深的好，读重了多出来的遍数是背。
  抽样的 softmax：词嵌入的起点由统计算出时，同样的 token 学到的一样；随机的起点上开头学得慢些。
写了数字的照数字；续训照检查点练到现在用的那个数。
"""

from __future__ import annotations

from typing import NamedTuple

AUTO = "auto"
NAMES = ("DROPOUT", "WEIGHT_DECAY", "GROW_AT", "SAMPLED_SOFTMAX")  # 可以写 auto 的
_SILENT = ("GROW_AT", "SAMPLED_SOFTMAX")  # 开场另有话说，或不必说
FEW = 2.0  # 不满这么多遍（每个 token 不到一个参数时，照参数少的倍数要更多遍）
DROPOUT = 0.1  # 遍数多时的丢弃率
SHORT = 4.0  # 全程的 token 不到参数的这么多倍，就由浅到深
GROW_AT = 0.8  # 走过全程的这么多才练全部的块；见 training/growth.py
DRAWS = 2000  # 抽样的 softmax 至少抽这么多个词；见 training/sampled.py
ENOUGH = 1_000_000  # 一遍有这么多 token 才抽；起点这时才由统计算出（INIT=auto）
HORIZON = 0.45  # 衰减的快慢是全程的几倍
LEAST, MOST = 0.01, 1.0  # 衰减的下限与上限


class Plan(NamedTuple):
    """规则要知道的。"""

    passes: float  # 过几遍数据
    updates: int
    lr: float  # 矩阵的学习率
    density: float  # 每个 token 几个参数
    tokens: int = 0  # 一遍多少 token


class Settled(NamedTuple):
    """定下来的配置，和开场要说的。"""

    values: dict
    remarks: list


def rule(plan: Plan) -> dict:
    """各项的数。"""
    decay = 1 / (plan.lr * HORIZON * plan.updates)
    return {
        "DROPOUT": 0.0 if _cannot_memorize(plan) else DROPOUT,
        "WEIGHT_DECAY": float(f"{min(MOST, max(LEAST, decay)):.2g}"),
        "SAMPLED_SOFTMAX": DRAWS if plan.tokens >= ENOUGH else 0,
        "GROW_AT": GROW_AT if plan.passes < min(FEW, SHORT * plan.density) else 0.0,
    }


def _cannot_memorize(plan: Plan) -> bool:
    return plan.passes * min(1.0, plan.density) < FEW


def settle(values: dict, plan: Plan, before: dict) -> Settled:
    """values：config.values()；before：检查点里用的数，新的训练为空。"""
    found = {name: before.get(name, number) for name, number in rule(plan).items()}
    chosen = {name: found[name] for name in NAMES if values[name] == AUTO}
    told = {name: number for name, number in chosen.items() if name not in _SILENT}
    if not told or before:
        return Settled({**values, **chosen}, [])
    shown = "，".join(f"{name}={number:g}" for name, number in told.items())
    few = "见得不多或模型小，背不下来" if _cannot_memorize(plan) else "见得多又背得下，防着背"
    remark = (
        f"正则化（auto）：{shown}；约 {plan.passes:.1f} 遍，"
        f"每个 token {plan.density:.2g} 个参数，{few}"
    )
    return Settled({**values, **chosen}, [remark])
