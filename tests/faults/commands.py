"""选项乱写：每个脚本，错的名字、错的值、大得离谱的数；一条中文消息，没有回溯，什么都没有覆盖。"""

from __future__ import annotations

import contextlib
import io
import random

import config
from tests.faults import outcome, sabotage
from tests.faults.tally import FINE, TOLD, TRACE, WRONG, Tally, judge, problem
from tests.faults.workshop import SHAPE, Workshop, run, swift

_VALUES = (
    "", " ", "0", "1", "-1", "2", "7", "0.5", "-0.5", "1e-300", "1e300", "1e999", "nan", "inf",
    "-inf", "x", "诗", "１２", "1_000", "0x10", "1,2", "True", "None", "off", "on", "auto", "cpu",
    "9" * 30, "9" * 5000, "-" + "9" * 40, "~", ".", "..", "/", "/dev/null", "nowhere", "a" * 300,
    "\udcff", "\n", "'", '"', "%s", "{}", "$HOME", "*", "title=1", "title=", "title=-1", "=", "==",
    "temperature=0.7,1", "temperature=nan", "top_k=-1", "sampler=x", "a=b;c=d", ";", "<|padding|>",
    "hf", "gguf", "checkpoint", "cuda", "mps", "fp16", "bf16", "slide", "tensorboard", "csv,nope",
)  # fmt: skip
_WORDS = ("--help", "-h", "--", "-", "---x", "--=", "--=1", "x", "诗", "--SEED", "-SEED=1", "--1")
_SCRIPTS = {
    "data_clean.py": ("--RAW_DATA=../raw",),
    "hug_face_tokenizer.py": ("--VOCAB_SIZE=400",),
    "train_BPEtokennizer.py": ("--VOCAB_SIZE=400",),
    "train_dataset_one.py": ("--MAX_SEQ_LEN=64",),
    "train_dataset_all.py": ("--MAX_SEQ_LEN=64",),
    "train_gpt.py": (*SHAPE, "--BATCH_SIZE=4", "--ACCUM_STEPS=2", "--TRAIN_ITER=26"),
    "train_gpt_ddp.py": (*SHAPE, "--BATCH_SIZE=4", "--ACCUM_STEPS=2", "--TRAIN_ITER=26"),
    "infere.py": (),
    "evaluate.py": ("--SAMPLES=2", "--MAX_NEW_TOKENS=8"),
    "quantize.py": (),
    "export.py": (),
    "diagnose.py": (),
    "serve.py": ("--PORT=1", "--HOST=127.0.0.1"),
    "benchmark.py": (),
}
_MEMORY = 6 << 30


def word(rng: random.Random) -> str:
    """命令行上的一个词。"""
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(_WORDS)
    name = rng.choice(config.names())
    if kind < 0.2:  # 错的名字
        place = rng.randrange(len(name))
        name = name[:place] + rng.choice("X_-é字") + name[place + 1 :]
    if kind < 0.3:
        name = name.lower().replace("_", rng.choice("_-"))
    return f"--{name}{rng.choice(('=', '=', '=', '=', ' '))}{rng.choice(_VALUES)}"


class Options:
    """config.load 本身，在本进程里，一次几十微秒。"""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self._shipped = config.values()

    def one(self, rng: random.Random) -> None:
        argv = [part for _ in range(rng.randint(1, 4)) for part in word(rng).split(" ", 1)]
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                config.load("说明", argv)
            problems = config.check()
            verdict, detail = (WRONG, f"收下了 {problems}") if problems else (FINE, "")
        except SystemExit as left:
            verdict, detail = judge(left.code, said.getvalue(), (0, 2))
            if verdict == FINE and left.code != 0:
                verdict = TOLD
        except Exception as error:
            verdict, detail = TRACE, problem(error)
        finally:
            for name, value in self._shipped.items():
                setattr(config, name, value)
            config._given.clear()
        self.tally.add("选项（config.load）", verdict, f"{argv!r}：{detail}"[:400])


def scripts(shop: Workshop, tally: Tally, rng: random.Random) -> None:
    """真的运行一个脚本，带着一两个乱写的选项。"""
    script = rng.choice(list(_SCRIPTS))
    words = [part for _ in range(rng.choice((1, 1, 2))) for part in word(rng).split(" ", 1)]
    words = [each for each in words if not each.startswith(("--RAW_DATA=/", "--RAW_DATA=~"))]
    trial = shop.copy(shop.whole)
    before = {path.name: outcome.raw(path) for path in trial.iterdir()}
    memory = sabotage.limit(_MEMORY, "AS")
    full = (script, *_SCRIPTS[script], *words)
    code, text = run(full, trial, sabotage.both(swift, memory), seconds=15)
    if code is None:  # 合规矩的大数：做得久，不是错
        verdict, detail = judge(0, text)
    else:
        verdict, detail = judge(code, text, (0, 1, 2))
    if verdict == TOLD:
        here = outcome.hashes(trial)
        lost = [name for name, mark in before.items() if mark not in here]
        if lost:
            verdict, detail = WRONG, f"没有做成，却动了 {'、'.join(lost)}：{text[-200:]}"
    tally.add("选项（脚本）", verdict, f"{' '.join(full)}"[:300] + f"：{detail}")
    shop.clear(trial)
