"""分词器报告：压缩率、切碎的字、真实的 token，自己的 BPE 对照 tokenizers 库。"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Union

from checks import files
from checks.finding import Settings
from support import artefacts
from support.console import UserError
from support.interpreter import ROOT

if TYPE_CHECKING:
    from tokenizer import BPETokenizer, HFTokenizer

    Tokenizer = Union[BPETokenizer, HFTokenizer]

_REPORT_BYTES = 4 << 20  # 大约看这么多字节的诗
_COMPARE_CHARS = 200_000  # 逐个编号对照的文字


def poem_texts(settings: Settings) -> list[str]:
    """WORK_DIR 的诗集（没有就用自带样例）里均匀取出的题目与正文。"""
    from poems import chat_format, collection

    path = Path(settings.WORK_DIR) / artefacts.POEMS
    if not path.exists():
        path = ROOT / "sample_poems.json"
    every = path.stat().st_size // _REPORT_BYTES + 1
    poems = itertools.islice(collection.iter_poems(path), 0, None, every)
    texts = [text for poem in poems for text in (poem["title"], chat_format.body(poem))]
    share = f"，每 {every} 首取 1 首" if every > 1 else ""
    print(f"文字：{path}{share}，{len(texts) // 2:,} 首，{sum(map(len, texts)):,} 字")
    return texts


def show_token(tok: Tokenizer, token: int) -> str:
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


def tokenizer_report(settings: Settings) -> int:
    """分词器报告；没有分词器时抛出 UserError。"""
    paths = files.tokenizer_files(settings)
    if not paths:
        problem = f"{settings.WORK_DIR} 里还没有分词器。"
        raise UserError(f"{problem}\n请运行：python hug_face_tokenizer.py")
    texts = poem_texts(settings)
    loaded = [(path, files.load_tokenizer(path)) for path in paths]
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


def _print_tokenizer(tok: HFTokenizer, texts: list[str]) -> None:
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


def _print_same_file(path: Path, tok: HFTokenizer, texts: list[str]) -> None:
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


def _print_two_files(first: HFTokenizer, second: HFTokenizer, texts: list[str]) -> None:
    same = "完全相同" if first.fingerprint == second.fingerprint else "不同"
    shared = len(set(first.names) & set(second.names))
    print(f"词表与合并：{same}；共有的 token {shared} 个")
    ids = [sum(map(len, tok.encode_batch(texts))) for tok in (first, second)]
    print(f"同样的文字：{ids[0]:,} 与 {ids[1]:,} 个 token（{ids[1] / max(1, ids[0]) - 1:+.2%}）")
