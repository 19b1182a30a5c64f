"""检查点：唯一知道文件里有什么、怎样安全写入、怎样验证与重建的地方。

文件是 torch.save 的普通类型（weights_only=True 可读），整个文件的 SHA-256 写在 zip 注释里：
torch.load 不验 CRC，任何一位翻转都要在这里被发现。
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Iterable, TypedDict

import torch

from gpt import GPT, GPTConfig
from kernels import int8
from support import files
from support.artefacts import BEST_MODEL, CHECKPOINT, CHECKPOINT_PREVIOUS
from support.console import UserError
from tokenizer import HFTokenizer

VERSION = 1
_SEAL = b"sha256:"
_COMMENT = len(_SEAL) + 64


class Model(TypedDict, total=False):
    """推理要用的内容：各种模型文件里都有。"""

    version: int  # 文件格式的版本
    sealed: bool  # 写的时候带着整文件摘要
    model_config: dict  # GPTConfig 的各项
    weights: dict  # 名字 → fp32 张量；量化的见 int8.quantize_weights
    quantized: str  # int8.MARK；没有量化的没有这一项
    tokenizer: str  # 分词器的 JSON
    prompt_kinds: list  # 训练过的提示词种类
    config: dict  # 训练时的 config.values()
    dataset: str  # 训练用的 dataset.bin 的指纹
    best: dict  # 最好的一次验证：val_bpc、iter、stale


class State(Model, total=False):
    """一次训练的全部内容；best_model.bin 没有优化器与缩放。"""

    chosen: dict  # 自动选定的 DEVICE、DTYPE、COMPILE
    position: dict  # 训练到了哪里
    optimizer: dict  # 各优化器的状态
    scaler: dict  # fp16 的损失缩放
    split: int  # 一个微批次分几份算；dropout 的种子里有第几份


_REQUIRED = ("version", "model_config", "weights", "tokenizer", "prompt_kinds", "config")


def new_state(config: GPTConfig, weights: dict, tokenizer: str, prompt_kinds: Iterable) -> State:
    """只有模型、没有训练过程的检查点：能推理，不能续训。"""
    return {
        "version": VERSION,
        "model_config": config.to_dict(),
        "weights": weights,
        "optimizer": None,
        "scaler": None,
        "position": {},
        "best": {},
        "tokenizer": tokenizer,
        "prompt_kinds": list(prompt_kinds),
        "config": {},
        "dataset": "",
    }


def model_part(state: State) -> Model:
    """检查点里推理要用的内容。"""
    return {name: value for name, value in state.items() if name in Model.__annotations__}


class DamagedError(UserError):
    """检查点文件不完整或被改动。"""


# ── 写 ────────────────────────────────────────────────────────────────


def weights_of(model: torch.nn.Module) -> dict:
    """模型权重的 fp32 CPU 副本，名字不带任何包装前缀。"""
    return {
        name: value.detach().to("cpu", torch.float32).clone()
        for name, value in model.state_dict().items()
    }


def save(path: Path, state: State, keep_previous: bool = False) -> None:
    """原子地写检查点；keep_previous 时旧文件留作 checkpoint.prev.bin。

    磁盘满等写不下的情况抛 UserError，旧文件不动。
    """
    path = Path(path)
    state = on_host({"version": VERSION, "sealed": True, **state})
    previous = path.with_name(CHECKPOINT_PREVIOUS) if keep_previous else None
    try:
        with files.atomic_write(path, "w+b", previous=previous) as file:
            torch.save(state, file)
            _seal(file)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_write_error(error):
            raise
        need, free = _bytes_of(state) >> 20, files.free_bytes(path.parent) >> 20
        raise UserError(
            f"写不下检查点 {path}（约需 {need} MB，磁盘剩 {free} MB）：{error}\n"
            "旧的检查点原样还在。请腾出空间，再运行同一条命令接着训练。"
        ) from error


def on_host(value: Any) -> Any:
    """普通类型里的张量都搬到内存：先搬，设备上的错误才不会冒充写不下。"""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: on_host(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(on_host, value))
    return value


def _is_write_error(error: RuntimeError) -> bool:
    """torch.save 把写不下的 OSError 说成 RuntimeError。"""
    marks = ("PytorchStreamWriter", "unexpected pos", "inline_container")
    return any(mark in str(error) for mark in marks)


def _seal(file: BinaryIO) -> None:
    """把此前全部内容的摘要写进 zip 结尾的注释（注释长度字段也算在内）。"""
    file.seek(-2, io.SEEK_END)
    if file.read(2) != b"\0\0":
        raise RuntimeError("torch.save 的文件格式变了，无法写入摘要")
    file.seek(-2, io.SEEK_END)
    file.write(_COMMENT.to_bytes(2, "little"))
    file.flush()
    digest = _digest(file, file.tell())
    file.seek(0, io.SEEK_END)
    file.write(_SEAL + digest)


def _digest(file: BinaryIO, length: int) -> bytes:
    """文件前 length 字节的 SHA-256（十六进制）。"""
    file.seek(0)
    total = hashlib.sha256()
    while length > 0:
        piece = file.read(min(length, 1 << 20))
        if not piece:
            break
        total.update(piece)
        length -= len(piece)
    return total.hexdigest().encode()


def _bytes_of(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_bytes_of(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_bytes_of(item) for item in value)
    return len(value) if isinstance(value, str) else 8


# ── 读 ────────────────────────────────────────────────────────────────


def load(path: Path) -> State:
    """验证并读入一个检查点；坏了抛 DamagedError，不是检查点或版本太新抛 UserError。"""
    path = Path(path)
    sealed = _verify(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"读不了 {path}：{error}") from error
    except Exception as error:  # torch.load 对坏文件抛的种类很多，都意味着不能用
        raise DamagedError(f"{path} 读不出来，不是完好的检查点。") from error
    if not isinstance(state, dict) or any(key not in state for key in _REQUIRED):
        raise UserError(f"{path} 不是本项目的检查点（缺少必要的内容）。")
    if state["version"] > VERSION:
        raise UserError(
            f"{path} 的格式版本是 {state['version']}，这份代码只认到 {VERSION}；请更新代码。"
        )
    if state.get("sealed") and not sealed:
        raise DamagedError(f"{path} 的校验摘要不见了，文件被截断或改动过。")
    return state


def _verify(path: Path) -> bool:
    """文件完好；返回它是否带有整文件摘要。"""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - _COMMENT))
            comment = file.read()
            if comment.startswith(_SEAL):
                if _digest(file, size - _COMMENT) != comment[len(_SEAL) :]:
                    raise DamagedError(f"{path} 的内容与它的校验摘要不符，文件已损坏。")
                return True
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise DamagedError(f"{path} 的校验和不符，文件已损坏。")
    except FileNotFoundError as error:
        raise UserError(f"没有找到 {path}。") from error
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise DamagedError(f"{path} 不完整或已损坏。") from error
    except OSError as error:
        raise UserError(f"读不了 {path}：{error}") from error
    return False


def load_newest(work_dir: str) -> State | None:
    """WORK_DIR 里可以接着训练的检查点；最新的坏了就用上一个并警告，一个都没有时为 None。"""
    newest = files.work_path(work_dir, CHECKPOINT)
    previous = newest.with_name(CHECKPOINT_PREVIOUS)
    if not newest.exists() and not previous.exists():
        return None
    try:
        return load(newest)
    except UserError as error:
        if not previous.exists():
            raise UserError(
                f"{error}\n也没有 {CHECKPOINT_PREVIOUS} 可用；文件原样保留。\n"
                "从头开始：加上 --RESUME=off"
            ) from error
        if newest.exists():
            warnings.warn(f"{error} 改用上一个检查点 {CHECKPOINT_PREVIOUS}。", stacklevel=2)
        return load(previous)


def find(work_dir: str, given: str = "") -> Path:
    """要用来推理的模型文件：指定的，否则 best_model.bin，否则 checkpoint.bin。"""
    if given:
        path = files.find_input(given, work_dir)
        if path is None:
            raise UserError(f"没有找到模型 {given}（当前目录和 {work_dir} 里都没有）。")
        return path
    for name in (BEST_MODEL, CHECKPOINT, CHECKPOINT_PREVIOUS):
        path = Path(work_dir) / name
        if path.exists():
            return path
    raise UserError(
        f"{work_dir} 里还没有训练好的模型（{BEST_MODEL}、{CHECKPOINT} 都没有）。\n"
        "请先训练：python train_gpt.py；或先跑一遍样例：python quickstart.py"
    )


# ── 重建 ──────────────────────────────────────────────────────────────


def tokenizer_of(state: State) -> HFTokenizer:
    """检查点自带的分词器。"""
    return HFTokenizer.from_json(state["tokenizer"])


def rebuild(state: State, device: str = "cpu") -> tuple:
    """检查点 → (评估模式的 GPT, 分词器)；分词器与模型对不上时抛 UserError。"""
    tokenizer = tokenizer_of(state)
    config = GPTConfig(**state["model_config"])
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"检查点里的分词器有 {tokenizer.vocab_size} 个 token，"
            f"模型却是 {config.vocab_size} 个；这个文件不能用。"
        )
    if state.get("quantized"):
        model = rebuild_int8(config, state, device)
    else:
        model = GPT(config)
        load_weights(model, state["weights"])
    return model.to(device).eval(), tokenizer


def rebuild_int8(config: GPTConfig, state: Model, device: str = "cpu") -> GPT:
    """量化检查点 → 模型：能用 int8 矩阵乘时权重保持 int8，否则还原成 fp32。

    device: 模型将要放到的设备；权重与形状不符时抛出 RuntimeError（load_state_dict 的）。
    """
    model = GPT(config)
    ragged = any(each.shape[1] % int8.WIDTH for each in config.weights() if each.is_matrix)
    if torch.device(device).type != "cpu" or int8.fast_problem() or ragged:
        model.load_state_dict(int8.restore_weights(state["weights"]))
        return model.eval()
    model.embed = int8.Int8Embedding(config.vocab_size, config.dim)
    int8.install(model)
    model.load_state_dict(state["weights"])
    return model.eval()


def load_weights(model: torch.nn.Module, weights: dict) -> None:
    """严格装入权重；形状或名字不符时抛 UserError。"""
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"检查点的权重与模型对不上：{error}") from error
