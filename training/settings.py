"""一次训练的配置：读一次，此后不变。"""

from __future__ import annotations

from dataclasses import dataclass, fields

SHAPE = {  # 模型的形状：config.py 的名字 → GPTConfig 里的名字
    "MAX_SEQ_LEN": "max_seq_len",
    "GPT_DIM": "dim",
    "GPT_HEAD": "n_head",
    "GPT_FF": "ff",
    "GPT_BLOCKS": "n_block",
    "ROPE_THETA": "rope_theta",
}


@dataclass(frozen=True)
class Settings:
    """训练要用的配置；字段就是 config.py 里小写的名字（from 是 from_）。"""

    work_dir: str
    from_: str
    teacher: str
    max_seq_len: int
    gpt_dim: int
    gpt_head: int
    gpt_ff: int
    gpt_blocks: int
    rope_theta: float
    dropout: float
    seed: int
    train_iter: int
    batch_size: int
    accum_steps: int
    learning_rate: float
    muon_lr: float
    char_lr: float
    warmup_steps: int
    decay_share: float
    grow_at: float
    sampled_softmax: float
    optimizer: str
    weight_decay: float
    grad_clip: float
    save_every: int
    eval_every: int
    sample_every: int
    early_stop: int
    max_bad_steps: int
    grad_checkpoint: str
    replay_data: str
    replay_share: float
    init: str
    resume: str
    device: str
    dtype: str
    compile: str
    dist_timeout: float
    logger: str

    @classmethod
    def pick(cls, values: dict) -> Settings:
        """从 config.values() 里挑出需要的。"""
        names = (field.name for field in fields(cls))
        return cls(**{name: values[_in_config(name)] for name in names})

    @classmethod
    def names(cls) -> list:
        """这些配置在 config.py 里的名字。"""
        return [_in_config(field.name) for field in fields(cls)]

    def shape(self) -> dict:
        """模型的形状，GPTConfig 的参数名 → 值；词表与丢弃率不在内。"""
        return {theirs: getattr(self, name.lower()) for name, theirs in SHAPE.items()}

    @property
    def budget(self) -> int:
        """一个微批次的 token 数上限。"""
        return self.batch_size * self.max_seq_len

    @property
    def updates(self) -> int:
        """全程的更新次数。"""
        return -(-self.train_iter // self.accum_steps)

    def iteration(self, update: int) -> int:
        """做完 update 次更新时，是第几次迭代。"""
        return min(update * self.accum_steps, self.train_iter)

    def micro_batches(self, update: int) -> range:
        """第 update 次更新（从 0 数）的微批次编号；最后一次可能不足 ACCUM_STEPS 个。"""
        return range(update * self.accum_steps, self.iteration(update + 1))


def _in_config(field: str) -> str:
    return field.upper().rstrip("_")


# 续训时必须相同的配置；其余的改了就照新的来，并说出来
FIXED = (
    "gpt_dim",
    "gpt_head",
    "gpt_ff",
    "gpt_blocks",
    "max_seq_len",
    "rope_theta",
    "seed",
    "optimizer",
    "batch_size",
    "accum_steps",
    "replay_share",
)
