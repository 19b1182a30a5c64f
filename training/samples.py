"""训练途中写的示例诗。"""

from __future__ import annotations

from training.run import Run
from writing.poet import Poet

QUESTION = "一只鸟在想方向"


def poem(run: Run, question: str, seed: int) -> str:
    """用此刻的权重写一首；不动训练的随机数。"""
    s = run.settings
    run.model.eval()
    try:
        poet = Poet(run.model, run.corpus.tokenizer)
        request = poet.request(
            question,
            temperature=s.temperature,
            top_k=s.top_k,
            repetition_penalty=s.repetition_penalty,
            max_new_tokens=s.max_new_tokens,
            seed=seed,
        )
        return "".join(text for _, text, _ in poet.poems(request))
    finally:
        run.model.train()
