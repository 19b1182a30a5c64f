"""显卡喂不饱：微批次太小，它多半在等 Python 一个一个地启动核；说一句怎样改。"""

from __future__ import annotations

from gpt import GPTConfig
from support import presets
from training import memory
from training.settings import Settings

LOW = 0.05  # MFU 低到这里就说；H200 上默认的微批次是 0.014，合起来是 0.07
_ROOM = 16  # 至多合成几个一起
_PLAN = ("BATCH_SIZE", "ACCUM_STEPS", "TRAIN_ITER")


def advice(settings: Settings, config: GPTConfig, dtype: str, mfu: float, world: int = 1) -> str:
    """合成大的微批次的命令（一行）；不必说时为空。一次更新的 token 一样多，学到的也该一样。

    world：几个进程；合成以后每个仍要分到一个。
    """
    s, together = settings, _together(settings, world)
    if mfu >= LOW or together < 2:
        return ""
    rows = s.batch_size * together
    plan = dict(zip(_PLAN, (rows, s.accum_steps // together, s.train_iter // together)))
    card = presets.PRESETS["card"].values
    command = " ".join(f"--{name}={value}" for name, value in plan.items())
    command += f"（SAVE_EVERY、EVAL_EVERY、SAMPLE_EVERY 也要除以 {together}）"
    if all(card[name] == value for name, value in plan.items()):
        command = "--PRESET=card"
    size = memory.predict_peak(
        config,
        rows,
        s.max_seq_len,
        dtype=dtype,
        optimizer=s.optimizer,
        grad_checkpoint=s.grad_checkpoint == "on",
        device="cuda",
        quick=True,
    )
    return (
        f"显卡只用上了 {mfu:.0%}：一个微批次太小，它多半在等。下一次从头训练（另一个 WORK_DIR，或 "
        f"--RESUME=off）可以合成一样多 token 的大微批次，快几倍：{command}；"
        f"显存约要 {memory.pretty(memory.needed(size))}"
    )


def _together(settings: Settings, world: int) -> int:
    """几个微批次合成一个：除得尽一次更新的和全程的，每个进程还有一个。"""
    most = min(settings.accum_steps // world, _ROOM)
    both = (settings.accum_steps, settings.train_iter)
    return next((n for n in range(most, 1, -1) if not any(x % n for x in both)), 1)
