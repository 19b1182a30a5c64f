"""接着训练：检查点里放什么、找哪一个、哪些必须相同、怎样装回去。

检查点多一项内容，只改 state_of 与 restore。
"""

from __future__ import annotations

from typing import NamedTuple

import torch

import checkpoint
from support.console import UserError
from training.corpus import Corpus
from training.distributed import Ranks
from training.position import Position
from training.run import Run
from training.settings import FIXED, Settings

_NOT_NAMED = ("WORK_DIR", "RESUME")  # 与训练的内容无关，变了不必说


class Newest(NamedTuple):
    """哪个进程的检查点算数。"""

    source: int
    chosen: dict  # 那次训练里 auto 选了什么


def state_of(run: Run, full: bool = True) -> dict:
    """检查点的内容；full=False 时是只够推理的 best_model.bin。"""
    data = run.corpus.data
    state = {
        "model_config": {**run.model.config.to_dict()},
        "weights": checkpoint.weights_of(run.model),
        "tokenizer": data.tokenizer_json,
        "prompt_kinds": list(data.prompt_kinds),
        "config": dict(run.values),
        "dataset": data.fingerprint,
        "chosen": run.machine.chosen(),
        **run.position.to_dict(),
    }
    if full:
        state["optimizer"] = run.stepper.optimizers.state_dict()
        state["scaler"] = run.stepper.scale.state_dict()
    return state


def restore(run: Run, saved: dict) -> None:
    """把 state_of 的内容装进刚造好的 run。"""
    checkpoint.load_weights(run.model, saved["weights"])
    try:
        run.stepper.optimizers.load_state_dict(saved["optimizer"])
        run.stepper.scale.load_state_dict(saved["scaler"])
        run.position = Position.from_dict(saved)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"检查点里训练的状态与这份代码对不上（{error!r}）；文件没有动。\n"
            "请换回写它的那份代码，或加 --RESUME=off 从头开始（旧产物会改名留着）"
        ) from error
    run.resumed, run.taken_over = True, changes(saved["config"], run.values)


def find(values: dict, settings: Settings, corpus: Corpus) -> dict | None:
    """WORK_DIR 里能接着训练的检查点；没有、或 RESUME=off 时为 None，不能接着的抛 UserError。"""
    if settings.resume == "off":
        return None
    saved = checkpoint.load_newest(settings.work_dir)
    if saved is not None:
        refuse_changes(saved, values, corpus)
    return saved


def refuse_changes(saved: dict, values: dict, corpus: Corpus) -> None:
    """必须相同的变了就拒绝，一次说全。"""
    old, new = Settings.pick({**values, **saved["config"]}), Settings.pick(values)
    pairs = [(name, getattr(old, name), getattr(new, name)) for name in FIXED]
    problems = [
        f"  · {name.upper()}：检查点是 {was}，现在是 {now}"
        for name, was, now in pairs
        if was != now
    ]
    if checkpoint.tokenizer_of(saved).fingerprint != corpus.tokenizer.fingerprint:
        problems.append("  · 分词器：与检查点里的不同")
    if saved["dataset"] != corpus.data.fingerprint:
        problems.append("  · dataset.bin：与检查点训练用的不是同一份")
    if problems:
        raise UserError(
            "检查点不能照现在的配置接着训练（什么都没有改动）：\n"
            + "\n".join(problems)
            + "\n改回原来的值就能继续；要另起一次训练：加 --RESUME=off（旧产物会改名留着），"
            "或换一个 --WORK_DIR"
        )


def newest(saved: dict | None, ranks: Ranks) -> Newest | None:
    """各机器的检查点里最新的那个算数，有它的进程从此写文件；谁都没有时为 None。

    通常是 0 号；换过机器、重排过编号时，也不会从旧的或空的检查点开始。
    """
    mine = None
    if saved is not None:
        mine = {"update": saved["position"].get("update", 0), "chosen": saved["chosen"]}
    everyone = ranks.all_gather(mine)
    owners = [rank for rank, there in enumerate(everyone) if there is not None]
    if not owners:
        return None
    source = max(owners, key=lambda rank: (everyone[rank]["update"], -rank))
    ranks.writer = source
    return Newest(source, everyone[source]["chosen"])


def reuse_choices(values: dict, chosen: dict) -> Settings:
    """auto 的选择随检查点沿用；那时的设备现在没有就重新选。"""
    values = dict(values)
    for name, choice in chosen.items():
        if values.get(name) == "auto" and not (name == "DEVICE" and not _device_there(choice)):
            values[name] = choice
    return Settings.pick(values)


def _device_there(name: str) -> bool:
    return name != "cuda" or torch.cuda.is_available()


def changes(old: dict, new: dict) -> list:
    """与检查点不同的配置，给人看的。"""
    names = set(Settings.names()) - set(_NOT_NAMED)
    return [
        f"{name}：{old[name]} → {new[name]}"
        for name in new
        if name in names and old.get(name, new[name]) != new[name]
    ]
