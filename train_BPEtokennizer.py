"""训练自己的 BPE 分词器：WORK_DIR/all_poems.json → WORK_DIR/tokenizer_bpe.json。

算法在 tokenizer.py；学到的合并和 hug_face_tokenizer.py 的一样，文件格式也一样。
先运行 data_clean.py；之后运行 train_dataset_one.py --TOKENIZER=bpe。
"""

from __future__ import annotations

from support import console, interpreter

if __name__ == "__main__":
    interpreter.begin(("tokenizers", "numpy", "tqdm"))

import time
from pathlib import Path

import config
import hug_face_tokenizer
from poems import collection
from support import artefacts, files, lock
from tokenizer import BPETokenizer, HFTokenizer


def train(
    poems: Path, chosen: hug_face_tokenizer.Chosen, vocab_size: int, special_tokens: list[str]
) -> BPETokenizer:
    """在 poems 里选中的诗的题目、作者、正文上训练，带进度条。"""
    made = BPETokenizer(special_tokens)
    bar = None

    def on_token(size: int) -> None:
        nonlocal bar
        if bar is None:  # 读完诗、学到第一个合并时才出现
            bar = console.progress(vocab_size, "学合并", "个", initial=size - 1)
        bar.update()

    try:
        return made.train(hug_face_tokenizer.training_texts(poems, chosen), vocab_size, on_token)
    finally:
        if bar is not None:
            bar.close()


def compare(made: BPETokenizer, path: Path) -> None:
    """已有 tokenizer_hug.json 时，说明两者是否相同。"""
    if not path.is_file():
        return
    try:
        same = HFTokenizer.load(path).fingerprint == made.fingerprint
    except (OSError, ValueError) as error:
        print(f"没有与 {path} 对照：{error}")
        return
    why = "语料、VOCAB_SIZE、VAL_SHARE 或 SEED 不一样时如此"
    print(f"与 {path} " + ("逐条相同" if same else f"不同（{why}）"))


def main() -> None:
    config.load(__doc__)
    started = time.monotonic()
    poems = collection.find_cleaned(config.WORK_DIR)
    tokens = hug_face_tokenizer.special_tokens()
    with lock.writing(config.WORK_DIR):
        chosen = hug_face_tokenizer.choose(poems)
        made = train(poems, chosen, config.VOCAB_SIZE, tokens)
        seconds = time.monotonic() - started
        hug_face_tokenizer.save(made, files.work_path(config.WORK_DIR, artefacts.TOKENIZER_BPE))
    hug_face_tokenizer.print_report(made, poems, seconds)
    compare(made, Path(config.WORK_DIR) / artefacts.TOKENIZER_HUG)


if __name__ == "__main__":
    console.run(main)
