"""训练分词器（tokenizers 库）：WORK_DIR/all_poems.json → WORK_DIR/tokenizer_hug.json。

在题目、作者、正文上训练字节级 BPE，词表大小 VOCAB_SIZE，特殊符号编号 0、1、2。
验证的诗（VAL_SHARE、SEED）分词器也不看：诗少时看了，验证分数会比真的好。
诗集大过 TOKENIZER_MB 时只取其中均匀的一部分：内存与时间到此为止，不再随诗集长；
这么多诗里看没看验证的诗没有差别，就不分了。
先运行 data_clean.py；之后运行 train_dataset_one.py 或 train_dataset_all.py。
"""

from __future__ import annotations

from support import console, interpreter

if __name__ == "__main__":
    interpreter.begin(("tokenizers", "numpy", "tqdm"))

import contextlib
import math
import os
import sys
import time
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

import numpy as np
from tokenizers import Tokenizer, trainers

import config
import dataset
import tokenizer
from checks import token_stats
from poems import chat_format, collection
from support import artefacts, files, lock
from support.console import UserError
from tokenizer import BPETokenizer, HFTokenizer

REPORT_MB = 8  # 小结最多看诗集里均匀取的这么多 MB，免得久等


class Chosen(NamedTuple):
    """看诗集里的哪些诗。"""

    share: float = 1.0  # 均匀地取这么大一部分，总有第一首
    left_out: np.ndarray | None = None  # bool (诗数,)：其中不看的；None = 都看


_ALL = Chosen()


def poem_texts(
    path: Path, chosen: Chosen = _ALL, on_read: Callable[[int], object] | None = None
) -> Iterator[str]:
    """逐首给出选中的诗的题目、作者、正文。

    on_read(字节数) 供进度条用；不是合法的 JSON 或缺少字段时抛出 UserError。
    """
    share, left_out = chosen
    for number, poem in enumerate(collection.iter_poems(path, on_read)):
        taken = math.ceil(number * share) < math.ceil((number + 1) * share)
        if taken and (left_out is None or not left_out[number]):
            yield from (poem["title"], poem["author"], chat_format.body(poem))


def share_for(path: Path, most_mb: float) -> float:
    """从诗集里取多大一部分，才不超过 most_mb；0 是不限。"""
    return min(1.0, most_mb * 1e6 / max(path.stat().st_size, 1)) if most_mb else 1.0


def training_texts(path: Path, chosen: Chosen) -> Iterator[str]:
    """poem_texts，带读文件的进度条；一首诗也没有时抛出 UserError。"""
    found = 0
    with console.progress(path.stat().st_size, "读诗", "B", unit_scale=True) as bar:
        for text in poem_texts(path, chosen, bar.update):
            found += bool(text)
            yield text
    if not found:
        raise UserError(f"{path} 里一首诗也没有\n请运行：python data_clean.py")


def train(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str],
    show_progress: bool = False,
) -> HFTokenizer:
    """用 tokenizers 的 BpeTrainer 训练；切词等设定与 BPETokenizer 的文件完全相同。"""
    inner = Tokenizer.from_str(BPETokenizer(special_tokens).to_json())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=0,
        special_tokens=list(special_tokens),
        initial_alphabet=tokenizer.BYTE_CHARS,
        show_progress=show_progress,
    )
    with _one_thread():
        inner.train_from_iterator(tokenizer.short_words(texts), trainer)
    return HFTokenizer(inner)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """tokenizers 只用一个线程：每次合并的工作太碎，分给多个线程反而慢（两核上慢五分之一）。"""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def choose(poems: Path) -> Chosen:
    """说在什么上训练，返回看哪些诗。"""
    share, left_out, part = share_for(poems, config.TOKENIZER_MB), None, " "
    if share < 1:
        part = f" 均匀取出的 {share:.2%}（TOKENIZER_MB={config.TOKENIZER_MB:g}）"
    elif config.VAL_SHARE > 0:
        out = files.work_path(config.WORK_DIR, artefacts.DATASET)
        left_out = dataset.val_side(poems, out, val_share=config.VAL_SHARE, seed=config.SEED)
        if left_out.all():  # 训练的诗都拿走了，剩下的都在原来的验证那一边：只好看
            left_out = None
        else:
            part = f"（验证的 {left_out.sum()} 首不看，VAL_SHARE={config.VAL_SHARE:g}）"
    print(f"在 {poems}{part}上训练，词表 {config.VOCAB_SIZE}…", flush=True)
    return Chosen(share, left_out)


def special_tokens() -> list[str]:
    """配置里的特殊符号，编号依次为 0、1、2；会与普通文字混淆时抛出 UserError。"""
    tokens = [config.PAD, config.IM_START, config.IM_END]
    try:
        BPETokenizer(tokens)
    except ValueError as error:
        raise UserError(f"{error}\n请改 config.py 里的 PAD、IM_START、IM_END。") from error
    return tokens


def save(made: BPETokenizer | HFTokenizer, path: Path) -> None:
    """写分词器文件；已有而内容不同的先改名留下。"""
    text = made.to_json()
    if path.is_file() and path.read_bytes() == text.encode("utf-8"):
        print(f"与已有的 {path} 完全相同，没有改动。")
        return
    aside = files.unused(path) if path.exists() else None
    with files.atomic_write(path, previous=aside) as file:
        file.write(text)
    if aside:
        print(f"原来的分词器改名为 {aside}；用它建的 dataset.bin 与模型都要重做才能配新的。")
    print(f"已写入 {path}")


def print_report(made: BPETokenizer | HFTokenizer, poems: Path, seconds: float) -> None:
    """训练后的小结：词表、压缩率、切碎的字、最长的 token、用时。"""
    share = share_for(poems, REPORT_MB)
    found = token_stats.report(made, poem_texts(poems, Chosen(share)))
    size = f"词表：{found['vocab_size']} 个 token"
    if found["vocab_size"] < config.VOCAB_SIZE:
        size += f"（不到 VOCAB_SIZE={config.VOCAB_SIZE}：诗太少，再没有可以合并的了）"
    print(size)
    sample = f"，均匀取出的 {share:.2%}" if share < 1 else ""
    print(f"压缩：每个 token {found['chars_per_token']:.3f} 字（{found['chars']:,} 字{sample}）")
    print(f"切碎的字：{found['split_char_share']:.2%}；没用到的 token：{found['unused_tokens']}")
    print("最长的 token：" + " ".join(repr(text) for text in found["longest_tokens"][:6]))
    print(f"用时：{console.duration(seconds)}")


def main() -> None:
    config.load(__doc__)
    started = time.monotonic()
    poems = collection.find_cleaned(config.WORK_DIR)
    special = special_tokens()
    with lock.writing(config.WORK_DIR):
        texts = training_texts(poems, choose(poems))
        made = train(texts, config.VOCAB_SIZE, special, sys.stderr.isatty())
        seconds = time.monotonic() - started
        save(made, files.work_path(config.WORK_DIR, artefacts.TOKENIZER_HUG))
    print_report(made, poems, seconds)


if __name__ == "__main__":
    console.run(main)
