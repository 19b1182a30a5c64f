"""量化：把训练好的模型存成 int8（model_int8.bin），约为 fp32 的四分之一大小。

python quantize.py [--CHECKPOINT=…] [--OUT=…]，然后 python infere.py --CHECKPOINT=model_int8.bin。
"""

from __future__ import annotations

from support import console, interpreter

if __name__ == "__main__":
    interpreter.begin()

import json
from pathlib import Path

import checkpoint
import config
from kernels import int8
from support import files, lock
from support.artefacts import MODEL_INT8
from support.console import UserError


def quantized_state(state: checkpoint.State) -> checkpoint.Model:
    """检查点 → 只用于推理的 int8 检查点。"""
    if state.get("quantized"):
        raise UserError("这个模型已经量化过了。请用 --CHECKPOINT 指向原来的 best_model.bin")
    return {
        **checkpoint.model_part(state),
        "quantized": int8.MARK,
        "weights": int8.quantize_weights(state["weights"]),
        "tokenizer": _compact(state["tokenizer"]),
    }


def _compact(text: str) -> str:
    """同样的 JSON，不要缩进。"""
    return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))


def quantize_file(source: Path, target: Path) -> tuple:
    """写 target，返回 (源权重按 fp32 的字节数, target 的字节数)；原有的 target 改名留着。"""
    state = checkpoint.load(source)
    checkpoint.rebuild(state)  # 对不上的在写出任何东西之前就拒绝
    aside = files.unused(target) if target.exists() else None
    checkpoint.save(target, quantized_state(state), aside)
    if aside is not None:
        print(f"原有的 {target.name} 改名为 {aside.name}")
    fp32 = sum(value.numel() * 4 for value in state["weights"].values())
    return fp32 + len(state["tokenizer"].encode("utf-8")), target.stat().st_size


def main() -> None:
    """量化 CHECKPOINT。"""
    config.load(__doc__)
    source = checkpoint.find(config.WORK_DIR, config.CHECKPOINT)
    target = Path(config.OUT) if config.OUT else files.work_path(config.WORK_DIR, MODEL_INT8)
    if target.is_dir():
        target = target / MODEL_INT8
    if target.resolve() == Path(source).resolve():
        raise UserError(f"输出 {target} 就是原来的模型，不能覆盖。请换一个 --OUT")
    with lock.writing(target.parent):
        before, after = quantize_file(source, target)
    print(
        f"{source} → {target}：{before / 1e6:.1f} MB → {after / 1e6:.1f} MB（{after / before:.1%}）"
    )
    problem = int8.fast_problem()
    if problem:
        print(f"注意：{problem}，载入时会还原成 fp32，速度与 fp32 相同。")
    print(f"对话：python infere.py --CHECKPOINT={target}")
    print(f"与原模型比较：python evaluate.py --CHECKPOINT={source},{target}")


if __name__ == "__main__":
    console.run(main)
