"""显卡喂不饱：微批次太小，它多半在等 Python 一个一个地启动核；说一句怎样改。"""

from __future__ import annotations

from gpt import GPTConfig
from training import memory
from training.settings import Settings

LOW = 0.05  # MFU 低到这里就说；H200 上默认的微批次是 0.014，合起来是 0.07
_ROOM = 16  # 至多合成几个一起


def advice(settings: Settings, config: GPTConfig, dtype: str, mfu: float, world: int = 1) -> str:
    """合成大的微批次的命令（一行）；不必说时为空。一次更新的 token 一样多，学到的也该一样。

    world：几个进程；合成以后每个仍要分到一个。
    """
    s, together = settings, min(settings.accum_steps // world, _ROOM)
    if mfu >= LOW or together < 2 or s.train_iter % together:
        return ""
    rows = s.batch_size * together
    size = memory.predict_peak(config, rows, s.max_seq_len, dtype=dtype, device="cuda", quick=True)
    return (
        f"显卡只用上了 {mfu:.0%}：一个微批次太小，它多半在等。下一次训练可以换成一样多 token 的"
        f"大微批次，快几倍：--BATCH_SIZE={rows} --ACCUM_STEPS={s.accum_steps // together} "
        f"--TRAIN_ITER={s.train_iter // together}，显存约要 {memory.pretty(memory.needed(size))}"
    )
