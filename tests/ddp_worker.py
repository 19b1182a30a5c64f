"""test_distributed.py 启动的训练进程：依次做一份清单里的几次训练，把各自的结局写成 JSON。

省去测峰值、写诗和画图；可以在指定的更新上给自己发信号（stop_at、signal）、挂住（hang_at）、
出错（fail_at）、说内存不够（short_at）、改动一个权重（flip_at）或被杀死（kill_at），
也可以每次更新前歇一会儿（pause 秒）。
每个结局里有 threads：训练收场时还活着的线程的名字（Linux）。
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import config
from support import hardware
from support.console import UserError
from training import distributed, loop, runlog, samples


def train(case: dict, rank: int = 0) -> dict:
    """做一次训练，返回 {"result"} 或 {"refused": 消息} 或 {"told": True} 或 {"failed": 类名}。"""
    kept = hardware.measure_peak, runlog.draw, samples.poem
    hardware.measure_peak = lambda *_: 1e9
    runlog.draw = lambda *_: False
    samples.poem = lambda *_, **__: "诗"
    if "port" in case:
        os.environ["MASTER_PORT"] = str(case["port"])
    values = {**config.values(), **case["values"], **case.get("rank_values", {}).get(str(rank), {})}
    values["WORK_DIR"] = os.environ.get("DDP_WORK_DIR", values["WORK_DIR"])
    real_update = loop.one_update

    def one_update(run, *parts):
        time.sleep(case.get("pause", 0.0))
        if rank == case.get("rank", 0):
            _trouble(case, run.position.update, run)
        return real_update(run, *parts)

    loop.one_update = one_update
    try:
        return {"result": loop.train(values), "threads": threads()}
    except UserError as error:
        return {"refused": str(error), "kind": type(error).__name__, "threads": threads()}
    except distributed.Told:
        return {"told": True, "threads": threads()}
    except ZeroDivisionError as error:
        return {"failed": type(error).__name__, "threads": threads()}
    finally:
        loop.one_update = real_update
        hardware.measure_peak, runlog.draw, samples.poem = kept


def threads() -> list:
    """本进程收场时的线程的名字；不是 Linux 时为空。

    等到了的线程在 /proc 里还会留几毫秒，所以看到 gloo 的就再等等；没有人等的一直在。
    """
    deadline = time.monotonic() + 10
    names = _thread_names()
    while any("gloo" in name for name in names) and time.monotonic() < deadline:
        time.sleep(0.01)
        names = _thread_names()
    return names


def _thread_names() -> list:
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # 刚列出来就没有了
            names.append(path.read_text(encoding="utf-8").strip())
    return names


def _trouble(case, number, run):
    if number == case.get("stop_at"):
        signal.raise_signal(getattr(signal, case.get("signal", "SIGTERM")))
    if number == case.get("fail_at"):
        raise ZeroDivisionError
    if number == case.get("flip_at"):
        with torch.no_grad():
            run.model.norm.weight[0] += 1e-6
    if number == case.get("short_at"):
        run.gradients.backward = _short_of_memory(run.gradients)
    if number == case.get("hang_at"):
        time.sleep(case["seconds"])
    if number == case.get("kill_at") and not Path(case["marker"]).exists():
        Path(case["marker"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _short_of_memory(gradients):
    """头一次反向说内存不够，之后照常。"""
    real = gradients.backward

    def backward(*_, **__):
        gradients.backward = real
        raise MemoryError

    return backward


def main() -> int:
    rank = int(os.environ.get("RANK", "0"))
    folder = Path(sys.argv[1])
    for case in json.loads((folder / "cases.json").read_text(encoding="utf-8")):
        outcome = train(case, rank)
        path = folder / f"{case['name']}.{rank}.json"
        path.write_text(json.dumps(outcome, ensure_ascii=False), encoding="utf-8")
        if case.get("must_finish") and "result" not in outcome:
            print(outcome.get("refused", ""), file=sys.stderr, flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
