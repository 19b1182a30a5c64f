"""整套的配置（PRESET）：一个名字换一整套值，和它们到得了哪里；量的与算的分开说。"""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """一整套配置。"""

    about: str  # 给谁用
    reach: str  # 到得了哪里，量的还是算的
    values: dict


_SHORT = {"ACCUM_STEPS": 1, "DROPOUT": 0.0, "DECAY_SHARE": 0.6}  # 不满一遍数据时最好的

PRESETS = {
    "readme": Preset(
        "README 的配置，config.py 里原样",
        "一次更新与 card 一样多的 token，没有量到头；微批次小，训练 0.8 GB 显存",
        {},
    ),
    "minutes": Preset(
        "笔记本的 CPU，十分钟上下",
        "量的：八万首 300 次更新，6.20 比特/字；AVX2 的一个线程，旁边有人在忙，全程 16 分钟",
        {**_SHORT, "TRAIN_ITER": 300, "EVAL_EVERY": 100, "SAVE_EVERY": 100, "SAMPLE_EVERY": 150},
    ),
    "laptop": Preset(
        "笔记本的 CPU，一小时上下",
        "量的：八万首 1,200 次更新，5.82 比特/字；AVX2 的一个线程，旁边有人在忙，57 分钟",
        {**_SHORT, "TRAIN_ITER": 1200, "EVAL_EVERY": 300, "SAVE_EVERY": 200, "SAMPLE_EVERY": 600},
    ),
    "card": Preset(
        "一张显存 6 GB 起的显卡：README 的训练，一次更新合成一个大的微批次",
        "量的：八万首 16 遍，5.25 比特/字，一张 H200 上五分钟；训练 2.9 GB 显存（不编译 3.8）",
        {
            "BATCH_SIZE": 64,
            "ACCUM_STEPS": 1,
            "TRAIN_ITER": 6250,
            "SAVE_EVERY": 500,
            "EVAL_EVERY": 500,
            "SAMPLE_EVERY": 500,
        },
    ),
    "night": Preset(
        "8 GB 显卡一夜：4,400 万参数，八万首 16 遍",
        "算的：训练 3.0 GB，连上下文与碎片约 4.3 GB 显存；没有练到头，到几比特没有量过",
        {
            "GPT_DIM": 512,
            "GPT_FF": 2048,
            "GPT_BLOCKS": 8,
            "BATCH_SIZE": 16,
            "ACCUM_STEPS": 4,
            "TRAIN_ITER": 25000,
        },
    ),
    "own": Preset(
        "自己的一小本，几百首，从零练；有练好的模型时 --FROM 更好",
        "量的：自带的 251 首，两核 CPU 两分钟上下，验证到 7.15 比特/字",
        {
            "VOCAB_SIZE": 1500,  # 再小，少用的字拆成字节；再大，留出的诗里多是没有练过的词
            "MAX_SEQ_LEN": 448,
            "GPT_DIM": 160,
            "GPT_HEAD": 5,
            "GPT_FF": 480,
            "GPT_BLOCKS": 4,
            "PROMPTS_PER_POEM": 3,
            "VAL_SHARE": 0.06,
            "TRAIN_ITER": 150,
            "BATCH_SIZE": 5,
            "ACCUM_STEPS": 1,
            "DROPOUT": 0.2,
            "GROW_AT": 0.0,  # 诗少，多读几遍是背
            "SAVE_EVERY": 50,
            "EVAL_EVERY": 25,
            "SAMPLE_EVERY": 50,
            "COMPILE": "off",
        },
    ),
}


def lines() -> list[str]:
    """--help 里的几行。"""
    found = []
    for name, preset in PRESETS.items():
        found += [f"  {name:<8} {preset.about}", f"  {'':<8} {preset.reach}"]
    return found
