"""小样：把很长的一次训练缩到 CPU 几分钟跑得完，每 token 的参数与遍数不变。

README 的训练是 1,140 万参数、约 1,280 万 token、16 遍：每个 token 0.9 个参数。小样照这两个比取：
少量的诗、小词表、小模型。诗集抽成互不相交的三份：训练、验证，和谁也没看过、最后才用来评判的一份。
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import NamedTuple

import dataset
from poems import chat_format, collection
from support import artefacts, files
from support.console import UserError
from tokenizer import BPETokenizer, HFTokenizer

_SEED = 42  # 抽哪些诗、哪些作验证；与每次训练的种子无关
_FEWEST = 40  # 诗集至少这么多首


class Size(NamedTuple):
    """一种大小。"""

    poems: int  # 训练的诗
    aside: int  # 验证、评判各多少首
    passes: float  # 过几遍
    vocab: int
    shape: dict  # 模型与批次的配置


def _shape(dim: int, heads: int, blocks: int, length: int, batch: int) -> dict:
    return {
        "GPT_DIM": dim,
        "GPT_HEAD": heads,
        "GPT_FF": 4 * dim,
        "GPT_BLOCKS": blocks,
        "MAX_SEQ_LEN": length,
        "BATCH_SIZE": batch,
        "ACCUM_STEPS": 1,
    }


SIZES = {  # 秒数是一个普通的 CPU 核
    "sketch": Size(160, 100, 16, 600, _shape(32, 2, 2, 256, 8)),  # 一次约一分钟
    "screen": Size(440, 120, 16, 1000, _shape(48, 2, 2, 256, 10)),  # 一次约三分钟
    "confirm": Size(4200, 200, 16, 4000, _shape(96, 3, 3, 512, 16)),  # 入选的再量一次，半小时以上
    # 同 sketch 的模型，诗多少不同、遍数不同：正则化的规则（training/regular.py）由这三种来
    "few": Size(250, 100, 16, 600, _shape(32, 2, 2, 256, 8)),
    "some": Size(4200, 100, 2, 600, _shape(32, 2, 2, 256, 8)),
    "many": Size(20000, 100, 0.5, 600, _shape(32, 2, 2, 256, 8)),
}


class Proxy(NamedTuple):
    """建好的小样。"""

    folder: Path
    name: str
    size: Size
    fingerprint: str  # 训练与验证的 dataset.bin
    tokens: int  # 训练集一遍
    judge: Path  # 评判用的 dataset.bin，里面的诗没有训练也没有验证过


def prepare(work_dir: str, name: str, size: Size) -> Proxy:
    """WORK_DIR 的诗集 → 小样；同一份诗集、同一种大小只建一次，放在以内容命名的文件夹里。"""
    source = collection.find(work_dir)
    key = hashlib.sha256(f"{files.sha256(source)} {size}".encode()).hexdigest()[:8]
    folder = files.work_path(work_dir, artefacts.STUDY) / f"{name}-{key}"
    train, judge = folder / artefacts.DATASET, folder / artefacts.JUDGE
    if not (train.exists() and judge.exists()):
        _build(source, folder, size, (train, judge))
    with dataset.load(train) as data:
        fingerprint, tokens = data.fingerprint, int(data.lengths("train").sum())
    return Proxy(folder, name, size, fingerprint[:12], tokens, judge)


def _build(source: Path, folder: Path, size: Size, outputs: tuple) -> None:
    """抽诗，训练分词器，写出两份 dataset.bin；评判的最后写，它在就是建完了。"""
    poems = list(collection.iter_poems(source))
    if len(poems) < _FEWEST:
        raise UserError(f"{source} 只有 {len(poems)} 首，小样至少要 {_FEWEST} 首。")
    random.Random(_SEED).shuffle(poems)
    share = min(1.0, len(poems) / (size.poems + 2 * size.aside))  # 诗不够就按比例少取
    aside = max(1, round(size.aside * share))
    kept, judged = poems[: round(size.poems * share) + aside], poems[-aside:]
    texts = [
        text
        for poem in kept
        for text in (poem["title"], poem["author"], chat_format.body(poem))
        if text
    ]
    learnt = BPETokenizer().train(texts, size.vocab)
    tok = HFTokenizer.from_json(learnt.to_json())
    folder.mkdir(parents=True, exist_ok=True)
    for chosen, name, val_share, out in (
        (kept, artefacts.POEMS, aside / len(kept), outputs[0]),
        (judged, artefacts.JUDGE_POEMS, 0.0, outputs[1]),
    ):
        files.write_json(folder / name, chosen)
        longest = size.shape["MAX_SEQ_LEN"]
        dataset.build(folder / name, tok, out, val_share=val_share, seed=_SEED, max_seq_len=longest)
