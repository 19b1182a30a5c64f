"""参照的曲线：docs/curves/ 里量过的训练，自己的 train_log.csv 在同样的 token 数上与它比。

一个参照是一个小 CSV：开头几行 “# 名字: 值” 说它是什么，下面是 tokens、loss（每 token）、
val_bpc（每字）。
挑参照看模型的参数、一遍与一次更新的 token 数，都差不多才比；比验证的每字比特，还没有验证就比
训练损失。
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from support import artefacts, files
from support.console import UserError
from training import runlog

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "curves"
COLUMNS = ("tokens", "loss", "val_bpc")
NEAR = math.log(1.35)  # 参数、一遍的 token 数差到这个倍数以内，才算同一种训练
CLOSE = 0.1  # 差在这么多比特以内是正常
MOST = 120  # 训练损失至多留这么多个点
_NUMBERS = ("parameters", "pass_tokens", "plan_tokens")
_UPDATE = "update_tokens"  # 一次更新多少 token：差得远时，同样的 token 数学到的不同
_SMOOTH = 0.05  # 训练损失：前后这个比例的 token 之内取平均


class Reference(NamedTuple):
    """一次量过的训练。"""

    name: str
    facts: dict  # 开头写的：preset、corpus、commit、machine 与 _NUMBERS、_UPDATE（0 = 不知道）
    loss: list  # [(token 数, 每 token 的损失), …]
    val: list  # [(token 数, 比特/字), …]


class Gap(NamedTuple):
    """在同样的 token 数上与参照之差。"""

    tokens: int
    mine: float
    theirs: float
    unit: str

    @property
    def bits(self) -> float:
        """正的是比参照高（差）。"""
        return self.mine - self.theirs

    @property
    def normal(self) -> bool:
        return self.bits <= CLOSE

    def text(self, name: str) -> str:
        side = "高" if self.bits > 0 else "低"
        return (
            f"读过 {self.tokens / 1e6:.2f} M token 时是 {self.mine:.3f} {self.unit}，"
            f"比参照 {name} 的 {self.theirs:.3f} {side} {abs(self.bits):.3f}"
        )


# ── 读写 ──────────────────────────────────────────────────────────────


def load(path: Path) -> Reference:
    """读一个参照；写坏了抛 ValueError。"""
    facts, table = {}, []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            name, _, value = line[1:].partition(":")
            facts[name.strip()] = value.strip()
        else:
            table.append(line)
    for name in (*_NUMBERS, _UPDATE):
        facts[name] = float(facts.get(name) or 0)
    return Reference(path.stem, facts, *curves(list(csv.DictReader(table))))


def curves(rows: list) -> tuple[list, list]:
    """train_log.csv（或参照）的行 → 训练损失、验证两条曲线，按 token 数。"""
    found = [], []
    for curve, column in zip(found, ("loss", "val_bpc")):
        for row in rows:
            number = float(row.get(column) or math.nan)
            if math.isfinite(number):
                curve.append((int(row["tokens"]), number))
    return found


def load_all(folder: Path | None = None) -> list:
    """全部参照，按名字；读不了的略过。"""
    found = []
    for path in sorted((folder or FOLDER).glob("*.csv"), key=lambda path: path.stem):
        try:
            found.append(load(path))
        except (OSError, ValueError, KeyError):
            continue
    return found


def save(path: Path, rows: list, facts: dict) -> None:
    """train_log.csv 的行收成一个参照；验证过的点都留，训练损失平滑以后留一些。"""
    if not rows:
        raise UserError("train_log.csv 里还没有一次更新，收不成参照。")
    loss, val = curves(rows)
    scored = dict(val)
    kept = {loss[round(i * (len(loss) - 1) / (MOST - 1))][0] for i in range(MOST)} if loss else ()
    with files.atomic_write(path) as file:
        for name, value in facts.items():
            file.write(f"# {name}: {value}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for tokens in sorted({*kept, *scored}):
            score = scored.get(tokens)
            smooth = smooth_at(loss, tokens)
            shown = ("" if smooth is None else f"{smooth:.4f}", "" if score is None else score)
            writer.writerow((tokens, *shown))


def collect(folder: Path, out: Path) -> dict:
    """WORK_DIR 的训练收成参照 out，返回开头写的几项。"""
    try:
        info = files.read_json(folder / artefacts.RUN_INFO)
        facts = {name: info[name] for name in ("preset", "documents", *_NUMBERS)}
        facts[_UPDATE] = round(_update_tokens(info))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder} 里没有能收成参照的训练：{error!r}") from error
    machine = (
        f"{os.cpu_count()} 核，{info['device']}，{info['dtype']}，torch {metadata.version('torch')}"
    )
    facts = {"corpus": "", **facts, "commit": _commit(), "machine": machine}
    save(out, runlog.read(folder / artefacts.TRAIN_LOG), facts)
    return facts


def _commit() -> str:
    """这份代码的提交；不在 git 里为空。"""
    command = ["git", "rev-parse", "--short", "HEAD"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, cwd=str(FOLDER.parent))
        return done.stdout.strip()
    return ""


# ── 比 ────────────────────────────────────────────────────────────────


def choose(
    references: list, parameters: float, pass_tokens: float, plan_tokens: float = 0
) -> Reference | None:
    """最像的一个，一样像的取计划练得一样长的：学习率何时开始降不同，末尾不好比。

    参数或一遍的 token 数差得远时为 None；pass_tokens、plan_tokens 不知道时是 0，不看。
    """

    def far(reference: Reference) -> float:
        pairs = [(parameters, reference.facts["parameters"])]
        if pass_tokens:
            pairs.append((pass_tokens, reference.facts["pass_tokens"]))
        if not all(a > 0 and b > 0 for a, b in pairs):
            return math.inf
        return max(abs(math.log(a / b)) for a, b in pairs)

    def apart(reference: Reference) -> float:
        theirs = reference.facts["plan_tokens"]
        return abs(math.log(plan_tokens / theirs)) if plan_tokens > 0 and theirs > 0 else 0.0

    best = min(references, key=lambda each: (far(each), apart(each)), default=None)
    return best if best is not None and far(best) <= NEAR else None


def compare(rows: list, reference: Reference) -> Gap | None:
    """自己最近的验证（没有就用训练损失）与参照；参照没有练到那里时用两边都有的最后一处。"""
    loss, val = curves(rows)
    gap = _last_common(val, reference.val)
    if gap is not None:
        return Gap(*gap, "比特/字")
    smooth = [(tokens, smooth_at(loss, tokens)) for tokens, _ in loss[-1:]]
    gap = _last_common(smooth, [(t, x) for t, x in reference.loss])
    if gap is None:
        return None
    tokens, mine, theirs = gap
    return Gap(tokens, mine / math.log(2), theirs / math.log(2), "比特/token（训练损失）")


def _last_common(mine: list, theirs: list) -> tuple | None:
    for tokens, value in reversed(mine):
        other = at(theirs, tokens)
        if other is not None:
            return tokens, value, other
    return None


def at(curve: list, tokens: float) -> float | None:
    """曲线在这个 token 数上的值：按 token 数的对数插值；在两头之外为 None。"""
    for (before, low), (after, high) in zip(curve, curve[1:]):
        if before <= tokens <= after:
            if before == after:
                return high
            share = math.log(tokens / before) / math.log(after / before)
            return low + share * (high - low)
    return None


def smooth_at(curve: list, tokens: int) -> float | None:
    """训练损失在这里前后一点的平均。"""
    near = [value for at, value in curve if abs(at - tokens) <= _SMOOTH * tokens]
    return sum(near) / len(near) if near else None


def for_run(info: dict[str, Any], folder: Path | None = None) -> Reference | None:
    """run_info.json 说的这次训练该与哪一个比。"""
    known = [info[n] if isinstance(info.get(n), (int, float)) else 0 for n in _NUMBERS]
    if not known[0]:
        return None
    update = _update_tokens(info)
    return choose([r for r in load_all(folder) if _alike(r, update)], *known)


def _update_tokens(info: dict) -> float:
    """run_info.json 里一次更新大约多少 token；不知道时为 0。"""
    plan, updates = info.get("plan_tokens"), info.get("updates")
    known = all(isinstance(each, (int, float)) and each > 0 for each in (plan, updates))
    return plan / updates if known else 0.0


def _alike(found: Reference, update: float) -> bool:
    """一次更新的大小差不多，或有一边不知道。"""
    theirs = found.facts[_UPDATE]
    return not (theirs and update) or abs(math.log(theirs / update)) <= NEAR
