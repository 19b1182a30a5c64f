"""导出模型，让它在别的工具里直接运行；也能把 Hugging Face 目录导回成检查点。

  python export.py --FORMAT=hf           → export_hf/    transformers、vLLM 直接加载
  python export.py --FORMAT=gguf         → export_gguf/  llama.cpp、Ollama 直接加载
  python export.py --FORMAT=checkpoint   → checkpoint_imported.bin（--CHECKPOINT=<hf 目录>）

需要：pip install -r requirements-extra.txt
"""

from __future__ import annotations

from support import console, interpreter

if __name__ == "__main__":
    interpreter.begin()

import contextlib
import os
import shutil
from pathlib import Path
from typing import Iterator

import checkpoint
import config
from support import artefacts, files, lock
from support.console import UserError
from writing import gguf_file, hugging_face

DEFAULT_OUT = {
    "hf": artefacts.EXPORT_HF,
    "gguf": artefacts.EXPORT_GGUF,
    "checkpoint": artefacts.IMPORTED,
}
WRITERS = {"hf": hugging_face.write, "gguf": gguf_file.write}


def sampling_from_config() -> dict:
    """采样设置，只用别的程序也有的那些选项：SAMPLER=auto 时是不稳住标点也写得最好的一套。"""
    return config.sampling(portable=True)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """给出一个临时目录，写完才改名为 target；已有的 target 改名留在旁边，出错时原样不动。"""
    target = Path(target)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        say_aside(files.keep_aside(target))
        files.replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"写不了 {target}：{error}\n旧的输出没有被覆盖。请检查磁盘空间与目录权限，再运行一次"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def say_aside(aside: Path | None) -> None:
    """说明旧文件改名到了哪里。"""
    if aside is not None:
        print(f"原有的同名输出改名为 {aside}")


def export_folder(kind: str, source: Path, target: Path) -> None:
    """检查点 → Hugging Face 目录或 GGUF 目录。"""
    state = checkpoint.load(source)
    checkpoint.rebuild(state)  # 形状、词表对不上的检查点在写出任何东西之前就拒绝
    with lock.writing(target.parent), new_folder(target) as folder:
        WRITERS[kind](folder, state, sampling_from_config())
    print(f"已把 {source} 导出到 {target}")


def import_folder(source: Path, target: Path) -> None:
    """Hugging Face 目录 → 检查点。"""
    if not (source / "config.json").is_file():
        raise UserError(
            f"{source} 不是 Hugging Face 目录（里面没有 config.json）\n"
            "请运行：python export.py --FORMAT=checkpoint --CHECKPOINT=<目录>"
        )
    state = hugging_face.read(source)
    aside = files.unused(target) if target.exists() else None
    with lock.writing(target.parent):
        checkpoint.save(target, state, aside)
    say_aside(aside)
    print(f"已把 {source} 导入为 {target}\n接下来：python infere.py --CHECKPOINT={target}")


def main() -> None:
    config.load(__doc__)
    kind = config.FORMAT
    target = files.work_path(config.WORK_DIR, config.OUT or DEFAULT_OUT[kind])
    if kind == "checkpoint":
        given = config.CHECKPOINT or DEFAULT_OUT["hf"]
        source = files.find_input(given, config.WORK_DIR)
        if source is None:
            raise UserError(
                f"没有找到 Hugging Face 目录 {given}\n"
                "请运行：python export.py --FORMAT=checkpoint --CHECKPOINT=<目录>"
            )
        return import_folder(source, target)
    export_folder(kind, checkpoint.find(config.WORK_DIR, config.CHECKPOINT), target)
    if kind == "hf":
        print(f'接下来：AutoModelForCausalLM.from_pretrained("{target.as_posix()}")')
    else:
        print(f"接下来：cd {target}，然后 ollama create poem -f Modelfile，ollama run poem")
    return None


if __name__ == "__main__":
    console.run(main)
