"""README 的形状在假显卡上的一张表：核、字节、峰值与预测、估计的毫秒。python -m tests.fake_cuda

没有融合的核、没有录图的是从前的执行方式，其余是现在的。毫秒由字节与运算算出，没有量过。
CPU 上要算十分钟上下。
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from support import console  # noqa: E402
from tests import fake_cuda  # noqa: E402

README = {"vocab_size": 20000, "max_seq_len": 512, "dim": 256, "n_head": 8, "ff": 1024}
SHAPE = {**README, "n_block": 6}
BATCH = {"rows": 21, "length": 190, "dtype": "bf16", "config": SHAPE}  # 一个常见的微批次
UPDATES = {
    "不编译，没有融合的核": {"plain": True},
    "不编译，融合的核": {},
    "同上，梯度检查点": {"grad_checkpoint": True},
}
STEPS = {
    "一首，不录图": {"rows": 1, "ragged": False, "static": False},
    "一首，录成图": {"rows": 1, "ragged": False, "static": True},
    "八首长短不一，不录图": {"rows": 8, "ragged": True, "static": False},
    "八首长短不一，录成图": {"rows": 8, "ragged": True, "static": True},
}


def main() -> None:
    problem = fake_cuda.problem()
    if problem:
        raise console.UserError(problem)
    jobs = {name: ["micro_batch", {**BATCH, **more}] for name, more in UPDATES.items()}
    jobs.update({name: ["decoding", {**step, "config": SHAPE}] for name, step in STEPS.items()})
    with tempfile.TemporaryDirectory() as folder:
        found = fake_cuda.run("tests.fake_cuda.bodies:everything", folder=folder, jobs=jobs)
    results = {name: each["result"] for name, each in found.items()}
    failed = [f"{name}：{r['error']}" for name, r in results.items() if "error" in r]
    print("\n".join(failed) or table(results))
    sys.exit(bool(failed))


def table(results: dict) -> str:
    """Markdown：一个微批次的前向与反向；写一个 token。"""
    lines = [
        "| 一个微批次 | 核 | 优化器的核 | GB | 估计毫秒 | 峰值 / 预测 |",
        "|---|---|---|---|---|---|",
    ]
    for name in UPDATES:
        r = results[name]
        forecast = "—" if "plain" in UPDATES[name] else f"{r['forecast'] / 2**20:.0f}"
        sizes = f"{r['peak'] / 2**20:.0f} / {forecast} MB"
        cells = (
            name,
            r["kernels"],
            r["step_kernels"],
            f"{r['bytes'] / 1e9:.1f}",
            f"{1e3 * r['seconds']:.1f}",
            sizes,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| 写一个 token | 核 | 图 | 搬上 | 搬回 |", "|---|---|---|---|---|"]
    for name in STEPS:
        r = results[name]
        cells = (name, r["kernels"], r["graphs"], r["to_card"], r["to_host"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    console.run(main)
