"""接着训练：检查点里放什么、找哪一个、哪些必须相同、怎样装回去。

检查点多一项内容，只改 state_of 与 restore。
"""

from __future__ import annotations

from typing import NamedTuple

import torch

import checkpoint
from support import cuda, hardware
from support.console import UserError
from training import beginning, regular
from training.corpus import Corpus
from training.distributed import Ranks
from training.position import Position
from training.run import Run
from training.settings import FIXED, Settings

_NOT_NAMED = ("WORK_DIR", "RESUME", "FROM")  # 与训练的内容无关，变了不必说
_SECRET = ("API_KEY",)  # 检查点会送人，这些不进去


class Newest(NamedTuple):
    """哪个进程的检查点算数。"""

    source: int
    chosen: dict  # 那次训练里 auto 选了什么
    kept: dict  # 照检查点、不看现在配置的几项
    regular: dict  # 那次训练的正则化，auto 照它


def state_of(run: Run, full: bool = True) -> dict:
    """检查点的内容；full=False 时是只够推理的 best_model.bin。"""
    data = run.corpus.data
    state = {
        "model_config": {**run.model.config.to_dict()},
        "weights": checkpoint.weights_of(run.model),
        "tokenizer": data.tokenizer_json,
        "prompt_kinds": list(data.prompt_kinds),
        "config": {name: value for name, value in run.values.items() if name not in _SECRET},
        "dataset": data.fingerprint,
        "replay": replayed(run.corpus),
        "chosen": run.machine.chosen(),
        "split": run.gradients.split,  # dropout 的种子里有第几份
        **run.position.to_dict(),
    }
    if full:
        state["optimizer"] = run.stepper.optimizers.state_dict()
        state["scaler"] = run.stepper.scale.state_dict()
    return state


def restore(run: Run, saved: dict) -> None:
    """把 state_of 的内容装进刚造好的 run。"""
    checkpoint.load_weights(run.model, saved["weights"])
    chosen = saved["chosen"]
    try:
        run.stepper.optimizers.load_state_dict(saved["optimizer"])
        run.stepper.scale.load_state_dict(saved["scaler"])
        run.position = Position.from_dict(saved)
        if chosen.get("DEVICE") == run.machine.device.type:  # 别的设备分几份由它自己定
            run.gradients.split = max(run.gradients.split, saved.get("split", 1))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"检查点里训练的状态与这份代码对不上（{error!r}）；文件没有动。\n"
            "请换回写它的那份代码，或加 --RESUME=off 从头开始（旧产物会改名留着）"
        ) from error
    run.resumed = True
    run.taken_over = [*changes(saved["config"], run.values), *_moved(run, chosen)]


def find(values: dict) -> dict | None:
    """WORK_DIR 里的检查点；没有、或 RESUME=off 时为 None，坏了抛 UserError。"""
    if values["RESUME"] == "off":
        return None
    return checkpoint.load_newest(values["WORK_DIR"])


def replayed(corpus: Corpus) -> str:
    """混进来的旧诗的指纹；没有混是空的。"""
    return corpus.old.data.fingerprint if corpus.replay is not None else ""


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
    if saved.get("replay", "") != replayed(corpus):
        problems.append("  · REPLAY_DATA：与检查点训练用的不是同一份旧诗")
    was, now = saved["config"].get("PRESET", ""), values.get("PRESET", "")
    if problems and was and was != now:
        problems.append(f"  那次训练用的是 --PRESET={was}，现在是 {now}：多半是忘了写它")
    if problems:
        raise UserError(
            "检查点不能照现在的配置接着训练（什么都没有改动）：\n"
            + "\n".join(problems)
            + "\n改回原来的值就能继续；"
            + beginning.two_ways(new.work_dir)
        )


def newest(saved: dict | None, ranks: Ranks) -> Newest | None:
    """各机器的检查点里最新的那个算数，有它的进程从此写文件；谁都没有时为 None。

    通常是 0 号；换过机器、重排过编号时，也不会从旧的或空的检查点开始。
    """
    mine = None
    if saved is not None:
        mine = {
            "update": saved["position"].get("update", 0),
            "chosen": saved["chosen"],
            "kept": beginning.lasting(saved),
            "regular": {n: saved["config"][n] for n in regular.NAMES if n in saved["config"]},
        }
    everyone = ranks.all_gather(mine)
    owners = [rank for rank, there in enumerate(everyone) if there is not None]
    if not owners:
        return None
    source = max(owners, key=lambda rank: (everyone[rank]["update"], -rank))
    ranks.writer = source
    best = everyone[source]
    return Newest(source, best["chosen"], best["kept"], best["regular"])


def reuse_choices(values: dict, chosen: dict) -> Settings:
    """auto 的精度随检查点沿用，只要还在同样的设备上、它又有这种精度的硬件。

    设备和编译每次都重新选：现在有了显卡就用显卡，没有了编译器就不编译；都不改变模型。
    """
    values = dict(values)
    kind, dtype = values["DEVICE"], chosen.get("DTYPE")
    if kind == "auto":
        kind = hardware.pick_device("auto").type
    if values["DTYPE"] == "auto" and dtype and kind == chosen.get("DEVICE") and _has(kind, dtype):
        values["DTYPE"] = dtype
    return Settings.pick(values)


def _has(kind: str, dtype: str) -> bool:
    """显卡有没有这种精度的硬件；别的设备照旧。"""
    if kind != "cuda" or dtype == "fp32":
        return True
    device = torch.device(kind)
    return cuda.has_bf16(device) if dtype == "bf16" else cuda.has_fast_fp16(device)


def _moved(run: Run, chosen: dict) -> list:
    """auto 这次选了别的设备或精度，给人看的。"""
    now = run.machine.chosen()
    return [
        f"{name}：{chosen[name]} → {now[name]}（auto）"
        for name in ("DEVICE", "DTYPE")
        if run.values[name] == "auto" and chosen.get(name, now[name]) != now[name]
    ]


def changes(old: dict, new: dict) -> list:
    """与检查点不同的配置，给人看的。"""
    names = set(Settings.names()) - set(_NOT_NAMED)
    return [
        f"{name}：{old[name]} → {new[name]}"
        for name in new
        if name in names and old.get(name, new[name]) != new[name]
    ]
