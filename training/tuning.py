"""FROM 时自动定下的配置：接着一个练过的模型学自己的诗，遍数、步子、批次由诗有多少定。

量出来的（docs/LOG.md“从已有的模型开始”）：诗少时一次更新要小，学习率要比从零训练低得多：再高学不到
更多，只多忘一些。
"""

from __future__ import annotations

from support.defaults import DEFAULTS

FEW = 200_000  # 训练诗一遍不到这么多 token，算少
SMALL_BATCH = 2  # 诗少时的 BATCH_SIZE
SLOWER = 0.15  # 学习率是从零训练的几倍
PASSES, LEAST_PASSES = 3, 2  # 诗少时学几遍；多到 MANY 个 token 时只学几遍
MANY = 2_000_000
FILLED = 0.9  # 微批次大约填满这么多
LEAST_UPDATES = 40  # 诗再少也更新这么多次


def recipe(tokens: int, max_seq_len: int) -> dict:
    """训练诗一遍有 tokens 个 token 时的配置：config.py 的名字 → 值。"""
    few = tokens < FEW
    rows = SMALL_BATCH if few else DEFAULTS["BATCH_SIZE"]
    per_pass = max(1.0, tokens / (FILLED * rows * max_seq_len))
    count = max(LEAST_UPDATES, round(passes(tokens) * per_pass))
    every = max(1, count // 8)
    return {
        "TRAIN_ITER": count,
        "BATCH_SIZE": rows,
        "ACCUM_STEPS": 1,
        "LEARNING_RATE": DEFAULTS["LEARNING_RATE"] * SLOWER,
        "MUON_LR": DEFAULTS["MUON_LR"] * SLOWER,
        "CHAR_LR": DEFAULTS["CHAR_LR"] * SLOWER,
        **{
            name: min(every, DEFAULTS[name])
            for name in ("EVAL_EVERY", "SAVE_EVERY", "SAMPLE_EVERY")
        },
    }


def passes(tokens: int) -> float:
    """学几遍：诗越多越少，从 PASSES 降到 LEAST_PASSES。"""
    if tokens <= FEW:
        return PASSES
    share = min(1.0, (tokens / FEW - 1) / (MANY / FEW - 1))
    return PASSES + share * (LEAST_PASSES - PASSES)


def adjust(values: dict, chosen: dict) -> dict:
    """values 里仍是原来默认值的，换成 chosen 的；人改过的不动。返回换了的。"""
    return {name: value for name, value in chosen.items() if values[name] == DEFAULTS[name]}
