"""由浅到深：先只练前面几块，走过全程的 GROW_AT 时其余的块才加入。

输出投影从零开始（见 gpt.py），没有练过的块是恒等映射：跳过它，结果一点不变，时间省一大半；
模型从头到尾都是完整的那个。做法见 Bu 2025（arXiv 2511.04981）。
块练没练过看权重，不看位置：续训时改了长短，练过的块也不会再停下。
"""

from __future__ import annotations

import math

from gpt import GPT
from training.run import Run

FIRST = 2  # 起初练几块；一块学得慢得多，注意力要两块才能照前文接下去


def begin(run: Run) -> None:
    """开训或续训之前：没有练过的块先停着。"""
    model = run.model
    at, rest = run.settings.grow_at, len(model.blocks) - FIRST
    if at and rest > 0 and _trained(model) <= FIRST:
        _use(model, FIRST)
        run.remarks.append(
            f"由浅到深（GROW_AT={at:g}）：先只练前 {FIRST} 块，快得多；"
            f"走过 {at:.0%} 时其余 {rest} 块加入"
        )


def reach(run: Run, share: float) -> None:
    """走过了全程的 share：到时候了就让停着的块加入。"""
    model = run.model
    if model.execution.blocks is None or share < run.settings.grow_at:
        return
    rest = len(model.blocks) - model.execution.blocks
    _use(model, None)
    if share:
        run.voice.say(f"走过了 {share:.0%}：其余 {rest} 块加入训练，从这里起一次更新慢些。")


def left(run: Run) -> float:
    """还剩几次更新，照现在一次的工作量数：加入以后的一次更重。"""
    s, work = run.settings, run.gradients.flops_per_token
    rest = max(0, s.updates - run.position.update)
    if run.model.execution.blocks is None:
        return rest
    heavy = min(rest, math.floor((1 - s.grow_at) * s.updates))
    return rest + heavy * (work(whole=True) / work() - 1)


def _trained(model: GPT) -> int:
    """练过的块到第几块为止。"""
    used = [bool(b.attn.out.weight.any() or b.mlp.down.weight.any()) for b in model.blocks]
    return max((number for number, each in enumerate(used, 1) if each), default=0)


def _use(model: GPT, count: int | None) -> None:
    """只算、只练前 count 块；None = 全部。"""
    model.configure(blocks=count)
    for number, block in enumerate(model.blocks):
        block.requires_grad_(count is None or number < count)
