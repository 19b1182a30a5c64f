"""测速：python benchmark.py generate [--名字=值 …]；最后一行是一个 JSON 对象。

train     训练速度：每秒有用 token、MFU、峰值内存；不写任何文件
learn     从零训练 --SECONDS=600 秒，写 best_model.bin，报告验证集的每字比特
generate  写诗：每秒 token 数、第一个 token 的毫秒数（1 首与 8 首同时写），装了 transformers、
          llama-cpp-python 就在同一次运行里并排比较（同样形状的模型）
pairs     盲评的卷子：40 个题目，README 的抽样与 auto 各写一首，打乱；答案另存
study     几种配方 × 几个种子，在少量的诗上各训练许多遍：表、图与 CSV（见 STUDY、RECIPES、SEEDS）
curve     把 WORK_DIR 的训练收成一份参照的曲线（OUT，默认 docs/curves/WORK_DIR 的名字.csv）
data      数据：清洗、两种分词器、两种数据集，各步每秒多少首、多少 MB、峰值内存（在临时目录里）
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable, NamedTuple

import config
from support import artefacts, console, files, hardware, threads
from support.console import UserError

if TYPE_CHECKING:
    import ctypes

    import torch

    from gpt import GPT

Runner = Callable[[int, int], None]  # run(首数, token 数)
DEFAULT_SECONDS = config.SECONDS
PROMPT_TOKENS = 20
NEW_TOKENS = 200
BATCHES = (1, 8)
REPEATS = 5
_RUNNERS = (
    ("", "本项目"),
    ("plain_", "同，不编译"),
    ("fp32_", "本项目 fp32"),
    ("int8_", "本项目 int8"),
    ("transformers_", "transformers"),
    ("transformers_bf16_", "同，bf16"),
    ("llama_f16_", "llama.cpp F16"),
    ("llama_q8_", "llama.cpp Q8_0"),
)
_RATIOS = (  # 谁除以谁 → 结果里的名字
    ("", "transformers_", "ratio_"),
    ("", "transformers_bf16_", "ratio_bf16_"),
    ("", "llama_f16_", "ratio_llama_"),
    ("int8_", "llama_q8_", "ratio_llama_q8_"),
)
STUDY_OWN = ("WORK_DIR", "STUDY", "RECIPES", "SEEDS", "SEED", "VOCAB_SIZE")  # 不算配方的改动

# ── generate ──────────────────────────────────────────────────────────


class _PlainTokenizer:
    """测速用：每个 token 都是一个字，没有真的词表。"""

    pad_id, start_id, end_id = 0, 1, 2

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.special_ids = {"pad": 0, "start": 1, "end": 2}

    def token_bytes(self, token: int) -> bytes:
        return b"" if token < 3 else chr(0x4E00 + token % 20000).encode("utf-8")

    def encode(self, text: str) -> list:
        return [3 + ord(char) % (self.vocab_size - 3) for char in text]


def generate() -> dict:
    """写诗的速度，与 transformers 并排。"""
    import torch

    from kernels import compiler
    from kernels.products import half_problem

    device = hardware.pick_device(config.DEVICE)
    hardware.keep_memory()  # 同写诗时
    model = random_model(device)
    half = config.DTYPE in ("auto", "fp16") and half_problem(device) is None
    native = config.DTYPE in ("auto", "fp16") and device.type == "cpu"  # 同 Poet.load
    library = compiler.pick(config.COMPILE, wait=True) if native else None
    runners = {**_our_runners(model, device, half, library), **_rival_runners(model, device)}
    result = {
        "device": device.type,
        "weights": "fp16" if half else "fp32",
        "compiled": library is not None,
        "threads": torch.get_num_threads(),
        "parameters": model.matrix_parameters(),
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
    }
    result.update(measure({name: run for name, run in runners.items() if run}))
    keys = [key for key in result if key.startswith(("tokens_per_s", "first_token_ms"))]
    for ours, theirs, name in _RATIOS:
        for key in keys if f"{theirs}{keys[0]}" in result and f"{ours}{keys[0]}" in result else ():
            result[f"{name}{key}"] = round(result[f"{ours}{key}"] / result[f"{theirs}{key}"], 3)
    limit = read_bandwidth(model, device)
    size = model.matrix_parameters() * (2 if half else 4)  # 词嵌入的一行不算，输出层算
    reached = result["tokens_per_s_batch1"] * size
    result.update(
        weight_mb_per_token=round(size / 1e6, 2),
        memory_gb_per_s=round(limit / 1e9, 2),
        bandwidth_share=round(reached / limit, 3),
    )
    show_generate(result)
    return result


def _our_runners(
    model: GPT, device: torch.device, half: bool, library: ctypes.CDLL | None
) -> dict[str, Runner | None]:
    runners = {"": our_runner(model, device, half, library)}
    if library:
        runners["plain_"] = our_runner(model, device, half)
    if half:
        runners["fp32_"] = our_runner(model, device)
    if device.type == "cpu":
        runners["int8_"] = int8_runner(model, library)
    return runners


def _rival_runners(model: GPT, device: torch.device) -> dict[str, Runner | None]:
    import torch

    from writing import rivals

    prompt = list(range(100, 100 + PROMPT_TOKENS))
    runners = {"transformers_": rivals.transformers_runner(model, prompt)}
    if hardware.pick_dtype("auto", device) == torch.bfloat16:
        runners["transformers_bf16_"] = rivals.transformers_runner(model, prompt, torch.bfloat16)
    if device.type == "cpu":
        common = (model, prompt, config.sampling(), max(BATCHES))
        runners["llama_f16_"] = rivals.llama_runner(*common, "F16")
        runners["llama_q8_"] = rivals.llama_runner(*common, "Q8_0")
    return runners


def random_model(device: torch.device) -> GPT:
    """config.py 形状、随机权重的模型。"""
    import torch

    from gpt import GPT, GPTConfig
    from training.settings import Settings

    torch.manual_seed(config.SEED)
    model = GPT(GPTConfig(config.VOCAB_SIZE, **Settings.pick(config.values()).shape()))
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.05)
    return model.to(device).eval()


def our_runner(
    model: GPT, device: torch.device, half: bool = False, library: ctypes.CDLL | None = None
) -> Runner:
    """run(首数, token 数)：本项目写诗的整条路径（抽样、惩罚、取字都在内）。"""
    from poems.options import Options
    from writing.pace import Paces
    from writing.poet import Poet
    from writing.request import Request

    poet = Poet(model, _PlainTokenizer(model.config.vocab_size), half=half, library=library)
    poet.paces = Paces() if device.type == "cpu" else None  # 同 Poet.load
    prompt = list(range(100, 100 + PROMPT_TOKENS))

    def run(rows: int, count: int) -> None:
        extent = {"max_new_tokens": count, "min_new_tokens": count, "seed": 1}
        options = Options(**{**config.sampling(), **extent})
        request = Request(prompt, [], prompt, options, {}, [])
        written = [0] * rows
        for index, text, _ in poet.poems(request, rows, scored=False):
            written[index] += len(text)
        _wait(device)

    return run


def int8_runner(model: GPT, library: ctypes.CDLL | None = None) -> Runner | None:
    """同上，权重量化成 int8；这台机器没有 int8 矩阵乘时为 None。"""
    import torch

    import checkpoint
    from kernels import int8

    if int8.fast_problem():
        print(f"int8：{int8.fast_problem()}", file=sys.stderr)
        return None
    weights = int8.quantize_weights(checkpoint.weights_of(model))
    small = checkpoint.rebuild_int8(model.config, {"weights": weights})
    return our_runner(small, torch.device("cpu"), library=library)


def measure(runners: dict) -> dict:
    """轮流跑，各取最好的一次（机器有别的负载时，最好的一次最接近真实）。"""
    result = {}
    for rows in BATCHES:
        seconds = _best(runners, rows, NEW_TOKENS, REPEATS)
        for name, value in seconds.items():
            result[f"{name}tokens_per_s_batch{rows}"] = round(rows * NEW_TOKENS / value, 1)
    for rows in BATCHES:
        seconds = _best(runners, rows, 1, 4 * REPEATS)
        for name, value in seconds.items():
            result[f"{name}first_token_ms_batch{rows}"] = round(1000 * value, 2)
    return result


def _best(runners: dict[str, Runner], rows: int, count: int, repeats: int) -> dict[str, float]:
    for run in runners.values():
        run(rows, min(count, 5))
    seconds = {name: [] for name in runners}
    for _ in range(repeats):
        for name, run in runners.items():
            start = time.perf_counter()
            run(rows, count)
            seconds[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in seconds.items()}


def read_bandwidth(model: GPT, device: torch.device) -> float:
    """这台机器顺序读同样大小内存的速度（字节每秒）：矩阵乘向量，取中位数。"""
    import torch

    matrix = torch.ones(model.matrix_parameters() // 1024, 1024, device=device)
    vector = torch.ones(1024, device=device)
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        torch.mv(matrix, vector)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return matrix.numel() * 4 / statistics.median(seconds[5:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def show_generate(result: dict) -> None:
    """给人看的表。"""
    print(f"{'':14}{'1 首 token/s':>14}{'8 首 token/s':>14}{'首 token ms':>14}")
    for name, title in _RUNNERS:
        if f"{name}tokens_per_s_batch1" in result:
            print(
                f"{title:14}{result[f'{name}tokens_per_s_batch1']:>14}"
                f"{result[f'{name}tokens_per_s_batch8']:>14}"
                f"{result[f'{name}first_token_ms_batch1']:>14}"
            )
    print(
        f"每个 token 读 {result['weight_mb_per_token']} MB 权重，"
        f"达到内存读取速度（{result['memory_gb_per_s']} GB/s）的 {result['bandwidth_share']:.0%}"
        + ("，多半在缓存里" if result["bandwidth_share"] > 1 else "")
    )


# ── train、learn ──────────────────────────────────────────────────────


def train() -> dict:
    """训练速度：WORK_DIR 的 dataset.bin 上训练一小会儿（SECONDS，默认 60 秒），不写任何文件。"""
    from training import timed

    seconds = 60.0 if config.SECONDS == DEFAULT_SECONDS else config.SECONDS
    values = {**config.values(), "INIT": "random"}  # 测的是速度，不算起点的几秒
    return timed.timed_run(values, seconds).speed()


LEARN = {  # 十分钟里学得最多的设置；README 的模型形状不变
    "ACCUM_STEPS": 1,
    "BATCH_SIZE": 8,
    "DROPOUT": 0.0,
    "DECAY_SHARE": 0.6,
    "GROW_AT": 0.8,
}


def learn() -> dict:
    """从零训练 SECONDS 秒，写 best_model.bin，报告验证集的每字比特。"""
    import checkpoint
    from training import resume, timed, validation

    values = config.values()
    given = {name: values[name] for name in config.given() if name in LEARN}
    made = timed.timed_run({**values, **LEARN, **given}, config.SECONDS)
    run, result = made.run, made.speed()
    run.position.best.val_bpc = result["bits_per_char"] = validation.bits_per_char(run)
    best = files.work_path(config.WORK_DIR, artefacts.BEST_MODEL)
    aside = files.keep_aside(best)
    if aside is not None:
        print(f"已有的 {best.name} 改名为 {aside.name}")
    checkpoint.save(best, resume.state_of(run, full=False))
    rates = ("LEARNING_RATE", "MUON_LR", "CHAR_LR", "OPTIMIZER", "WEIGHT_DECAY")
    shown = (*LEARN, "SAMPLED_SOFTMAX", *rates, "MAX_SEQ_LEN")
    result["settings"] = {name: run.values[name] for name in shown}
    return result


# ── data ──────────────────────────────────────────────────────────────

DATA_STEPS = (  # 名字, 脚本, 读的文件（空 = 原始诗歌）
    ("clean", "data_clean.py", ""),
    ("hug_tokenizer", "hug_face_tokenizer.py", artefacts.POEMS),
    ("bpe_tokenizer", "train_BPEtokennizer.py", artefacts.POEMS),
    ("dataset_one", "train_dataset_one.py", artefacts.POEMS),
    ("dataset_all", "train_dataset_all.py", artefacts.POEMS),
)


def data() -> dict:
    """数据各步的速度：在临时目录里把脚本依次跑一遍，每秒多少首、多少 MB。"""
    import dataset
    from poems import collection

    raw = files.find_input(config.RAW_DATA, config.WORK_DIR)
    if raw is None:
        raise UserError(f"没有找到 RAW_DATA={config.RAW_DATA}，不知道用什么诗来测。")
    result, root = {}, Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--WORK_DIR={folder}", f"--RAW_DATA={raw.resolve()}"]
        options += [f"--VOCAB_SIZE={config.VOCAB_SIZE}"]
        poems = 0
        for name, script, source in DATA_STEPS:
            spent = spend([sys.executable, str(root / script), *options])
            if spent.failed:
                raise UserError(f"{script} 没有成功，原因见上。")
            seconds = spent.seconds
            poems = poems or sum(1 for _ in collection.iter_poems(collection.find(folder)))
            size = _size(Path(folder) / source if source else raw) / 1e6
            result[f"{name}_seconds"] = round(seconds, 2)
            if spent.peak_mb:
                result[f"{name}_cpu_seconds"] = round(spent.cpu_seconds, 2)
                result[f"{name}_peak_mb"] = round(spent.peak_mb)
            result[f"{name}_poems_per_s"] = round(poems / seconds, 1)
            result[f"{name}_mb_per_s"] = round(size / seconds, 3)
        began = time.perf_counter()
        dataset.load(Path(folder) / artefacts.DATASET).close()
        result["dataset_open_seconds"] = round(time.perf_counter() - began, 4)
    result.update(poems=poems, raw_mb=round(_size(raw) / 1e6, 1))
    return result


class Spent(NamedTuple):
    """一个子进程用了多少；系统不说的（Windows）是 0。"""

    failed: bool
    seconds: float
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0


def spend(command: list[str]) -> Spent:
    """运行一个子进程，看它用了多少。"""
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    if not hasattr(os, "wait4"):
        return Spent(child.wait() != 0, time.perf_counter() - began)
    _, child.returncode, used = os.wait4(child.pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss：macOS 是字节，别处是 KiB
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 1e6
    return Spent(child.returncode != 0, time.perf_counter() - began, cpu, peak)


def _size(path: Path) -> int:
    """文件或整个文件夹的字节数。"""
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def pairs() -> dict:
    """盲评的卷子：验证诗的题目，README 的抽样对 auto，各写一首，打乱成对。"""
    import evaluate

    return evaluate.write_pairs()


def study() -> dict:
    """哪种训练的做法更好：小样上比配方，做过的不重做。"""
    from training import proxy, verdict
    from training import study as studying

    base = {name: getattr(config, name) for name in config.given() if name not in STUDY_OWN}
    recipes = studying.choose(config.RECIPES, config.read, base)
    seeds = [int(seed) for seed in config.SEEDS.split(",")]
    size = proxy.SIZES[config.STUDY]
    if "VOCAB_SIZE" in config.given():  # 词表是小样的，不是配方的：换了就是另一份小样
        size = size._replace(vocab=config.VOCAB_SIZE)
    small = proxy.prepare(config.WORK_DIR, config.STUDY, size)
    print(f"小样：{small.folder}，一遍 {small.tokens / 1e6:.2f} M token，{small.size.passes} 遍")
    rows = studying.carry_out(small, config.values(), recipes, seeds)
    found = verdict.verdicts(rows)
    print(verdict.table(found))
    picture = small.folder / artefacts.STUDY_PICTURE
    verdict.draw(found, picture)
    return {
        "rows": str(small.folder / artefacts.STUDY_TABLE),
        "picture": str(picture) if picture.exists() else None,
        **{each.name: each.gain and round(each.gain.value, 4) for each in found},
    }


def curve() -> dict:
    """train_log.csv → docs/curves/ 里的参照；已有的改名留着。"""
    from training import reference

    folder = Path(config.WORK_DIR)
    out = Path(config.OUT or reference.FOLDER / f"{folder.resolve().name}.csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    files.keep_aside(out)
    return {"out": str(out), **reference.collect(folder, out)}


# ── 入口：名字 → 函数，各自返回要打印成 JSON 的 dict ─────────────────

COMMANDS = {
    "train": train,
    "learn": learn,
    "generate": generate,
    "study": study,
    "curve": curve,
    "data": data,
    "pairs": pairs,
}


def main() -> None:
    """按名字测速。"""
    threads.wait_briefly()  # 同训练；要在导入 PyTorch 之前
    chosen = config.load(__doc__, positional=(("项目", tuple(COMMANDS)),))
    if not chosen:
        raise UserError(f"请写明测什么：python benchmark.py {' | '.join(COMMANDS)}")
    print(json.dumps(COMMANDS[chosen[0]](), ensure_ascii=False))


if __name__ == "__main__":
    console.run(main)
