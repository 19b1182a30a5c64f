"""建训练集（多种提示词 → 诗）：题目、作者、首行、意象、行数、字数、藏头……按比例混合 → dataset.bin。

比例见 PROMPT_SHARES，每首诗配 PROMPTS_PER_POEM 种；验证诗只用题目，和 train_dataset_one.py 可比。
"""

from __future__ import annotations

from support import console, interpreter

if __name__ == "__main__":
    interpreter.begin()

import config
import train_dataset_one
from poems import wording


def print_kinds(counts: dict, examples: dict) -> None:
    """打印各种提示词的条数、占比与一个例子。"""
    total = max(sum(counts.values()), 1)
    print(f"\n{'种类':<22}{'条数':>8}{'占比':>7}  例子")
    for kind in wording.KINDS:
        if not counts[kind]:
            continue
        name = console.pad(f"{kind}（{wording.KIND_NAMES[kind]}）", 24)
        example = examples[kind].replace("\n", " ")
        shown = example if len(example) <= 40 else example[:39] + "…"
        print(f"{name}{counts[kind]:>10,}{counts[kind] / total:>8.1%}  {shown}")


def main() -> None:
    config.load(__doc__)
    shares = wording.parse_shares(config.PROMPT_SHARES)
    report = train_dataset_one.build(shares, config.PROMPTS_PER_POEM)
    print_kinds(report["kinds"], report["examples"])


if __name__ == "__main__":
    console.run(main)
