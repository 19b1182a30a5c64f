"""从哪里来的模型都打得开：检查点、int8、别的 WORK_DIR、导出的 Hugging Face 目录 → fp32 的模型。

FROM= 的文件只在这里打开：训练要它的权重与形状，建数据集要它的分词器。
"""

from __future__ import annotations

from pathlib import Path

import checkpoint
from kernels import int8
from support import artefacts, files
from support.console import UserError
from writing import hugging_face

_IN_FOLDER = (
    artefacts.BEST_MODEL,
    artefacts.CHECKPOINT,
    artefacts.CHECKPOINT_PREVIOUS,
    artefacts.MODEL_INT8,
)


def open_model(given: str, work_dir: str, name: str = "FROM") -> checkpoint.Model:
    """名为 name 的配置指的模型；没有、坏了、不是本项目的形状时抛 UserError，什么都不改动。"""
    try:
        return _open(_find(given, work_dir))
    except UserError as error:
        raise UserError(
            f"{name}={given} 不能用（什么都没有改动）：{error}\n"
            f"{name} 可以是 {artefacts.BEST_MODEL}、{artefacts.CHECKPOINT}、"
            f"{artefacts.MODEL_INT8}、另一个 WORK_DIR，或 export.py 导出的 Hugging Face 目录"
        ) from error


def _find(given: str, work_dir: str) -> Path:
    """模型文件，或 Hugging Face 目录。"""
    path = files.find_input(given, work_dir)
    if path is None:
        raise UserError(f"没有找到它（当前目录和 {work_dir} 里都没有）。")
    if not path.is_dir() or (path / "config.json").is_file():
        return path
    for name in _IN_FOLDER:
        if (path / name).is_file():
            return path / name
    raise UserError(f"目录 {path} 里没有模型。")


def _open(path: Path) -> checkpoint.Model:
    state = hugging_face.read(path) if path.is_dir() else checkpoint.load(path)
    model = checkpoint.model_part(state)
    try:
        if model.pop("quantized", None):
            model["weights"] = int8.restore_weights(model["weights"])
        shape = checkpoint.shape_of(model)
        expected = {weight.name: tuple(weight.shape) for weight in shape.weights()}
        found = {name: tuple(value.shape) for name, value in model["weights"].items()}
        words = checkpoint.tokenizer_of(model).vocab_size
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path} 的内容读不懂：{error}") from error
    if found != expected:
        raise UserError(f"{path} 的权重与它自己写的形状对不上。")
    if words != shape.vocab_size:
        raise UserError(f"{path} 的分词器有 {words} 个 token，模型却是 {shape.vocab_size} 个。")
    return model
