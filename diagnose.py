"""检查环境、数据、分词器、数据集、检查点与显存，每一项给出结果和改法；什么也不改动。

python diagnose.py              全面检查，最后说下一步运行什么
python diagnose.py tokenizer    分词器报告：压缩率、切碎的字、真实的 token，自己的 BPE 对照 HF
python diagnose.py memory       预测的训练内存，对照本机 CPU 上真的更新两次
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import config
from support import artefacts, console, files, hardware
from support.console import UserError

OK, WARN, BAD = "ok", "warn", "bad"
_MARKS = {OK: "✓", WARN: "!", BAD: "✗"}
_ASCII_MARKS = {OK: "[ok]", WARN: "[! ]", BAD: "[x ]"}
CARD_GIB = 8  # 没有显卡时，拿这么大的显卡来比
_SCAN_BYTES = 256 << 20  # 诗集最多看这么多字节
_SAMPLE_CHARS = 90
_REPORT_BYTES = 4 << 20  # 分词器报告大约看这么多字节的诗
_COMPARE_CHARS = 200_000  # 逐个编号对照的文字


class Finding(NamedTuple):
    """一项检查的结果；BAD 表示不改就不能往下走。"""

    level: str
    name: str
    text: str
    mend: str = ""


Findings = Iterator[Finding]


# ── 打印 ──────────────────────────────────────────────────────────────


def can_print(text: str, stream=None) -> bool:
    """控制台写不写得出这些字。"""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "ascii"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def render(finding: Finding, marks: dict) -> str:
    """一项结果 → 一两行文字。"""
    line = f"{marks[finding.level]} {finding.name}：{finding.text}"
    if finding.mend:
        line += "".join(f"\n    改法：{part}" for part in finding.mend.split("\n"))
    return line


def run_check(check: Callable[[], Findings]) -> list[Finding]:
    """做一项检查；它自己出的错也变成一项结果。"""
    found = []
    try:
        found.extend(check())
    except UserError as error:
        first, *rest = str(error).split("\n")
        found.append(Finding(BAD, _title(check), first, "\n".join(rest)))
    except ImportError as error:
        found.append(Finding(WARN, _title(check), f"没法查：{error}", "先装好必需的包"))
    except Exception as error:  # 诊断工具自己不能崩
        text = f"这一项没能查成（{type(error).__name__}：{str(error)[:200]}）"
        found.append(Finding(WARN, _title(check), text))
    return found


def _title(check):
    return (check.__doc__ or check.__name__).split("：")[0].strip("。\n ")


# ── 环境 ──────────────────────────────────────────────────────────────


def check_python() -> Findings:
    """Python：版本与位数。"""
    bits = struct.calcsize("P") * 8
    text = f"{platform.python_version()}，{bits} 位，{platform.system()} {platform.machine()}"
    if bits != 64:
        yield Finding(BAD, "Python", text, "PyTorch 只有 64 位的：请安装 64 位 Python")
    else:
        yield Finding(OK, "Python", text)


def check_packages() -> Findings:
    """依赖：requirements.txt 里的必需，requirements-extra.txt 里的可选。"""
    folder = Path(__file__).resolve().parent
    pip = f"{sys.executable} -m pip install -r"
    required = _requirement_problems(folder / "requirements.txt")
    broken = _broken_imports() if not required else ""
    if required:
        yield Finding(BAD, "必需的包", "；".join(required), f"{pip} requirements.txt")
    elif broken:
        mend = f"{pip} requirements.txt --force-reinstall"
        if platform.system() == "Windows":
            mend += "\n缺 DLL 时，安装微软的 Visual C++ 2015–2022 运行库"
        yield Finding(BAD, "必需的包", f"装了却载入不了：{broken}", mend)
    else:
        yield Finding(OK, "必需的包", "齐全")
    optional = _requirement_problems(folder / "requirements-extra.txt")
    if optional:
        text = "；".join(optional) + "（画图、网页、导出等功能会少一些）"
        yield Finding(WARN, "可选的包", text, f"{pip} requirements-extra.txt")
    else:
        yield Finding(OK, "可选的包", "齐全")


def _broken_imports():
    """载入不了的第一个必需的包和原因；都好时为空串。"""
    import importlib

    for name in ("torch", "tokenizers", "numpy", "tqdm"):
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            return f"{name}（{str(error)[:160]}）"
    return ""


def _requirement_problems(path):
    from importlib import metadata

    problems = []
    for line in path.read_text(encoding="utf-8").splitlines():
        spec = line.split("#")[0].split(";")[0].strip()
        found = re.match(r"([A-Za-z0-9_.-]+)(.*)", spec)
        if not found:
            continue
        name, limits = found.groups()
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(f"没有 {name}")
            continue
        if not version_allowed(version, limits):
            problems.append(f"{name} {version} 不合要求 {limits.strip()}")
    return problems


def version_allowed(version: str, limits: str) -> bool:
    """版本号是否满足 ">=2.1,<2.14" 这样的限制（只比数字部分）。"""
    mine = _numbers(version)
    for sign, wanted in re.findall(r"(>=|<|==)\s*([0-9.]+)", limits):
        other = _numbers(wanted)
        size = max(len(mine), len(other))
        left, right = (part + (0,) * (size - len(part)) for part in (mine, other))
        if not {">=": left >= right, "<": left < right, "==": left == right}[sign]:
            return False
    return True


def _numbers(version):
    """版本号开头的数字，如 2.13.0+cpu → (2, 13, 0)。"""
    return tuple(int(part) for part in re.match(r"[0-9.]*", version).group().split(".") if part)


def check_cuda() -> Findings:
    """PyTorch 与 CUDA：驱动、构建、显卡是否配得上。"""
    import torch

    from support import bootstrap

    driver = bootstrap.driver_cuda()
    built = torch.version.cuda
    name = f"PyTorch {torch.__version__}"
    wanted = config.DEVICE == "cuda"
    if driver and built is None and getattr(torch.version, "hip", None) is None:
        text = f"有 NVIDIA 显卡（驱动支持到 CUDA {driver[0]}.{driver[1]}），却装了 CPU 版"
        yield Finding(BAD if wanted else WARN, name, text, cuda_install(driver))
    elif torch.cuda.is_available():
        yield from _check_cards(torch, name)
    elif driver:
        text = f"带 CUDA {built}，但显卡用不了；驱动支持到 CUDA {driver[0]}.{driver[1]}"
        mend = f"更新 NVIDIA 驱动后重启；或换一个构建：\n{cuda_install(driver)}"
        yield Finding(BAD if wanted else WARN, name, text, mend)
    elif wanted:
        yield Finding(BAD, name, "DEVICE=cuda，但没有找到 NVIDIA 驱动", "去掉 --DEVICE=cuda")
    else:
        yield Finding(OK, name, "没有 NVIDIA 显卡，用 CPU")


def cuda_install(driver: tuple) -> str:
    """与驱动配得上的 PyTorch 的安装命令。"""
    from support import bootstrap

    index = bootstrap.TORCH_INDEX + bootstrap.cuda_build(driver)
    return (
        f'{sys.executable} -m pip install --force-reinstall "torch>=2.1,<2.14" --index-url {index}'
    )


def _check_cards(torch, name):
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        built = torch.cuda.get_arch_list()
        text = f"CUDA {torch.version.cuda}，{card.name}，{card.total_memory / 2**30:.1f} GB"
        major = [int(arch.split("_")[1].rstrip("af")) // 10 for arch in built if "_" in arch]
        if major and not min(major) <= card.major <= max(major):
            text += f"；这个构建不支持它的架构 sm_{card.major}{card.minor}"
            yield Finding(WARN, name, text, "换一个 PyTorch 版本（旧卡用旧的，新卡用新的）")
        else:
            yield Finding(OK, name, text)


def check_device() -> Findings:
    """设备与精度：这台机器上的选择。"""
    device = hardware.pick_device(config.DEVICE)
    dtype = hardware.dtype_name(hardware.pick_dtype(config.DTYPE, device))
    native = hardware.native_bf16(device)
    text = f"DEVICE={config.DEVICE} → {device.type}，DTYPE={config.DTYPE} → {dtype}；"
    text += "有 bf16 硬件" if native else "没有 bf16 硬件"
    if config.DTYPE == "bf16" and not native:
        yield Finding(WARN, "设备与精度", text + "，会很慢", "--DTYPE=auto")
    else:
        yield Finding(OK, "设备与精度", text)


def check_compiler() -> Findings:
    """编译：torch.compile 用不用得了。"""
    problem = hardware.compiler_problem(hardware.pick_device(config.DEVICE))
    if problem is None:
        yield Finding(OK, "torch.compile", "可用")
    elif config.COMPILE == "on":
        yield Finding(BAD, "torch.compile", problem, "--COMPILE=auto")
    else:
        mend = "不影响训练，只是慢一些"
        if "C++" in problem:
            mend += "；要快：安装 g++（Linux）或 Visual Studio 的 C++ 生成工具（Windows）"
        elif "Triton" in problem and platform.system() == "Windows":
            mend += "；要快：pip install triton-windows"
        yield Finding(WARN, "torch.compile", f"{problem}，会用普通方式运行", mend)


def check_threads() -> Findings:
    """线程：有几个可用，用几个。"""
    import torch

    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    used, fixed = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS", "")
    text = f"PyTorch 用 {used} 个，可用 {count} 个逻辑处理器"
    if used > count:
        yield Finding(WARN, "线程", text, f"设环境变量 OMP_NUM_THREADS={count}")
    elif fixed and used * 2 < count:
        yield Finding(WARN, "线程", f"{text}（OMP_NUM_THREADS={fixed}）", "去掉 OMP_NUM_THREADS")
    else:
        yield Finding(OK, "线程", text)


def check_disk() -> Findings:
    """磁盘：WORK_DIR 能不能写，放不放得下检查点。"""
    folder = Path(config.WORK_DIR)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        text = f"WORK_DIR={folder} 写不了：{error}"
        yield Finding(BAD, "磁盘", text, "换一个有写权限的目录：--WORK_DIR=…")
        return
    free, one = files.free_bytes(existing), 12 * _parameters(config.VOCAB_SIZE)
    text = f"{existing.absolute()} 剩 {free / 1e9:.1f} GB；一个检查点至多约 {one / 1e9:.2f} GB"
    if free < one:
        yield Finding(BAD, "磁盘", text, "腾出空间，或换一个磁盘：--WORK_DIR=…")
    elif free < 4 * one:
        yield Finding(WARN, "磁盘", text, "训练同时会有三四个这样的文件，请腾出空间")
    else:
        yield Finding(OK, "磁盘", text)


def _parameters(vocab):
    return planned_config(vocab).matrix_parameters()


def check_console() -> Findings:
    """控制台：写不写得出中文。"""
    encoding = getattr(sys.stdout, "encoding", None) or "未知"
    if can_print("诗：春眠不觉晓✓"):
        yield Finding(OK, "控制台", f"编码 {encoding}")
    else:
        windows = "chcp 65001，再 set PYTHONUTF8=1"
        mend = windows if platform.system() == "Windows" else "export PYTHONUTF8=1 LANG=C.UTF-8"
        yield Finding(WARN, "控制台", f"编码 {encoding} 写不出全部文字，缺的显示为 ?", mend)


# ── 数据 ──────────────────────────────────────────────────────────────


def check_raw_data() -> Findings:
    """原始数据：RAW_DATA 在不在，有几个文件。"""
    from poems import sources

    found = files.find_input(config.RAW_DATA, config.WORK_DIR)
    there = sources.find_files(found)[0] if found else []
    if there:
        size = sum(file.size for file in there) / 1e6
        yield Finding(OK, "原始数据", f"{found}：{len(there):,} 个文件，{size:.1f} MB")
        return
    missing = f"{found} 里没有能读的文件" if found else f"没有 {config.RAW_DATA}"
    if any((Path(config.WORK_DIR) / name).exists() for name in ("all_poems.json", "dataset.bin")):
        yield Finding(OK, "原始数据", f"{missing}，已有做好的产物，用不着")
        return
    mend = "把诗放进 RAW_DATA，或指给它：--RAW_DATA=路径\n只想看看效果：python quickstart.py"
    yield Finding(BAD, "原始数据", missing, mend)


def check_poems() -> Findings:
    """诗集：all_poems.json 读得通，有多少诗。"""
    import dataset

    path = Path(config.WORK_DIR) / "all_poems.json"
    if not path.exists():
        return
    read, count, chars = [0], 0, 0

    def on_read(size):
        read[0] += size

    for poem in dataset.iter_poems(path, on_read):
        count += 1
        chars += sum(map(len, poem["para"]))
        if read[0] > _SCAN_BYTES:
            break
    part = f"（只看了前 {read[0] >> 20} MB）" if read[0] > _SCAN_BYTES else ""
    text = f"{count:,} 首，{chars:,} 字{part}"
    if not count:
        yield Finding(BAD, "all_poems.json", "一首诗也没有", "python data_clean.py")
    elif not (path.parent / "clean_report.json").exists():
        yield Finding(WARN, "all_poems.json", f"{text}；好像没有清洗过", "python data_clean.py")
    elif count < 200:
        yield Finding(WARN, "all_poems.json", f"{text}；太少，模型只会背诵", "多放些诗再清洗")
    else:
        yield Finding(OK, "all_poems.json", text)


def _load_tokenizer(path):
    import tokenizer

    try:
        return tokenizer.HFTokenizer.load(path)
    except (OSError, ValueError) as error:
        script = "train_BPEtokennizer.py" if "bpe" in path.name else "hug_face_tokenizer.py"
        raise UserError(f"{path.name} 不能用：{error}\npython {script}") from error


def tokenizer_files() -> list[Path]:
    """WORK_DIR 里的分词器，与 TOKENIZER 另外指定的。"""
    folder = Path(config.WORK_DIR)
    paths = [folder / "tokenizer_hug.json", folder / "tokenizer_bpe.json"]
    if config.TOKENIZER not in ("auto", "hug", "bpe"):
        paths.append(files.find_input(config.TOKENIZER, config.WORK_DIR) or Path(config.TOKENIZER))
    return [path for path in paths if path.is_file()]


def check_tokenizers() -> Findings:
    """分词器：读得通，与配置相符。"""
    if not tokenizer_files():
        return
    expected = [config.PAD, config.IM_START, config.IM_END]
    for path in tokenizer_files():
        tok = _load_tokenizer(path)
        text = f"{tok.vocab_size} 个 token，指纹 {tok.fingerprint[:8]}"
        if tok.names[:3] != expected:
            text += f"；特殊符号是 {' '.join(tok.names[:3])}，与配置不同"
            yield Finding(WARN, path.name, text, "要用配置里的就重新训练分词器")
        elif tok.vocab_size != config.VOCAB_SIZE:
            text += f"；与 VOCAB_SIZE={config.VOCAB_SIZE} 不同，模型以真实大小为准"
            yield Finding(WARN, path.name, text)
        else:
            yield Finding(OK, path.name, text)


# ── dataset.bin ───────────────────────────────────────────────────────


def check_dataset() -> Findings:
    """数据集：完好，与分词器和配置配套，看三篇。"""
    import dataset
    import tokenizer

    path = Path(config.WORK_DIR) / "dataset.bin"
    if not path.exists():
        return
    with dataset.load(path) as data:
        broken = data.verify()
        if broken:
            text = f"校验和不符（{'、'.join(broken)}），文件已损坏"
            yield Finding(BAD, path.name, text, "python train_dataset_one.py")
            return
        head = data.header
        text = f"完好，{head['train_poems']:,} 首训练诗、{head['val_poems']:,} 首验证诗，"
        text += f"{head['train_tokens'] / 1e6:.2f} M token，提示词 {'、'.join(data.prompt_kinds)}"
        yield Finding(OK, path.name, text)
        tok = tokenizer.HFTokenizer.from_json(data.tokenizer_json)
        yield from _dataset_fits(data, tok, path)
        yield Finding(OK, "样本", "【】里是训练的部分" + "".join(_samples(data, tok)))


def _dataset_fits(data, tok, path):
    redo = "python train_dataset_one.py（或 python train_dataset_all.py）"
    longest, limit = data.header["max_seq_len"], config.MAX_SEQ_LEN
    if longest > limit:
        text = f"按 MAX_SEQ_LEN={longest} 做的，比现在的 {limit} 长"
        yield Finding(BAD, "dataset.bin 与配置", text, redo)
    elif longest < limit:
        text = f"按 MAX_SEQ_LEN={longest} 做的，现在是 {limit}：能训练，但长诗切得更碎"
        yield Finding(WARN, "dataset.bin 与配置", text, redo)
    poems = path.with_name("all_poems.json")
    if poems.exists() and poems.stat().st_mtime > path.stat().st_mtime + 1:
        text = "all_poems.json 比 dataset.bin 新"
        yield Finding(WARN, "dataset.bin 与诗集", text, redo)
    names = []
    for file in tokenizer_files():
        try:
            if _load_tokenizer(file).fingerprint == tok.fingerprint:
                names.append(file.name)
        except UserError:
            continue
    if names:
        yield Finding(OK, "dataset.bin 与分词器", f"由 {'、'.join(names)} 编码")
    elif tokenizer_files():
        text = "与现有的分词器文件都不同（文件里自带一份，仍可训练）"
        yield Finding(WARN, "dataset.bin 与分词器", text, redo)


def _samples(data, tok, count=3):
    first, last = data.range("train")
    for number in range(min(count, last - first)):
        index = first + (last - first) * number // count
        ids, mask, _ = data.document(index)
        yield f"\n    {number + 1}. {marked_text(ids, mask, tok)}"


def marked_text(ids, mask, tok) -> str:
    """文档 → 一行文字：训练的部分放在【】里，特殊符号写出名字，换行写作 ⏎，太长的中间略去。"""
    special = {token: name for name, token in tok.special_ids.items()}
    out = []
    pairs = [(int(token), int(bit)) for token, bit in zip(ids, mask)]
    for trained, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        text, waiting = "", []
        for token, _ in run:
            if token in special:
                text += tok.decode(waiting) + special[token]
                waiting = []
            else:
                waiting.append(token)
        text += tok.decode(waiting)
        text = text.replace("\n", "⏎" if can_print("⏎") else "\\n")
        if len(text) > _SAMPLE_CHARS:
            text = f"{text[: _SAMPLE_CHARS - 20]}……{text[-18:]}"
        out.append(f"【{text}】" if trained else text)
    return "".join(out)


# ── 检查点 ────────────────────────────────────────────────────────────


def check_checkpoints() -> Findings:
    """检查点：完好，训练到哪里，与数据集和配置是否配套。"""
    import checkpoint

    folder = Path(config.WORK_DIR)
    states = {}
    for name in (artefacts.BEST_MODEL, artefacts.CHECKPOINT, artefacts.CHECKPOINT_PREVIOUS):
        if not (folder / name).exists():
            continue
        try:
            states[name] = checkpoint.load(folder / name)
            text = _checkpoint_text(states[name], checkpoint.tokenizer_of(states[name]))
            yield Finding(OK, name, text)
        except (UserError, ValueError) as error:
            previous = folder / artefacts.CHECKPOINT_PREVIOUS
            spare = previous.exists() and name == artefacts.CHECKPOINT
            mend = (
                f"再运行一次训练会自动改用 {artefacts.CHECKPOINT_PREVIOUS}"
                if spare
                else "删去或移走它，再训练：python train_gpt.py"
            )
            level = WARN if spare or name == artefacts.CHECKPOINT_PREVIOUS else BAD
            yield Finding(level, name, str(error).split("\n")[0], mend)
    newest = states.get(artefacts.CHECKPOINT)
    if newest is not None:
        yield from _resume_problems(newest, folder / "dataset.bin")


def _checkpoint_text(state, tok):
    model, here, best = state["model_config"], state.get("position"), state.get("best")
    text = f"完好，{model['n_block']} 层 × {model['dim']} 维，词表 {model['vocab_size']}"
    if tok.vocab_size != model["vocab_size"]:
        raise UserError(f"分词器 {tok.vocab_size} 个 token，模型 {model['vocab_size']} 个")
    if here:
        text += f"，第 {here['update']} 次更新"
    if best and best["iter"]:
        text += f"，最佳验证 {best['val_bpc']:.3f} 比特/字（第 {best['iter']} 次迭代）"
    return text


def _resume_problems(state, data_path):
    """现在的配置与数据能不能接着 checkpoint.bin 训练。"""
    import dataset
    from training import loop

    names = [name.upper() for name in loop.FIXED]
    saved, now = state["config"], config.values()
    changed = [
        f"{name} 是 {saved[name]}，现在 {now[name]}"
        for name in names
        if name in saved and saved[name] != now[name]
    ]
    if data_path.exists():
        with dataset.load(data_path) as data:
            if state["dataset"] != data.fingerprint:
                changed.append("dataset.bin 不是训练用的那一份")
    if changed:
        mend = "接着训练：用回原来的值；另起一次：python train_gpt.py --RESUME=off（旧的会留着）"
        yield Finding(WARN, "接着训练", "；".join(changed), mend)
    else:
        yield Finding(OK, "接着训练", "配置、数据集、分词器都与 checkpoint.bin 配套")


# ── 内存 ──────────────────────────────────────────────────────────────


def planned_config(vocab: int | None = None):
    """配置里的模型形状；词表取 dataset.bin 或分词器的真实大小。"""
    import gpt

    return gpt.GPTConfig(
        vocab_size=vocab or _vocab_size(),
        max_seq_len=config.MAX_SEQ_LEN,
        dim=config.GPT_DIM,
        n_head=config.GPT_HEAD,
        ff=config.GPT_FF,
        n_block=config.GPT_BLOCKS,
        rope_theta=config.ROPE_THETA,
        dropout=config.DROPOUT,
    )


def _vocab_size():
    import dataset

    try:
        with dataset.load(Path(config.WORK_DIR) / "dataset.bin") as data:
            return data.header["vocab_size"]
    except UserError:
        pass
    try:
        path = dataset.find_tokenizer(config.WORK_DIR, config.TOKENIZER)
        return _load_tokenizer(path).vocab_size
    except UserError:
        return config.VOCAB_SIZE


def _predict(device, dtype, vocab, grad_checkpoint=None):
    from training import memory

    if grad_checkpoint is None:
        grad_checkpoint = config.GRAD_CHECKPOINT == "on"
    return memory.predict_peak(
        planned_config(vocab),
        _rows_at_once(device),
        config.MAX_SEQ_LEN,
        dtype=dtype,
        optimizer=config.OPTIMIZER,
        grad_checkpoint=grad_checkpoint,
        device=device,
    )


def _rows_at_once(device):
    """一次算几行最长的诗。"""
    from training.batching import split_for

    return -(-config.BATCH_SIZE // split_for(config.BATCH_SIZE * config.MAX_SEQ_LEN, device))


def check_memory() -> Findings:
    """训练内存：预计的峰值放不放得下。"""
    import torch

    from training import memory

    vocab = _vocab_size()
    gib, card = CARD_GIB, f"{CARD_GIB} GB 的显卡"
    dtype = "bf16" if config.DTYPE == "auto" else config.DTYPE
    if torch.cuda.is_available():
        device = torch.device("cuda")
        gib = torch.cuda.get_device_properties(device).total_memory / memory.GIB
        card = f"这张 {gib:.1f} GB 的显卡"
        dtype = hardware.dtype_name(hardware.pick_dtype(config.DTYPE, device))
    peak = _predict("cuda", dtype, vocab)
    text = f"{dtype} 训练预计 {memory.pretty(peak)}，连上下文与碎片约 "
    text += f"{memory.pretty(memory.needed(peak))}；{card}"
    level = BAD if torch.cuda.is_available() and config.DEVICE != "cpu" else WARN
    if memory.fits(peak, gib):
        yield Finding(OK, "显存", f"{text}放得下（估计，没有在显卡上核对过）")
    else:
        yield Finding(level, "显存", f"{text}放不下", _smaller(dtype, vocab, gib))
    if hardware.pick_device(config.DEVICE).type == "cpu":
        yield from _check_ram(vocab)


def _smaller(dtype, vocab, gib):
    """放不下时的改法；先看梯度检查点够不够。"""
    from training import memory

    if config.GRAD_CHECKPOINT == "off":
        less = _predict("cuda", dtype, vocab, grad_checkpoint=True)
        if memory.fits(less, gib):
            return f"--GRAD_CHECKPOINT=on（预计 {memory.pretty(less)}）"
    half = max(1, config.BATCH_SIZE // 2)
    return (
        f"--GRAD_CHECKPOINT=on --BATCH_SIZE={half} --ACCUM_STEPS={config.ACCUM_STEPS * 2}，"
        "仍不够就减小 GPT_DIM 或 GPT_BLOCKS"
    )


def _check_ram(vocab):
    from training import memory

    dtype = hardware.dtype_name(hardware.pick_dtype(config.DTYPE, hardware.pick_device("cpu")))
    peak = _predict("cpu", dtype, vocab)
    text = f"在 CPU 上用 {dtype} 训练，张量预计 {memory.pretty(peak)}"
    free = _free_ram()
    if free is None:
        yield Finding(OK, "内存", text)
        return
    text += f"，可用内存 {memory.pretty(free)}"
    if peak * 1.7 > free:  # glibc 的堆会多占约六成
        yield Finding(WARN, "内存", text, "--GRAD_CHECKPOINT=on，或减小 GPT_DIM、GPT_BLOCKS")
    else:
        yield Finding(OK, "内存", text)


def _free_ram():
    """可用内存（字节）；系统不给时为 None。"""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = re.search(r"MemAvailable:\s*(\d+)", file.read())
    except OSError:
        return None
    return int(found.group(1)) << 10 if found else None


# ── 全面检查 ──────────────────────────────────────────────────────────

SECTIONS = (
    (
        "环境",
        (
            check_python,
            check_packages,
            check_cuda,
            check_device,
            check_compiler,
            check_threads,
            check_disk,
            check_console,
        ),
    ),
    (
        "产物",
        (check_raw_data, check_poems, check_tokenizers, check_dataset, check_checkpoints),
    ),
    ("训练的内存", (check_memory,)),
)


def next_steps(work_dir: str) -> list[str]:
    """产物做到了哪一步 → 接下来的命令。"""
    folder = Path(work_dir)

    def there(*names):
        return any((folder / name).exists() for name in names)

    if there("best_model.bin", "checkpoint.bin"):
        return [
            "python infere.py（对话）",
            "python evaluate.py（评测）",
            "python train_gpt.py（续训）",
        ]
    if there("dataset.bin"):
        return ["python train_gpt.py"]
    if tokenizer_files() and there("all_poems.json"):
        return ["python train_dataset_one.py"]
    if there("clean_report.json") and there("all_poems.json"):
        return ["python hug_face_tokenizer.py"]
    return ["python data_clean.py"]


def overview() -> int:
    """全面检查；有 ✗ 时返回 1。"""
    marks = _MARKS if can_print("✓✗") else _ASCII_MARKS
    worst = []
    for title, checks in SECTIONS:
        print(f"── {title} " + "─" * 40 if can_print("─") else f"== {title}")
        for check in checks:
            for finding in run_check(check):
                print(render(finding, marks), flush=True)
                if finding.level == BAD:
                    worst.append(finding)
    print()
    if worst:
        print(f"先解决 {marks[BAD]} 的 {len(worst)} 项：")
        for finding in worst:
            print(f"  {finding.name}：" + (finding.mend or finding.text).replace("\n", "\n    "))
        return 1
    print("下一步：" + "；".join(next_steps(config.WORK_DIR)))
    return 0


# ── python diagnose.py tokenizer ──────────────────────────────────────


def poem_texts() -> list[str]:
    """WORK_DIR 的诗集（没有就用自带样例）里均匀取出的题目与正文。"""
    import dataset
    from poems import wording

    path = Path(config.WORK_DIR) / "all_poems.json"
    if not path.exists():
        path = Path(__file__).resolve().parent / "sample_poems.json"
    every = path.stat().st_size // _REPORT_BYTES + 1
    poems = itertools.islice(dataset.iter_poems(path), 0, None, every)
    texts = [text for poem in poems for text in (poem["title"], wording.body(poem))]
    share = f"，每 {every} 首取 1 首" if every > 1 else ""
    print(f"文字：{path}{share}，{len(texts) // 2:,} 首，{sum(map(len, texts)):,} 字")
    return texts


def show_token(tok, token: int) -> str:
    """一个 token 给人看的样子：真正的字；不成字的字节写成 <E6 98>。"""
    raw = tok.token_bytes(token)
    if is_whole(raw):
        return repr(raw.decode("utf-8"))[1:-1]
    return "<" + " ".join(f"{byte:02X}" for byte in raw) + ">"


def is_whole(raw: bytes) -> bool:
    """这些字节是不是完整的字。"""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def tokenizer_report() -> int:
    """分词器报告；没有分词器时抛出 UserError。"""
    paths = tokenizer_files()
    if not paths:
        raise UserError(f"{config.WORK_DIR} 里还没有分词器。\n请运行：python hug_face_tokenizer.py")
    texts = poem_texts()
    loaded = [(path, _load_tokenizer(path)) for path in paths]
    for path, tok in loaded:
        print(f"\n── {path.name}")
        _print_tokenizer(tok, texts)
    for path, tok in loaded:
        print(f"\n── 自己的 BPE 与 tokenizers 库，同一个文件 {path.name}")
        _print_same_file(path, tok, texts)
    if len(loaded) > 1:
        print(f"\n── {loaded[0][0].name} 与 {loaded[1][0].name}")
        _print_two_files(loaded[0][1], loaded[1][1], texts)
    return 0


def _print_tokenizer(tok, texts):
    import numpy as np

    from checks import token_stats

    found = token_stats.report(tok, texts)
    counts = np.zeros(tok.vocab_size, dtype=np.int64)
    for start in range(0, len(texts), 1000):
        for ids in tok.encode_batch(texts[start : start + 1000]):
            counts += np.bincount(ids, minlength=tok.vocab_size) if ids else 0
    common_ids = [int(token) for token in np.argsort(-counts, kind="stable")[:20]]
    middle = [int(token) for token in np.linspace(259, tok.vocab_size - 1, 20).astype(int)]
    partial = [t for t in range(259, tok.vocab_size) if not is_whole(tok.token_bytes(t))]
    print(f"词表：{found['vocab_size']} 个，特殊符号 {' '.join(tok.special_ids)}")
    print(f"压缩：每个 token {found['chars_per_token']:.3f} 字")
    print(f"切到几个 token 里的字：{found['split_char_share']:.2%}")
    unused = found["unused_tokens"]
    print(f"这些文字里没用到的 token：{unused}（{unused / tok.vocab_size:.1%}）")
    print("最长的：" + "　".join(repr(text)[1:-1] for text in found["longest_tokens"]))
    print("最常用的：" + "　".join(show_token(tok, token) for token in common_ids))
    if tok.vocab_size > 259:
        print("由早学到的到晚学到的：" + "　".join(show_token(tok, token) for token in middle))
    example = "　".join(show_token(tok, token) for token in partial[:8])
    print(f"不成字的合并：{len(partial)} 个" + (f"，如 {example}" if example else ""))
    line = next((text for text in texts[1::2] if text), "春天")[:40]
    pieces = "|".join(show_token(tok, token) for token in tok.encode(line))
    print(f"例：{pieces}")


def _print_same_file(path, tok, texts):
    from tokenizer import BPETokenizer

    ours = BPETokenizer.load(path)
    some, size = [], 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size >= _COMPARE_CHARS:
            break
    began = time.perf_counter()
    mine = ours.encode_batch(some)
    middle = time.perf_counter()
    theirs = tok.encode_batch(some)
    ended = time.perf_counter()
    different = sum(a != b for a, b in zip(mine, theirs))
    data = sum(len(text.encode("utf-8", "replace")) for text in some) / 1e6
    own, library = data / max(middle - began, 1e-9), data / max(ended - middle, 1e-9)
    same = "编号完全相同" if not different else f"有 {different} 段编号不同！"
    print(f"{len(some):,} 段、{size:,} 字：{same}")
    print(f"编码速度：自己的 {own:.2f} MB/s，库 {library:.2f} MB/s（{library / own:.1f} 倍）")


def _print_two_files(first, second, texts):
    same = "完全相同" if first.fingerprint == second.fingerprint else "不同"
    shared = len(set(first.names) & set(second.names))
    print(f"词表与合并：{same}；共有的 token {shared} 个")
    ids = [sum(map(len, tok.encode_batch(texts))) for tok in (first, second)]
    print(f"同样的文字：{ids[0]:,} 与 {ids[1]:,} 个 token（{ids[1] / max(1, ids[0]) - 1:+.2%}）")


# ── python diagnose.py memory ─────────────────────────────────────────


def memory_report() -> int:
    """预测与实测对照（CPU，不编译）。"""
    from training import memory

    shape = planned_config()
    dtypes = ["fp32", "bf16"] if config.DTYPE == "auto" else [config.DTYPE]
    rows = _rows_at_once("cpu")
    print(
        f"模型 {config.GPT_BLOCKS} 层 × {config.GPT_DIM} 维，词表 {shape.vocab_size}，"
        f"一次算 {rows} × {config.MAX_SEQ_LEN} 个 token；在 CPU 上真的更新两次，请稍等"
    )
    for dtype in dtypes:
        update = memory.Update(
            shape,
            rows,
            config.MAX_SEQ_LEN,
            rows * config.MAX_SEQ_LEN,
            dtype,
            config.OPTIMIZER,
            config.GRAD_CHECKPOINT == "on",
        )
        began = time.perf_counter()
        predicted = memory.predict_peak(**_arguments(update))
        seconds = time.perf_counter() - began
        measured = memory.measure(update)
        row = {
            "dtype": dtype,
            "predicted_mb": predicted >> 20,
            "formula_mb": memory.formula(update) >> 20,
            "measured_mb": measured >> 20,
            "ratio": round(predicted / measured, 3),
        }
        print(
            f"{dtype}：预测 {memory.pretty(predicted)}（{seconds:.1f} 秒），"
            f"实测 {memory.pretty(measured)}，预测 ÷ 实测 = {row['ratio']:.2f}"
        )
        print(json.dumps(row), flush=True)
    return 0


def _arguments(update):
    names = ("config", "rows", "length", "dtype", "optimizer", "grad_checkpoint")
    return {name: getattr(update, name) for name in names}


def main() -> int:
    words = config.load(__doc__, positional=(("项目", ("tokenizer", "memory")),))
    if not words:
        return overview()
    return {"tokenizer": tokenizer_report, "memory": memory_report}[words[0]]()


if __name__ == "__main__":
    console.run(main)
