"""一次训练从哪里开始：接着检查点，别的模型的权重（FROM），还是从零。"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import checkpoint
import dataset
from gpt import GPTConfig
from support import artefacts, files
from support.console import UserError
from tokenizer import fingerprint
from training import tuning
from training.corpus import Corpus, remake
from training.settings import SHAPE, Settings
from writing import origin

_THEN = {"CHAR_LR": 0.0}  # 旧的检查点里没有的配置：当时等于写了什么


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
    """续训时照检查点的几项：FROM，由 FROM 来的还有形状与自动定下的（人改过的照人的）。

    那时还没有的配置照当时的做法，旧的训练接下去还是同一次训练。
    """
    config = saved["config"]
    then = {name: value for name, value in _THEN.items() if name not in config}
    if not config.get("FROM"):
        return {"FROM": "", **then}
    names = ("FROM", *SHAPE, *tuning.recipe(1, 1))
    return {**then, **{name: config[name] for name in names if name in config}}


def choose(values: dict, kept: dict | None) -> Beginning:
    """values：config.values()；kept：要接着的检查点的 lasting()，没有检查点时为 None。"""
    given = values["FROM"]
    if kept is not None:
        unread = f"FROM={given} 没有再读：这里已有训练，接着它来；要从 FROM 重新开始：--RESUME=off"
        remarks = [unread] if given else []
        fixed = {name: value for name, value in kept.items() if name in ("FROM", *SHAPE)}
        free = {name: value for name, value in kept.items() if name not in fixed}
        values = {**values, **tuning.adjust(values, free)}
        return Beginning({**values, **fixed}, remarks + _shape_remarks(values, fixed))
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
    remarks = [f"起点：{given} 的权重；优化器、位置、学习率从头来", *_shape_remarks(values, taken)]
    values = {**values, **taken}
    tokens = _own_tokens(values["WORK_DIR"])
    if tokens:
        chosen = tuning.adjust(values, tuning.recipe(tokens, values["MAX_SEQ_LEN"]))
        values.update(chosen)
        remarks += _tuning_remarks(tokens, chosen)
    return Beginning(values, remarks, model)


def _own_tokens(work_dir: str) -> int:
    """训练诗一遍有多少 token；还没有 dataset.bin 时为 0。"""
    path = files.work_path(work_dir, artefacts.DATASET)
    return int(dataset.load(path).lengths("train").sum()) if path.exists() else 0


def _tuning_remarks(tokens: int, chosen: dict) -> list:
    """自动定下了什么（一行）；人都改过时没有。"""
    shown = "，".join(f"{name}={value:g}" for name, value in chosen.items())
    return [f"按自己的诗有 {tokens / 1e3:.0f} 千 token 定下：{shown}"] if chosen else []


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
