"""一项检查的结果、怎样打印，以及怎样查而自己不崩溃。"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Callable, Iterator, NamedTuple

from support.console import UserError

OK, WARN, BAD = "ok", "warn", "bad"
_MARKS = {OK: "✓", WARN: "!", BAD: "✗"}
_ASCII_MARKS = {OK: "[ok]", WARN: "[! ]", BAD: "[x ]"}


class Finding(NamedTuple):
    """一项检查的结果；BAD 表示不改就不能往下走。"""

    level: str
    name: str
    text: str
    mend: str = ""


Settings = SimpleNamespace  # config.values() 的全部，按名字取：settings.WORK_DIR
Findings = Iterator[Finding]
Check = Callable[[Settings], Findings]  # 说明的第一行是“题目：查什么”


def can_print(text: str) -> bool:
    """控制台写不写得出这些字。"""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def marks() -> dict[str, str]:
    """这个控制台上各等级的记号。"""
    return _MARKS if can_print("✓✗") else _ASCII_MARKS


def render(finding: Finding) -> str:
    """一项结果 → 一两行文字。"""
    line = f"{marks()[finding.level]} {finding.name}：{finding.text}"
    if finding.mend:
        line += "".join(f"\n    改法：{part}" for part in finding.mend.split("\n"))
    return line


def run_check(check: Check, settings: Settings) -> list[Finding]:
    """做一项检查；它自己出的错也变成一项结果。"""
    found = []
    try:
        found.extend(check(settings))
    except UserError as error:
        first, *rest = str(error).split("\n")
        found.append(Finding(BAD, _title(check), first, "\n".join(rest)))
    except ImportError as error:
        found.append(Finding(WARN, _title(check), f"没法查：{error}", "先装好必需的包"))
    except Exception as error:  # 诊断工具自己不能崩
        text = f"这一项没能查成（{type(error).__name__}：{str(error)[:200]}）"
        found.append(Finding(WARN, _title(check), text))
    return found


def _title(check: Check) -> str:
    return (check.__doc__ or check.__name__).split("：")[0].strip("。\n ")
