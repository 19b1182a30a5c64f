"""训练途中写的示例诗。"""

from __future__ import annotations

from poems import options
from support import defaults
from training.run import Run
from writing.poet import Poet

QUESTION = "一只鸟在想方向"


def poem(run: Run, question: str, seed: int) -> str:
    """用此刻的权重、对话时的抽样（与默认不同的配置优先）写一首；不动训练的随机数。"""
    chosen = options.sampling(run.values, defaults.changed(run.values))
    run.model.eval()
    try:
        poet = Poet(run.model, run.corpus.tokenizer)
        request = poet.request(question, **{**chosen, "seed": seed})
        return "".join(text for _, text, _ in poet.poems(request))
    finally:
        run.model.train()
