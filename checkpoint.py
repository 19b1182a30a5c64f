"""检查点：唯一知道文件里有什么、怎样安全写入、怎样验证与重建的地方。

文件是 torch.save 的普通类型（weights_only=True 可读），整个文件的 SHA-256 写在 zip 注释里：
torch.load 不验 CRC，任何一位翻转都要在这里被发现。
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Iterable, TypedDict

import torch

from gpt import GPT, GPTConfig
from kernels import int8
from support import console, files
from support.artefacts import BEST_MODEL, BOX, CHECKPOINT, CHECKPOINT_PREVIOUS
from support.console import UserError
from tokenizer import HFTokenizer

VERSION = 1
BOX_FILE = Path(__file__).resolve().parent / BOX  # 随附的模型；可能没有
_MODELS = (BEST_MODEL, CHECKPOINT, CHECKPOINT_PREVIOUS)  # 推理时先后找哪个
_SEAL = b"sha256:"
_NO_ROOM = "写到一半写不下去了，多半是磁盘满了。请腾出空间，再运行同一条命令"
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


_REQUIRED = {
    "version": int,
    "model_config": dict,
    "weights": dict,
    "tokenizer": str,
    "prompt_kinds": list,
    "config": dict,
}
_TRAINING = {"position": dict, "best": dict, "optimizer": dict, "chosen": dict, "dataset": str}


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


def save(path: Path, state: State, previous: Path | None = None) -> None:
    """原子地写检查点；给了 previous，旧文件改成这个名字留着。

    磁盘满等写不下的情况抛 UserError，旧文件不动。
    """
    path = Path(path)
    state = on_host({"version": VERSION, "sealed": True, **state})
    try:
        with files.atomic_write(path, "w+b", previous=previous) as file:
            torch.save(state, file)
            _seal(file)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_write_error(error):
            raise
        reason = console.explain(error) if isinstance(error, OSError) else _NO_ROOM
        raise UserError(
            f"写不下 {path}（约需 {_bytes_of(state) >> 20} MB{_free(path.parent)}）：{reason}"
            + (f"\n原来的 {path.name} 原样还在。" if path.exists() else "")
        ) from error


def _free(folder: Path) -> str:
    """给人看的剩余空间；目录不在了就不说。"""
    try:
        return f"，磁盘剩 {files.free_bytes(folder) >> 20} MB"
    except OSError:
        return ""


def spare_name(path: Path) -> Path | None:
    """写新检查点时，现在的 path 该改成的名字；它坏了就是 None：不能顶掉完好的上一个。"""
    try:
        _verify(path)
    except UserError:
        return None
    return path.with_name(CHECKPOINT_PREVIOUS)


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
        state = files.read_tensors(path)
    except OSError as error:
        raise UserError(f"读不了 {path}：{error}") from error
    except Exception as error:  # torch.load 对坏文件抛的种类很多，都意味着不能用
        raise DamagedError(f"{path} 读不出来，不是完好的检查点。") from error
    if (
        not isinstance(state, dict)
        or _lacking(state, _REQUIRED)
        or not all(isinstance(value, torch.Tensor) for value in state["weights"].values())
    ):
        raise UserError(f"{path} 不是本项目的检查点（缺少必要的内容，或类型不对）。")
    if state["version"] > VERSION:
        raise UserError(
            f"{path} 的格式版本是 {state['version']}，这份代码只认到 {VERSION}；请更新代码。"
        )
    if state.get("sealed") and not sealed:
        raise DamagedError(f"{path} 的校验摘要不见了，文件被截断或改动过。")
    return state


def _lacking(state: dict, kinds: dict) -> list:
    """没有的、类型不对的各项。"""
    return [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]


def _load_training(path: Path) -> State:
    """读入能接着训练的检查点；只够推理的抛 UserError。"""
    state = load(path)
    lacking = _lacking(state, _TRAINING)
    if lacking or not state["position"]:
        raise UserError(
            f"{path} 不是训练的检查点（{'、'.join(lacking or ['position'])} 没有或不对，"
            f"像是把 {BEST_MODEL}、量化或导入的模型改成了这个名字），不能接着训练；它还能写诗。"
        )
    return state


def _verify(path: Path) -> bool:
    """文件完好；返回它是否带有整文件摘要。"""
    files.must_be_plain(path)
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
    _finish_saving(newest)
    if not newest.exists() and not previous.exists():
        return None
    try:
        return _load_training(newest)
    except UserError as error:
        if not previous.exists():
            raise UserError(
                f"{error}\n也没有 {CHECKPOINT_PREVIOUS} 可用；文件原样保留。\n"
                "从头开始：加上 --RESUME=off"
            ) from error
        state = _load_training(previous)
        if newest.exists():
            aside = files.keep_aside(newest)  # 下次保存时不会顶掉完好的上一个
            warnings.warn(
                f"{error} 它已改名为 {aside.name}；改用上一个检查点 {CHECKPOINT_PREVIOUS}。",
                stacklevel=2,
            )
        return state


def _finish_saving(newest: Path) -> None:
    """上次保存时被杀在改名之前：写完了的 .tmp 就是最新的检查点，没写完的删掉。"""
    left = files.temporary_of(newest)
    if not left.exists():
        return
    try:
        _load_training(left)
    except UserError:
        with contextlib.suppress(OSError):
            left.unlink()
        return
    spare = spare_name(newest) if newest.exists() else None
    if spare is not None:
        files.replace(newest, spare)
    files.replace(left, newest)
    print(f"上次在保存的最后一步被打断：{left.name} 是完整的，已改名为 {newest.name}。")


def find(work_dir: str, given: str = "") -> Path:
    """要用来推理的模型文件：指定的，否则 best_model.bin，否则 checkpoint.bin。"""
    if given:
        path = files.find_input(given, work_dir)
        if path is None:
            raise UserError(f"没有找到模型 {given}（当前目录和 {work_dir} 里都没有）。")
        if path.is_dir():
            inside = models_in(path)
            hint = f"，请写其中的模型：{inside[0]}" if inside else "，里面也没有模型"
            raise UserError(f"{given} 是文件夹{hint}；或用 --WORK_DIR={given}")
        return path
    here = models_in(Path(work_dir))
    if here:
        return here[0]
    raise UserError(
        f"{Path(work_dir).resolve()} 里还没有训练好的模型（{BEST_MODEL}、{CHECKPOINT} 都没有）。\n"
        "请先训练：python train_gpt.py；或先跑一遍样例：python quickstart.py\n"
        "模型在别处：--WORK_DIR=目录；程序里写 config.WORK_DIR = 目录，或 checkpoint=文件"
    )


def find_to_write(work_dir: str, given: str = "") -> Path:
    """写诗用的模型文件：同 find，但没有指定、WORK_DIR 里也没有时，是随附的模型。"""
    if given or models_in(Path(work_dir)) or not BOX_FILE.is_file():
        return find(work_dir, given)
    return BOX_FILE


def models_in(folder: Path) -> list:
    """folder 里能用来推理的模型文件，先用哪个哪个在前。"""
    return [folder / name for name in _MODELS if (folder / name).exists()]


def all_models(folder: Path) -> list:
    """folder 里像模型的全部文件（检查点是 zip，dataset.bin 之类不是），推理先用的在前。"""
    usual = models_in(folder)
    others = sorted(path for path in folder.glob("*.bin") if path not in usual and path.is_file())
    return [*usual, *filter(zipfile.is_zipfile, others)]


# ── 重建 ──────────────────────────────────────────────────────────────


def tokenizer_of(state: State) -> HFTokenizer:
    """检查点自带的分词器；读不了时抛 UserError。"""
    try:
        return HFTokenizer.from_json(state["tokenizer"])
    except ValueError as error:
        raise UserError(f"检查点里的分词器不能用：{error}") from error


def shape_of(state: State) -> GPTConfig:
    """检查点的模型形状；与这份代码对不上时抛 UserError。"""
    try:
        shape = GPTConfig(**state["model_config"])
        problem = shape.problem()
    except TypeError as error:
        problem = str(error)
    if problem:
        raise UserError(
            f"检查点的 model_config 与这份代码对不上（{problem}）：它像是别的版本写的，或被改过。"
            "文件没有动；请换回写它的那份代码，或换一个模型。"
        )
    return shape


def rebuild(state: State, device: str = "cpu") -> tuple:
    """检查点 → (评估模式的 GPT, 分词器)；分词器与模型对不上时抛 UserError。"""
    tokenizer = tokenizer_of(state)
    config = shape_of(state)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"检查点里的分词器有 {tokenizer.vocab_size} 个 token，"
            f"模型却是 {config.vocab_size} 个；这个文件不能用。"
        )
    if state.get("quantized"):
        try:
            model = rebuild_int8(config, state, device)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"检查点的 int8 权重与模型对不上：{error}") from error
    else:
        model = GPT(config)
        load_weights(model, state["weights"])
    return model.to(device).eval(), tokenizer


def rebuild_int8(config: GPTConfig, state: Model, device: str = "cpu") -> GPT:
    """量化检查点 → 模型：能用 int8 矩阵乘时权重保持 int8，否则还原成 fp32。

    device: 模型将要放到的设备；权重与形状不符时抛出 RuntimeError（load_state_dict 的），
    没有量化时抛出它或 ValueError。
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
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"检查点的权重与模型对不上：{error}") from error
