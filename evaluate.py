"""评测：python evaluate.py [--CHECKPOINT=a.bin[,b.bin]] [--DATA=poems.json]

先给表格，最后一行是一个 JSON 对象。bits_per_char：只给题目时，正文与结束符的 −log2 p 之和 ÷ 字数
（换行也算字；整首放不进上下文的跳过）。再用验证诗的题目写 --SAMPLES 首，量它们的样子、雷同、切题、
通顺与抄袭，各带 95 % 区间，旁边是人写的那几首。默认用 dataset.bin 的验证集；DATA 文件原样使用，
不清洗。两个检查点用逗号隔开，并排比较；--SWEEP="temperature=0.7,1;sampler=readme,auto"
比较几套抽样。有两列以上时另画一张 evaluate.png。
"""

from __future__ import annotations

from support import console, interpreter

if __name__ == "__main__":
    interpreter.begin()

import contextlib
import itertools
import json
import math
import warnings
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import torch

import checkpoint
import config
import dataset
from gpt import GPT
from poems import chat_format, collection, options
from support import artefacts, files, hardware
from support.console import UserError
from tokenizer import HFTokenizer
from training import validation
from writing import appraisal, measures, originality, pairs
from writing.appraisal import Column, Yardstick
from writing.fluency import Judge
from writing.poet import Poet

ROWS = 8  # 同时写几首
TITLED = 128  # 量切题用几首
TITLED_CHARS = 64  # 各看开头多少字


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
    wrong = data.verify()
    if wrong:
        raise UserError(
            f"{artefacts.DATASET} 已损坏（{'、'.join(wrong)} 与校验和不符）；文件没有动。\n"
            "请重做：python train_dataset_one.py，或换回完好的那一份"
        )
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
    nats = count_nats(model, arrays, "算比特每字", budget=budget, device=device, dtype=dtype)
    total, tokens = float(nats.sum()), sum(sum(mask) for _, mask in documents)
    return {
        "bits_per_char": validation.bits(total) / chars,
        "perplexity": math.exp(min(700.0, total / tokens)),
        "poems": len(documents),
        "skipped": len(poems) - len(documents),
        "chars": chars,
        "tokens": tokens,
    }


def count_nats(model: GPT, documents: list, what: str, **options: Any) -> torch.Tensor:
    """validation.document_nats，带进度条。"""
    total = sum(len(ids) - 1 for ids, _ in documents)
    with console.progress(total, what, "token", unit_scale=True) as bar:
        return validation.document_nats(model, documents, on_done=bar.update, **options)


def title_scorer(
    model: GPT, tok: HFTokenizer, device: torch.device, dtype: torch.dtype
) -> Callable:
    """measures.title_ranks 用的 score：给了题目，正文开头 TITLED_CHARS 字的 ln p。"""
    chat, limit = chat_format.ChatFormat(tok), model.config.max_seq_len

    def score_all(titles: list, texts: list) -> list:
        questions = tok.encode_batch([chat_format.question_text(title) for title in titles])
        answers = tok.encode_batch([text[:TITLED_CHARS] for text in texts])
        documents = []
        for question, answer in zip(questions, answers):
            ids, mask = chat.document(question, answer)
            cut = min(len(ids) - 1, limit)  # 不算结束符
            documents.append((np.asarray(ids[:cut]), np.asarray(mask[:cut])))
        budget = max(4096, limit)
        nats = count_nats(model, documents, "量切题", budget=budget, device=device, dtype=dtype)
        return (-nats).tolist()

    return score_all


# ── 写出来的诗 ────────────────────────────────────────────────────────


class Sample(NamedTuple):
    """写出来的一组诗。"""

    titles: list
    texts: list
    ended: list  # 是不是自己收的尾


def write_poems(poet: Poet, titles: list, seed: int, given: dict, label: str = "") -> Sample:
    """每个题目写一首；太长的题目跳过。label：这套抽样的名字，写在进度条前面。"""
    kept, wanted = [], []
    for number, title in enumerate(titles, seed):
        with contextlib.suppress(UserError):
            wanted.append(poet.request(title, **{**given, "seed": number}))
            kept.append(title)
    with console.progress(len(wanted), f"写诗 {label}".strip()) as bar:
        written = poet.write_all(wanted, ROWS, bar.update)
    ended = [each.finish_reason == "stop" for each in written]
    return Sample(kept, [each.text for each in written], ended)


def chosen_poems(poems: list, count: int) -> list:
    """均匀取 count 首有题目的诗，用它们的题目来写。"""
    fitting = [poem for poem in poems if poem["title"].strip()]
    places = np.linspace(0, len(fitting), min(count, len(fitting)), endpoint=False)
    return [fitting[int(place)] for place in places]


def settings(sweep: str) -> list:
    """--SWEEP 的写法 → [(名字, 抽样选项)]，各项取值的全部组合；空着就是现在的一套。"""
    names, values = [], []
    for part in filter(None, map(str.strip, sweep.split(";"))):
        name, equals, text = (word.strip() for word in part.partition("="))
        if not equals or not text:
            raise UserError(f"SWEEP 里的 {part!r} 应当写成 名字=值,值")
        names.append(name)
        values.append([_swept(name, word.strip()) for word in text.split(",")])
    found = []
    for combination in itertools.product(*values):
        given = dict(zip(names, combination))
        label = " ".join(f"{name}={value}" for name, value in given.items())
        usual = config.sampling(given.pop("sampler", ""))
        found.append((label, {**options.merge(usual, given), "context": "stop"}))
    return found


def _swept(name: str, word: str) -> object:
    if name == "sampler":
        if word not in ("auto", "readme"):
            raise UserError(f"SWEEP 里的 sampler={word!r} 应当是 auto 或 readme")
        return word
    options.check_names({name: word})
    kind = options.BY_NAME[name].kind
    if kind is bool:
        return options.check(name, {"true": True, "false": False}.get(word.lower(), word))
    try:
        return options.check(name, kind(word))
    except ValueError:
        raise UserError(f"SWEEP 里的 {name}={word!r} 应当是数") from None


# ── 汇总 ──────────────────────────────────────────────────────────────


def yardstick(work_dir: str, poems: list) -> Yardstick:
    """量诗的尺子；没有 dataset.bin 时不查抄，也没有裁判。"""
    human = list(filter(None, map(chat_format.body, poems)))
    if not (Path(work_dir) / artefacts.DATASET).is_file():
        return Yardstick(human)
    index = originality.load(work_dir)
    return Yardstick(human, index, Judge(np.asarray(index.units)))


def title_fit(titles: list, texts: list, scorer: Callable, seed: int) -> measures.Figure | None:
    """切题：自己的题目在 16 个里的平均倒数名次；题目太少时为 None。"""
    pairs = [(title, text) for title, text in zip(titles, texts) if text][:TITLED]
    if len(set(titles)) < measures.AMONG:
        return None
    ranks = measures.title_ranks(*map(list, zip(*pairs)), score=scorer, seed=seed)
    return measures.mean_reciprocal(ranks, seed)


class Task(NamedTuple):
    """一次评测里各个检查点共用的。"""

    poems: list
    chosen: list  # 用它们的题目来写
    yard: Yardstick
    settings: list
    seed: int
    device: torch.device
    dtype: torch.dtype


def evaluate(path: Path, task: Task) -> tuple:
    """一个检查点：[每套抽样一个 Column] 和它眼里人写的诗有多切题。"""
    state = checkpoint.load(path)
    model, tok = checkpoint.rebuild(state, task.device)
    common = {"checkpoint": str(path), **score(model, tok, task.poems, task.device, task.dtype)}
    poet = Poet(model, tok, state["prompt_kinds"], path)
    scorer = title_scorer(model, tok, task.device, task.dtype)
    columns = []
    for label, given in task.settings:
        sample = write_poems(poet, [poem["title"] for poem in task.chosen], task.seed, given, label)
        numbers = {
            **common,
            "sampling": given,
            "written": len(sample.texts),
            "ended_share": measures.ratio(sample.ended, seed=task.seed),
            **appraisal.appraise(sample.texts, task.yard, task.seed),
            "title_mrr": title_fit(sample.titles, sample.texts, scorer, task.seed),
        }
        columns.append(Column(" ".join(filter(None, (path.name, label))), numbers))
    titles = [poem["title"] for poem in task.chosen]
    bodies = list(map(chat_format.body, task.chosen))
    return columns, title_fit(titles, bodies, scorer, task.seed)


def human_column(task: Task, fit: measures.Figure | None) -> Column:
    """人写的那几首。"""
    bodies = list(map(chat_format.body, task.chosen))
    numbers = appraisal.appraise(bodies, task.yard, task.seed)
    ended = measures.ratio([True] * len(bodies))
    return Column("验证诗", {**numbers, "ended_share": ended, "title_mrr": fit})


def write_pairs() -> dict:
    """盲评的卷子与答案（benchmark.py pairs）：README 的抽样对 auto，同样的题目与种子。"""
    poems, source = load_poems(config.WORK_DIR, config.DATA)
    titles = [poem["title"] for poem in chosen_poems(poems, pairs.COUNT)]
    poet = Poet.load(
        config.CHECKPOINT, config.WORK_DIR, config.DEVICE, config.DTYPE, config.COMPILE
    )
    names = artefacts.PAIRS, artefacts.PAIRS_KEY
    paths = tuple(files.work_path(config.WORK_DIR, name) for name in names)
    ways = {name: {**config.sampling(name), "context": "stop"} for name in ("readme", "auto")}
    count = pairs.write(poet, titles, ways, config.SEED, paths)
    print(f"卷子 {paths[0]}，答案 {paths[1]}")
    return {"pairs": count, "model": str(poet.path), "data": source}


def report(columns: list, human: Column, work_dir: str, source: str) -> None:
    """表、图，最后一行 JSON。"""
    print(appraisal.table([*columns, human]))
    if len(columns) > 1:
        path = files.work_path(work_dir, artefacts.EVALUATE_PICTURE)
        if appraisal.draw([*columns, human], path):
            print(f"图：{path}")
    first, *others = map(appraisal.record, columns)
    summary = {**first, "data": source, "validation": appraisal.record(human)}
    if others:
        summary.update(compared=others[0], columns=[first, *others])
    print(json.dumps(summary, ensure_ascii=False))


def main() -> None:
    """评测一个或两个检查点。"""
    config.load(__doc__)
    names = [name.strip() for name in config.CHECKPOINT.split(",") if name.strip()] or [""]
    if len(names) > 2:
        raise UserError(f"CHECKPOINT 里有 {len(names)} 个文件；一次最多比较 2 个")
    wanted = settings(config.SWEEP)
    paths = [Path(checkpoint.find(config.WORK_DIR, name)) for name in names]
    device = hardware.pick_device(config.DEVICE)
    dtype = hardware.pick_dtype("fp32" if config.DTYPE == "auto" else config.DTYPE, device)
    poems, source = load_poems(config.WORK_DIR, config.DATA)
    print(f"用 {source}：{len(poems)} 首")
    warnings.simplefilter("ignore", UserWarning)
    chosen, yard = chosen_poems(poems, config.SAMPLES), yardstick(config.WORK_DIR, poems)
    task = Task(poems, chosen, yard, wanted, config.SEED, device, dtype)
    found = [evaluate(path, task) for path in paths]
    columns = [column for part, _ in found for column in part]
    report(columns, human_column(task, found[0][1]), config.WORK_DIR, source)


if __name__ == "__main__":
    console.run(main)
