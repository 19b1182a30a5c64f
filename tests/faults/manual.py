"""照接口自己的说明书（/openapi.json）乱问：schemathesis 出题，看回答合不合；没有装它就不做。"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from tests import server, tiny_model
from tests.faults.tally import FINE, TOLD, WRONG, Tally
from writing.engine import Engine
from writing.poet import Poet

INSTALLED = importlib.util.find_spec("schemathesis") is not None
_PART = "接口（照说明书）"
# 几项之间的规矩（体裁与行数）说明书写不下，所以合乎它的也可能是 400
_LEFT_OUT = "positive_data_acceptance,ignored_auth"


def ask(folder: Path, tally: Tally, seconds: float, seed: int) -> None:
    """边界上的值全做一遍，剩下的时间随机地问。"""
    tiny_model.save(folder / "best_model.bin", whole_chars=True)
    engine = Engine(Poet.load("", str(folder), "cpu", "fp32"), max_rows=8)
    service = server.service(engine, folder, limit=32)
    service.defaults["max_new_tokens"] = 8
    report = folder / "report.ndjson"
    with server.running(service) as url:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
        command += ["--phases=coverage,fuzzing", f"--max-time={max(1, int(seconds))}"]
        command += [f"--seed={seed}", "--checks=all", f"--exclude-checks={_LEFT_OUT}"]
        command += ["--continue-on-failure", "--no-shrink", "--generation-database=none"]
        command += ["--report=ndjson", f"--report-ndjson-path={report}"]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    engine.close()
    if not report.is_file():
        tally.add(_PART, WRONG, done.stdout[-300:] + done.stderr[-300:])
        return
    for line in report.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if "ScenarioFinished" in event:
            _count(event["ScenarioFinished"]["recorder"], tally)


def _count(recorder: dict, tally: Tally) -> None:
    """一个地址的各次请求。"""
    for case, exchange in recorder["interactions"].items():
        answer = exchange.get("response") or {}
        failed = [
            check["name"]
            for check in recorder["checks"].get(case, [])
            if check["status"] != "success"
        ]
        verdict = FINE if answer.get("status_code") == 200 else TOLD
        if failed or not answer:
            verdict = WRONG
        asked = json.dumps(recorder["cases"].get(case, {}).get("value", {}), ensure_ascii=False)
        tally.add(_PART, verdict, f"{recorder['label']} {'、'.join(failed)}：{asked}"[:400])
