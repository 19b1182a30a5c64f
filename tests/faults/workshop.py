"""演习的工场：极小的语料走完全程，每一步之前、之后的目录各留一份；脚本在子进程里运行。

能 fork 的系统上，子进程从已经导入好的本进程分出来，一次只要几十毫秒；别的系统上照常启动 Python。
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.faults import sabotage

ROOT = Path(__file__).resolve().parent.parent.parent
KILLED = -int(getattr(signal, "SIGKILL", signal.SIGTERM))
CAN_FORK = hasattr(os, "fork")
_HELD = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if CAN_FORK)
_USED = ("torch", "numpy", "tokenizers", "tqdm", "checkpoint", "dataset", "data_clean", "quantize")
_USED += ("hug_face_tokenizer", "train_BPEtokennizer", "train_dataset_all", "export", "infere")
_USED += ("training.loop", "writing.engine", "evaluate", "diagnose", "serve", "train_gpt")
_MAYBE = ("torch._dynamo", "safetensors.numpy", "safetensors.torch", "gguf")  # 用到时才导入，慢

SHAPE = ("--GPT_DIM=32", "--GPT_HEAD=2", "--GPT_FF=64", "--GPT_BLOCKS=2", "--MAX_SEQ_LEN=64")
LENGTH = ("--BATCH_SIZE=4", "--ACCUM_STEPS=2", "--TRAIN_ITER=24", "--WARMUP_STEPS=4")
OFTEN = ("--SAVE_EVERY=4", "--EVAL_EVERY=8", "--SAMPLE_EVERY=12", "--MAX_NEW_TOKENS=8")
TRAIN = (*SHAPE, *LENGTH, *OFTEN, "--DEVICE=cpu", "--DTYPE=fp32", "--COMPILE=off")


class Step(NamedTuple):
    """流水线的一步。"""

    name: str
    words: tuple  # 脚本与参数；WORK_DIR 另加
    writes: tuple  # 写出什么


STEPS = (
    Step("data_clean", ("data_clean.py", "--RAW_DATA=../raw"), ("all_poems.json",)),
    Step(
        "hug_face_tokenizer",
        ("hug_face_tokenizer.py", "--VOCAB_SIZE=400"),
        ("tokenizer_hug.json",),
    ),
    Step(
        "train_BPEtokennizer",
        ("train_BPEtokennizer.py", "--VOCAB_SIZE=400"),
        ("tokenizer_bpe.json",),
    ),
    Step(
        "train_dataset_one",
        ("train_dataset_one.py", "--MAX_SEQ_LEN=64", "--VAL_SHARE=0.1"),
        ("dataset.bin",),
    ),
    Step(
        "train_dataset_all",
        ("train_dataset_all.py", "--MAX_SEQ_LEN=64", "--VAL_SHARE=0.1"),
        ("dataset.bin",),
    ),
    Step(
        "train_gpt",
        ("train_gpt.py", *TRAIN),
        ("checkpoint.bin", "checkpoint.prev.bin", "best_model.bin", "train_log.csv", "samples.txt"),
    ),
    Step("quantize", ("quantize.py",), ("model_int8.bin",)),
    Step("export hf", ("export.py", "--FORMAT=hf"), ("export_hf",)),
    Step("export gguf", ("export.py", "--FORMAT=gguf"), ("export_gguf",)),
    Step("export checkpoint", ("export.py", "--FORMAT=checkpoint"), ("checkpoint_imported.bin",)),
)
BY_NAME = {step.name: step for step in STEPS}
# 目录里已有上一次的产物时再做一遍，做出来的要与上一次不同：各步多给的参数
AGAIN = {
    "data_clean": ("--RAW_DATA=../raw2",),
    "hug_face_tokenizer": ("--VOCAB_SIZE=380",),
    "train_BPEtokennizer": ("--VOCAB_SIZE=380",),
    "train_dataset_one": ("--SEED=7",),
    "train_dataset_all": ("--SEED=7",),
    "train_gpt": ("--RESUME=off", "--SEED=7"),
    "quantize": ("--CHECKPOINT=checkpoint.prev.bin",),
    "export hf": ("--CHECKPOINT=checkpoint.prev.bin",),
    "export gguf": ("--CHECKPOINT=checkpoint.prev.bin",),
    "export checkpoint": (),
}
# 清洗使用者自己写的 all_poems.json，没有 RAW_DATA
OWN_POEMS = Step(
    "data_clean（自己的诗集）",
    ("data_clean.py", "--RAW_DATA=nowhere"),
    ("all_poems.json", "all_poems.raw.json"),
)


class Process:
    """一个正在运行的脚本；out 是它的标准输出与标准错误。"""

    def __init__(self, words: tuple, folder: Path, prepare: object = None) -> None:
        """prepare：在子进程里、脚本之前做的事（打补丁、设限制），只在能 fork 时有。"""
        self.out = folder.with_name(folder.name + ".out")
        self._code, self._popen = None, None
        self.out.touch()
        if CAN_FORK:
            signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # 子进程准备好了才收信号
            self.pid = os.fork()
            if not self.pid:
                _become(words, folder, self.out, prepare)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
            return
        with open(self.out, "wb") as out:
            command = [sys.executable, str(ROOT / words[0]), *words[1:]]
            self._popen = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)
        self.pid = self._popen.pid

    def poll(self) -> int | None:
        """退出码；还没有结束时为 None。"""
        if self._popen is not None:
            return self._popen.poll()
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = _exit_code(status)
        return self._code

    def wait(self, seconds: float = 240) -> int | None:
        """等它结束；太久就杀掉，返回 None。"""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                return None
            time.sleep(0.001)
        return self.poll()

    def send(self, number: int) -> None:
        """发一个信号；已经结束了就算了。"""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """杀掉，收尸。"""
        self.send(-KILLED)
        while self.poll() is None:
            time.sleep(0.0005)

    def text(self) -> str:
        return self.out.read_text(encoding="utf-8", errors="replace")


def _exit_code(status: int) -> int:
    """waitpid 的状态 → 退出码（被信号杀死是负的）；3.9 才有 os.waitstatus_to_exitcode。"""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _become(words: tuple, folder: Path, out: Path, prepare: object) -> None:
    """分出来的子进程：成为那个脚本，不再回来。"""
    code = 70
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((nothing, 0), (handle, 1), (handle, 2)):
            os.dup2(old, new)
        streams = [io.FileIO(number, "w", closefd=False) for number in (1, 2)]
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.BufferedWriter(each), "utf-8", line_buffering=True)
            for each in streams
        )
        for number in _HELD:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        if prepare is not None:
            prepare()
        sys.argv = [str(ROOT / words[0]), *words[1:]]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        _leave(code)


def _leave(code: int) -> None:
    """不经过父进程的收尾。"""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code or 0)


def run(words: tuple, folder: Path, prepare: object = None, seconds: float = 240) -> tuple:
    """运行到结束 → (退出码, 它说的话)；太久时退出码为 None。"""
    process = Process(words, folder, prepare)
    return process.wait(seconds), process.text()


def swift() -> None:
    """与演习无关的慢事：量峰值、画图。"""
    from poems import report
    from support import hardware
    from training import runlog

    hardware.measure_peak = lambda *_: 1e11
    runlog.draw = report.draw_lengths = lambda *_: False


class Case(NamedTuple):
    """一步：在 ready 里运行 words，没被打扰的结果是 calm。"""

    name: str
    words: tuple
    writes: tuple
    ready: Path
    calm: Path
    seconds: float  # 没被打扰时用了多久
    moments: int  # 其间有几次改动磁盘的调用


class Workshop:
    """建好的目录：每一步之前的、没被打扰地做完之后的，都留着。"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases = []
        self._count = 0
        for name in _USED if CAN_FORK else ():
            importlib.import_module(name)
        for name in _MAYBE if CAN_FORK else ():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        write_raw(folder / "raw", 0)
        write_raw(folder / "raw2", 40)
        self.whole = folder / "work"
        self._build()

    def case(self, name: str) -> Case:
        return next(case for case in self.cases if case.name == name)

    def _build(self) -> None:
        self.whole.mkdir()
        for step in STEPS:
            self._add(step, self.whole)
        for step in STEPS:
            words = (*step.words, *AGAIN[step.name])
            self._add(Step(f"{step.name}（已有）", words, step.writes), self.copy(self.whole))
        own = self.copy(self.whole)
        poems = json.loads((own / "all_poems.json").read_text(encoding="utf-8"))[:20]
        text = json.dumps(poems * 2, ensure_ascii=False, indent=1)
        (own / "all_poems.json").write_text(text, encoding="utf-8")
        self._add(OWN_POEMS, own)

    def _add(self, step: Step, work: Path) -> None:
        """在 work 里做一步，前后各留一份。"""
        number = len(self.cases)
        ready, calm = (self.folder / f"{kind}{number}" for kind in ("ready", "calm"))
        shutil.copytree(work, ready)
        began, moments = time.monotonic(), self.folder / "moments"
        code, text = run(step.words, work, sabotage.both(swift, sabotage.count(moments)))
        seconds, count = time.monotonic() - began, moments.stat().st_size if CAN_FORK else 0
        if code:
            raise RuntimeError(f"{step.name} 没被打扰也没有做成：{text}")
        shutil.copytree(work, calm)
        self.cases.append(Case(step.name, step.words, step.writes, ready, calm, seconds, count))

    def copy(self, source: Path) -> Path:
        """source 的一份新的拷贝，里面可以随便弄坏。"""
        self._count += 1
        target = self.folder / f"trial{self._count}"
        shutil.copytree(source, target)
        return target

    def clear(self, trial: Path) -> None:
        """一次尝试用完了。"""
        shutil.rmtree(trial, ignore_errors=True)
        with contextlib.suppress(OSError):
            trial.with_name(trial.name + ".out").unlink()


def write_raw(folder: Path, start: int, count: int = 40) -> None:
    """几种写法的原始诗。"""
    poems = json.loads((ROOT / "sample_poems.json").read_text(encoding="utf-8"))
    poems = poems[start : start + count]
    folder.mkdir()
    half = len(poems) // 2
    text = json.dumps(poems[:half], ensure_ascii=False)
    (folder / "a.json").write_text(text, encoding="utf-8")
    lines = (json.dumps(poem, ensure_ascii=False) for poem in poems[half:-4])
    (folder / "b.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for number, poem in enumerate(poems[-4:]):
        body = "\n\n".join(poem["para"])
        text = f"{poem['title']}\n{body}\n"
        (folder / f"c{number}.txt").write_text(text, encoding="gb18030" if number % 2 else "utf-8")
