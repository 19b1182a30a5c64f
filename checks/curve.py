"""曲线正不正常：自己的 train_log.csv 与 docs/curves/ 里的参照，在同样的 token 数上比。"""

from __future__ import annotations

import math
from pathlib import Path

from checks.finding import BAD, OK, WARN, Finding, Settings, render
from support import artefacts, files
from support.console import UserError
from training import reference, runlog
from training.reference import Reference

_MENDS = (
    "先看 data_clean.py 留下几首、分词器的 VOCAB_SIZE 对不对（python diagnose.py）",
    "学习率改过就改回来；几百首的小诗集请用 --PRESET=own",
    "验证先降后升是过拟合：加大 DROPOUT，或少练几遍",
)


def read_run(work_dir: str) -> tuple[list, dict]:
    """WORK_DIR 的训练：train_log.csv 的行与 run_info.json；没有训练过时抛 UserError。"""
    path = Path(work_dir) / artefacts.TRAIN_LOG
    try:
        rows = runlog.read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} 读不了：{error}") from error
    if not rows:
        raise UserError(f"{path} 还没有一行，练起来再比：python train_gpt.py")
    try:
        info = files.read_json(Path(work_dir) / artefacts.RUN_INFO)
    except (OSError, ValueError, UserError):
        info = {}
    return rows, info if isinstance(info, dict) else {}


def pick(info: dict, name: str) -> Reference:
    """name 不空就用那一个，否则挑最像的；没有时抛 UserError。"""
    known = reference.load_all()
    if name:
        for found in known:
            if found.name == name:
                return found
        raise UserError(f"没有名为 {name} 的参照；有的是：{'、'.join(r.name for r in known)}")
    found = reference.for_run(info)
    if found is None:
        rows = "\n".join(f"  {each.name}：{about(each)}" for each in known)
        raise UserError(
            "没有与这次训练差不多的参照（参数与一遍的 token 数都要相近）。现有的：\n"
            f"{rows}\n硬要比：python diagnose.py curve 名字"
        )
    return found


def about(found: Reference) -> str:
    """一个参照是什么。"""
    facts = found.facts
    return (
        f"{facts.get('corpus', '?')}，{facts['parameters'] / 1e6:.1f} M 参数，"
        f"一遍 {facts['pass_tokens'] / 1e6:.2f} M token，练了 {facts['plan_tokens'] / 1e6:.1f} M；"
        f"{facts.get('machine', '?')}，{facts.get('commit', '?')}"
    )


def judge(rows: list, info: dict, found: Reference) -> Finding:
    """一句结论。"""
    gap = reference.compare(rows, found)
    if gap is None:
        return Finding(WARN, "曲线", f"与参照 {found.name} 没有共同的一段，再练一会儿再比")
    text = gap.text(found.name)
    plan = info.get("plan_tokens")
    if plan and abs(math.log(plan / max(1.0, found.facts["plan_tokens"]))) > reference.NEAR:
        text += "（计划的长短不同，学习率开始降以后不好比）"
    if gap.normal:
        return Finding(OK, "曲线", f"{text}：正常")
    level = BAD if gap.bits > 5 * reference.CLOSE else WARN
    return Finding(level, "曲线", f"{text}：偏高", "\n".join(_MENDS))


def curve_report(settings: Settings, name: str = "") -> int:
    """打印自己的验证与参照并排的一张小表和结论；不正常时返回 1。"""
    rows, info = read_run(settings.WORK_DIR)
    found = pick(info, name)
    print(f"参照：{found.name}（{about(found)}）")
    _, mine = reference.curves(rows)
    for tokens, value in mine[:: max(1, len(mine) // 12)]:
        theirs = reference.at(found.val, tokens)
        shown = "—" if theirs is None else f"{theirs:.3f}  差 {value - theirs:+.3f}"
        print(f"  {tokens / 1e6:8.2f} M token  自己 {value:.3f}  参照 {shown}")
    verdict = judge(rows, info, found)
    print(render(verdict))
    return 0 if verdict.level == OK else 1
