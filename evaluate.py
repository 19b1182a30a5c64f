"""评测：python evaluate.py [--CHECKPOINT=a.bin[,b.bin]] [--DATA=poems.json]

先给表格，最后一行是一个 JSON 对象。bits_per_char：只给题目时，正文与结束符的 −log2 p 之和 ÷ 字数
（换行也算字；整首放不进上下文的跳过）。再用验证诗的题目写诗，看重复、收尾、行长与抄袭。
默认用 dataset.bin 的验证集；DATA 文件原样使用，不清洗。两个检查点用逗号隔开，并排比较。
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import checkpoint
import config
import dataset
from gpt import GPT
from poems import chat_format, collection, wording
from support import artefacts, console, files, hardware
from support.console import UserError
from tokenizer import HFTokenizer
from training import validation
from writing import originality
from writing.originality import CopyIndex
from writing.poet import Poet

SAMPLES = 32  # 写几首来看
ROWS = 8  # 同时写几首
COPY_CHARS = 12  # 相同片段达到这么多字，算这首诗有抄


# ── 验证诗 ────────────────────────────────────────────────────────────


def validation_poems(data: dataset.PoemDataset) -> list:
    """dataset.bin 验证集里的诗（title、author、para），长诗的各篇接回一首。"""
    tok = HFTokenizer.from_json(data.tokenizer_json)
    found, parts, done = [], [], set()
    for number in range(*data.range("val")):
        ids, _, poem = data.document(number)
        parts.append(data.body_text(number, tok))
        if ids[-1] != tok.end_id:
            continue
        text, parts = "".join(parts), []
        if poem not in done:  # 验证集就是训练集时，一首诗可能配了几种提示词
            done.add(poem)
            found.append({**data.poem_info(poem), "para": [text]})
    return found


def load_poems(work_dir: str, given: str = "") -> tuple:
    """(诗的列表, 给人看的来源)。"""
    if given:
        path = files.find_input(given, work_dir)
        if path is None:
            raise UserError(f"没有找到 DATA={given}（当前目录和 {work_dir} 里都没有）")
        return list(collection.iter_poems(path)), str(path)
    data = dataset.load(Path(work_dir) / artefacts.DATASET)
    if data.val_is_train:
        return validation_poems(data), "dataset.bin 的训练诗（没有验证集）"
    return validation_poems(data), "dataset.bin 的验证集"


# ── 比特每字 ──────────────────────────────────────────────────────────


def score(
    model: GPT,
    tok: HFTokenizer,
    poems: list,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> dict:
    """模型对这些诗的 bits_per_char、perplexity（每 token）、poems、skipped、chars、tokens。"""
    chat, limit = chat_format.ChatFormat(tok), model.config.max_seq_len
    bodies = [chat_format.body(poem) for poem in poems]
    questions = tok.encode_batch([chat_format.question_text(poem["title"]) for poem in poems])
    documents, chars = [], 0
    for text, question, answer in zip(bodies, questions, tok.encode_batch(bodies)):
        document = chat.document(question, answer)
        if text and len(document[0]) <= limit:
            documents.append(document)
            chars += len(text)
    if not documents:
        raise UserError(f"{len(poems)} 首诗里没有一首放得进 {limit} 个 token 的上下文，无法评测")
    longest = max(len(ids) for ids, _ in documents)
    budget = max(longest, min(8 * limit, 4096))
    arrays = [tuple(map(np.asarray, pair)) for pair in documents]
    nats = validation.document_nats(model, arrays, budget=budget, device=device, dtype=dtype)
    total, tokens = float(nats.sum()), sum(sum(mask) for _, mask in documents)
    return {
        "bits_per_char": validation.bits(total) / chars,
        "perplexity": math.exp(min(700.0, total / tokens)),
        "poems": len(documents),
        "skipped": len(poems) - len(documents),
        "chars": chars,
        "tokens": tokens,
    }


# ── 写出来的诗 ────────────────────────────────────────────────────────


def write_poems(poet: Poet, titles: list, seed: int, **options: object) -> tuple:
    """每个题目写一首：(文字的列表, 自己收尾的首数)；太长的题目跳过。"""
    wanted = []
    for number, title in enumerate(titles, seed):
        with contextlib.suppress(UserError):
            wanted.append(poet.request(title, seed=number, **options))
    written = poet.write_all(wanted, ROWS)
    ended = sum(each.finish_reason == "stop" for each in written)
    return [each.text for each in written], ended


def shape_of(texts: list) -> dict:
    """一组诗的样子：distinct-1/2、重复行、行数、行长（字）。"""
    lines = [wording.verse_lines(text) for text in texts]
    count = sum(map(len, lines))
    repeated = sum(len(part) - len(set(part)) for part in lines)
    lengths = [len(line) for part in lines for line in part]
    return {
        "distinct_1": _distinct(texts, 1),
        "distinct_2": _distinct(texts, 2),
        "repeated_lines": repeated / count if count else 0.0,
        "lines": count / len(texts) if texts else 0.0,
        "line_chars": sum(lengths) / count if count else 0.0,
        "line_chars_sd": _deviation(lengths),
    }


def _distinct(texts: list, size: int) -> float:
    """不同的字（或相邻字对）占全部的比例，逐首平均。"""
    shares = []
    for text in texts:
        plain = "".join(text.split())
        grams = Counter(plain[i : i + size] for i in range(len(plain) - size + 1))
        if grams:
            shares.append(len(grams) / sum(grams.values()))
    return sum(shares) / len(shares) if shares else 0.0


def _deviation(values: list) -> float:
    if not values:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def copies_of(texts: list, index: CopyIndex | None) -> dict:
    """有抄的诗所占的份额、最长相同片段的平均与最大字数；没有索引时都是 None。"""
    if index is None or not texts:
        return dict.fromkeys(("copied_share", "longest_copy_mean", "longest_copy"))
    lengths = [index.longest_copy(text).length for text in texts]
    return {
        "copied_share": sum(length >= COPY_CHARS for length in lengths) / len(lengths),
        "longest_copy_mean": sum(lengths) / len(lengths),
        "longest_copy": max(lengths),
    }


def copy_index(work_dir: str) -> CopyIndex | None:
    """查抄索引；没有 dataset.bin 时为 None。"""
    if not (Path(work_dir) / artefacts.DATASET).is_file():
        return None
    return originality.load(work_dir)


# ── 汇总 ──────────────────────────────────────────────────────────────


def evaluate(
    path: Path,
    poems: list,
    *,
    device: torch.device,
    dtype: torch.dtype,
    index: CopyIndex | None,
    seed: int,
    options: dict,
) -> dict:
    """一个检查点的全部指标。"""
    state = checkpoint.load(path)
    model, tok = checkpoint.rebuild(state, device)
    result = {"checkpoint": str(path), **score(model, tok, poems, device, dtype)}
    poet = Poet(model, tok, state["prompt_kinds"], path)
    every = max(1, len(poems) // SAMPLES)
    titles = [poem["title"] for poem in poems[::every] if poem["title"].strip()][:SAMPLES]
    texts, ended = write_poems(poet, titles, seed, **options)
    result.update(written=len(texts), ended_share=ended / max(1, len(texts)))
    return {**result, **shape_of(texts), **copies_of(texts, index)}


_ROWS = (
    ("bits_per_char", "比特每字", "{:.4f}"),
    ("perplexity", "困惑度（每 token）", "{:.2f}"),
    ("poems", "评了几首", "{}"),
    ("skipped", "太长跳过", "{}"),
    ("written", "写了几首", "{}"),
    ("ended_share", "自己收尾", "{:.0%}"),
    ("distinct_1", "distinct-1", "{:.3f}"),
    ("distinct_2", "distinct-2", "{:.3f}"),
    ("repeated_lines", "重复行", "{:.1%}"),
    ("lines", "每首行数", "{:.1f}"),
    ("line_chars", "每行字数", "{:.1f}"),
    ("line_chars_sd", "每行字数的标准差", "{:.1f}"),
    ("copied_share", f"有 {COPY_CHARS} 字以上与训练诗相同", "{:.0%}"),
    ("longest_copy_mean", "最长相同片段的平均字数", "{:.1f}"),
    ("longest_copy", "最长相同片段", "{}"),
)


def table(results: list, real: dict) -> str:
    """并排的表：每个检查点一列，最后一列是验证诗本身。"""
    heads = ["", *(Path(result["checkpoint"]).name for result in results), "验证诗"]
    rows = [heads]
    for key, name, form in _ROWS:
        cells = [_cell(result.get(key), form) for result in (*results, real)]
        rows.append([name, *cells])
    widths = [max(map(console.width, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(console.pad, row, widths)).rstrip() for row in rows)


def _cell(value: float | None, form: str) -> str:
    return "—" if value is None else form.format(value)


def main() -> None:
    """评测一个或两个检查点。"""
    config.load(__doc__)
    names = [name.strip() for name in config.CHECKPOINT.split(",") if name.strip()] or [""]
    if len(names) > 2:
        raise UserError(f"CHECKPOINT 里有 {len(names)} 个文件；一次最多比较 2 个")
    paths = [checkpoint.find(config.WORK_DIR, name) for name in names]
    device = hardware.pick_device(config.DEVICE)
    dtype = hardware.pick_dtype("fp32" if config.DTYPE == "auto" else config.DTYPE, device)
    poems, source = load_poems(config.WORK_DIR, config.DATA)
    print(f"用 {source}：{len(poems)} 首")
    options = {**config.sampling(), "context": "stop"}
    warnings.simplefilter("ignore", UserWarning)
    index = copy_index(config.WORK_DIR)
    results = [
        evaluate(
            path,
            poems,
            device=device,
            dtype=dtype,
            index=index,
            seed=config.SEED,
            options=options,
        )
        for path in paths
    ]
    real = shape_of([chat_format.body(poem) for poem in poems])
    print(table(results, real))
    summary = {**results[0], "data": source, "validation": real}
    if len(results) > 1:
        summary["compared"] = results[1]
    print(json.dumps(summary, ensure_ascii=False))


if __name__ == "__main__":
    console.run(main)
