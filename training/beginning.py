"""一次训练从哪里开始：接着检查点，别的模型的权重（FROM），还是从零。"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import checkpoint
from gpt import GPTConfig
from support import artefacts
from support.console import UserError
from tokenizer import fingerprint
from training.corpus import Corpus, remake
from training.settings import Settings
from writing import origin

SHAPE = {  # 由起点决定的配置 → GPTConfig 里的名字
    "MAX_SEQ_LEN": "max_seq_len",
    "GPT_DIM": "dim",
    "GPT_HEAD": "n_head",
    "GPT_FF": "ff",
    "GPT_BLOCKS": "n_block",
    "ROPE_THETA": "rope_theta",
}


class Beginning(NamedTuple):
    """定下来的起点。"""

    values: dict  # config.values()，FROM 与形状已经照起点改好
    remarks: list  # 开场要说的
    model: checkpoint.Model | None = None  # FROM 的模型；续训与从零时没有

    def refuse_other_tokenizer(self, corpus: Corpus) -> None:
        """数据集的分词器必须就是 FROM 的模型的。"""
        if self.model is None or fingerprint(self.model["tokenizer"]) == (
            corpus.tokenizer.fingerprint
        ):
            return
        raise UserError(
            f"dataset.bin 用的分词器与 FROM={self.values['FROM']} 的模型不同，"
            "同一个编号不是同一个字（什么都没有改动）。\n" + remake(Settings.pick(self.values))
        )


def lasting(saved: dict) -> dict:
    """续训时不看现在的配置、照检查点的几项：FROM，由 FROM 来的还有形状。"""
    config = saved["config"]
    if not config.get("FROM"):
        return {"FROM": ""}
    return {name: config[name] for name in ("FROM", *SHAPE) if name in config}


def choose(values: dict, kept: dict | None) -> Beginning:
    """values：config.values()；kept：要接着的检查点的 lasting()，没有检查点时为 None。"""
    given = values["FROM"]
    if kept is not None:
        unread = f"FROM={given} 没有再读：这里已有训练，接着它来；要从 FROM 重新开始：--RESUME=off"
        remarks = [unread] if given else []
        return Beginning({**values, **kept}, remarks + _shape_remarks(values, kept))
    if not given:
        return Beginning(values, [])
    model = origin.open_model(given, values["WORK_DIR"])
    shape = GPTConfig(**model["model_config"])
    if shape.norm_eps != GPTConfig.norm_eps:
        raise UserError(
            f"FROM={given} 的 norm_eps 是 {shape.norm_eps}，本项目训练的模型是"
            f" {GPTConfig.norm_eps}，不能从它开始（什么都没有改动）。"
        )
    taken = {name: getattr(shape, theirs) for name, theirs in SHAPE.items()}
    remarks = [f"起点：{given} 的权重；优化器、位置、学习率从头来"]
    return Beginning({**values, **taken}, remarks + _shape_remarks(values, taken), model)


def two_ways(work_dir: str) -> str:
    """不能接着训练时，另起一次的两条路。"""
    model = (Path(work_dir) / artefacts.BEST_MODEL).as_posix()
    return (
        "另起一次训练（旧产物会改名留着，也可以换 --WORK_DIR）：\n"
        f"  · 从已有的模型接着学现在的诗：加 --FROM={model} --RESUME=off\n"
        "  · 从零开始：加 --RESUME=off"
    )


def _shape_remarks(values: dict, taken: dict) -> list:
    """配置与起点的形状不同的，一行说全。"""
    different = [
        f"{name} {values[name]} → {value}"
        for name, value in taken.items()
        if name in SHAPE and value != values[name]
    ]
    return ["形状照起点的模型：" + "，".join(different)] if different else []
