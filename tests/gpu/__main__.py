"""显卡验收：python -m tests.gpu [--quick] [--only=5,11] [--fake]

十八项，各在自己的进程里，至多十分钟；进度写到标准错误，最后在标准输出给出可以贴进 issue 的
Markdown 表和一行 JSON，也存成 gpu_report.md。有一项不过就以 1 退出。说明见 docs/GPU.md。
--fake：没有显卡时在假的显卡上走一遍（要 g++），看这个脚本本身好不好；结论不说明任何显卡。
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.gpu.checks import CHECKS, RESULT  # noqa: E402

BUDGET = 600  # 全部至多这么多秒，再往后的不做
MARKS = {"PASS": "✅", "WARN": "⚠️", "FAIL": "❌", "SKIP": "—"}
REPORT = "gpu_report.md"


def main(argv: list) -> int:
    known = ("--quick", "--fake")
    only = [word for word in argv if word.startswith("--only=")]
    if [word for word in argv if word not in known and word not in only]:
        print(__doc__)
        return 2
    fake = "--fake" in argv
    problem = cannot_run(fake)
    if problem:
        print(problem, file=sys.stderr)
        return 1
    numbers = {int(each) for word in only for each in word[len("--only=") :].split(",")}
    chosen = [
        check
        for check in CHECKS
        if (not numbers or check.number in numbers) and ("--quick" not in argv or check.quick)
    ]
    with tempfile.TemporaryDirectory() as folder:
        results = run_all(chosen, folder, fake)
    text = report(results, fake)
    Path(REPORT).write_text(text, encoding="utf-8")
    print(text)
    return 1 if any(result["state"] == "FAIL" for result in results) else 0


def cannot_run(fake: bool) -> str | None:
    """做不了的原因。"""
    if fake:
        from tests import fake_cuda

        return fake_cuda.problem()
    import torch

    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} 看不到 CUDA 显卡；查看原因：python diagnose.py。\n"
            "没有显卡、只想看这个脚本好不好：python -m tests.gpu --fake"
        )
    return None


def run_all(chosen: list, folder: str, fake: bool) -> list:
    """依次做；第 2 项不过时（一个核也跑不了），后面的都不做。"""
    results, began = [], time.monotonic()
    for check in chosen:
        left = BUDGET - (time.monotonic() - began)
        stopped = any(r["number"] == 2 and r["state"] == "FAIL" for r in results)
        print(f"[{check.number}/{len(CHECKS)}] {check.title} …", file=sys.stderr, flush=True)
        start = time.monotonic()
        if stopped or (left <= 0 and not fake):
            reason = "一个核也跑不了" if stopped else "十分钟到了"
            outcome = {"state": "SKIP", "measured": reason}
        else:
            limit = 600 if fake else min(check.seconds, max(30, left))
            outcome = run_one(check.number, folder, fake, limit)
        seconds = round(time.monotonic() - start, 1)
        results.append(
            {**outcome, "number": check.number, "title": check.title, "seconds": seconds}
        )
        print(f"    {outcome['state']} {outcome['measured']}", file=sys.stderr, flush=True)
    return results


def run_one(number: int, folder: str, fake: bool, limit: float) -> dict:
    """在子进程里做一项；超时的连同它的孩子一起结束。"""
    command = [sys.executable, "-m", "tests.gpu.one", str(number), folder]
    environment = dict(os.environ)
    if fake:
        from tests import fake_cuda

        command.append("--fake")
        environment.update(fake_cuda.environment())
    own_group = {"start_new_session": True} if hasattr(os, "killpg") else {}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **own_group,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        end(process)
        output, _ = process.communicate()
        return _failed(f"超过 {limit:.0f} 秒", output)
    except BaseException:  # Ctrl-C、SIGTERM：它在自己的会话里，不会跟着收到
        end(process)
        raise
    lines = output.decode("utf-8", "replace").splitlines()
    found = [line[len(RESULT) :] for line in lines if line.startswith(RESULT)]
    if not found:
        return _failed(f"进程死了（退出码 {process.returncode}）", output)
    return json.loads(found[-1])


def end(process: subprocess.Popen) -> None:
    """结束它和它起的进程。"""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _failed(reason: str, output: bytes) -> dict:
    text = output.decode("utf-8", "replace")[-4000:]
    return {"state": "FAIL", "measured": reason, "bound": "", "numbers": {}, "details": text}


# ── 报告 ──────────────────────────────────────────────────────────────


def report(results: list, fake: bool) -> str:
    """可以贴进 issue 的 Markdown。"""
    facts = next((r.get("numbers", {}) for r in results if r["number"] == 1), {})
    card = "假的显卡（结论不说明任何显卡）" if fake else facts.get("card", "显卡")
    title = f"### tests.gpu {revision()} · {card} · torch {facts.get('torch', '?')}"
    title += f" · {facts.get('driver', '?')} · {facts.get('system', '?')}"
    lines = [f"{title} · {time.strftime('%Y-%m-%d')}", ""]
    lines += ["| # | 检查 | 结果 | 量到 | 界限 | 秒 |", "|---|---|---|---|---|---|"]
    for r in results:
        cells = r["number"], r["title"], MARKS[r["state"]], r["measured"], r.get("bound", "")
        row = " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells)
        lines.append(f"| {row} | {r['seconds']} |")
    details = [
        f"#### {r['number']} {r['title']}\n```\n{r['details']}\n```"
        for r in results
        if r.get("details")
    ]
    if details:
        lines += ["", "<details><summary>细节</summary>", "", *details, "", "</details>"]
    kept = [{key: r.get(key) for key in ("number", "state", "seconds", "numbers")} for r in results]
    whole = {"revision": revision(), "fake": fake, "facts": facts, "checks": kept}
    return "\n".join([*lines, "", json.dumps(whole, ensure_ascii=False)]) + "\n"


def revision() -> str:
    """git 的短编号；不在仓库里时是空的。"""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.decode("ascii", "replace").strip()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))
