"""WORK_DIR 里的产物：原始数据、诗集、分词器、数据集、检查点，是否完好、彼此配套。"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Sequence

from checks.finding import BAD, OK, WARN, Finding, Findings, Settings, can_print
from support import artefacts, files
from support.console import UserError

if TYPE_CHECKING:
    from dataset import PoemDataset
    from tokenizer import HFTokenizer

_SCAN_BYTES = 256 << 20  # 诗集最多看这么多字节
_SAMPLE_CHARS = 90


# ── 诗与分词器 ────────────────────────────────────────────────────────


def check_raw_data(settings: Settings) -> Findings:
    """原始数据：RAW_DATA 在不在，有几个文件。"""
    from poems import sources

    found = files.find_input(settings.RAW_DATA, settings.WORK_DIR)
    there = sources.find_files(found)[0] if found else []
    if there:
        size = sum(file.size for file in there) / 1e6
        yield Finding(OK, "原始数据", f"{found}：{len(there):,} 个文件，{size:.1f} MB")
        return
    missing = f"{found} 里没有能读的文件" if found else f"没有 {settings.RAW_DATA}"
    folder = Path(settings.WORK_DIR)
    if any((folder / name).exists() for name in (artefacts.POEMS, artefacts.DATASET)):
        yield Finding(OK, "原始数据", f"{missing}，已有做好的产物，用不着")
        return
    mend = "把诗放进 RAW_DATA，或指给它：--RAW_DATA=路径\n只想看看效果：python quickstart.py"
    yield Finding(BAD, "原始数据", missing, mend)


def check_poems(settings: Settings) -> Findings:
    """诗集：all_poems.json 读得通，有多少诗。"""
    from poems import collection

    path = Path(settings.WORK_DIR) / artefacts.POEMS
    if not path.exists():
        return
    read, count, chars = [0], 0, 0

    def on_read(size: int) -> None:
        read[0] += size

    for poem in collection.iter_poems(path, on_read):
        count += 1
        chars += sum(map(len, poem["para"]))
        if read[0] > _SCAN_BYTES:
            break
    part = f"（只看了前 {read[0] >> 20} MB）" if read[0] > _SCAN_BYTES else ""
    text = f"{count:,} 首，{chars:,} 字{part}"
    if not count:
        yield Finding(BAD, artefacts.POEMS, "一首诗也没有", "python data_clean.py")
    elif not (path.parent / artefacts.CLEAN_REPORT).exists():
        yield Finding(WARN, artefacts.POEMS, f"{text}；好像没有清洗过", "python data_clean.py")
    elif count < 200:
        yield Finding(WARN, artefacts.POEMS, f"{text}；太少，模型只会背诵", "多放些诗再清洗")
    else:
        yield Finding(OK, artefacts.POEMS, text)


def load_tokenizer(path: Path) -> HFTokenizer:
    """读分词器；读不了就说清怎样重做。"""
    import tokenizer

    try:
        return tokenizer.HFTokenizer.load(path)
    except (OSError, ValueError) as error:
        script = "train_BPEtokennizer.py" if "bpe" in path.name else "hug_face_tokenizer.py"
        raise UserError(f"{path.name} 不能用：{error}\npython {script}") from error


def tokenizer_files(settings: Settings) -> list[Path]:
    """WORK_DIR 里的分词器，与 TOKENIZER 另外指定的。"""
    folder = Path(settings.WORK_DIR)
    paths = [folder / artefacts.TOKENIZER_HUG, folder / artefacts.TOKENIZER_BPE]
    if settings.TOKENIZER not in ("auto", "hug", "bpe"):
        given = settings.TOKENIZER
        paths.append(files.find_input(given, settings.WORK_DIR) or Path(given))
    return [path for path in paths if path.is_file()]


def check_tokenizers(settings: Settings) -> Findings:
    """分词器：读得通，与配置相符。"""
    if not tokenizer_files(settings):
        return
    expected = [settings.PAD, settings.IM_START, settings.IM_END]
    for path in tokenizer_files(settings):
        tok = load_tokenizer(path)
        text = f"{tok.vocab_size} 个 token，指纹 {tok.fingerprint[:8]}"
        if tok.names[:3] != expected:
            text += f"；特殊符号是 {' '.join(tok.names[:3])}，与配置不同"
            yield Finding(WARN, path.name, text, "要用配置里的就重新训练分词器")
        elif tok.vocab_size != settings.VOCAB_SIZE:
            text += f"；与 VOCAB_SIZE={settings.VOCAB_SIZE} 不同，模型以真实大小为准"
            yield Finding(WARN, path.name, text)
        else:
            yield Finding(OK, path.name, text)


# ── dataset.bin ───────────────────────────────────────────────────────


def check_dataset(settings: Settings) -> Findings:
    """数据集：完好，与分词器和配置配套，看三篇。"""
    import dataset
    import tokenizer

    path = Path(settings.WORK_DIR) / artefacts.DATASET
    if not path.exists():
        return
    with dataset.load(path) as data:
        broken = data.verify()
        if broken:
            text = f"校验和不符（{'、'.join(broken)}），文件已损坏"
            yield Finding(BAD, path.name, text, "python train_dataset_one.py")
            return
        head = data.header
        text = f"完好，{head['train_poems']:,} 首训练诗、{head['val_poems']:,} 首验证诗，"
        text += f"{head['train_tokens'] / 1e6:.2f} M token，提示词 {'、'.join(data.prompt_kinds)}"
        yield Finding(OK, path.name, text)
        tok = tokenizer.HFTokenizer.from_json(data.tokenizer_json)
        yield from _dataset_fits(data, tok, path, settings)
        yield Finding(OK, "样本", "【】里是训练的部分" + "".join(_samples(data, tok)))


def _dataset_fits(data: PoemDataset, tok: HFTokenizer, path: Path, settings: Settings) -> Findings:
    redo = "python train_dataset_one.py（或 python train_dataset_all.py）"
    longest, limit = data.header["max_seq_len"], settings.MAX_SEQ_LEN
    if longest > limit:
        text = f"按 MAX_SEQ_LEN={longest} 做的，比现在的 {limit} 长"
        yield Finding(BAD, "dataset.bin 与配置", text, redo)
    elif longest < limit:
        text = f"按 MAX_SEQ_LEN={longest} 做的，现在是 {limit}：能训练，但长诗切得更碎"
        yield Finding(WARN, "dataset.bin 与配置", text, redo)
    poems = path.with_name(artefacts.POEMS)
    if poems.exists() and poems.stat().st_mtime > path.stat().st_mtime + 1:
        text = "all_poems.json 比 dataset.bin 新"
        yield Finding(WARN, "dataset.bin 与诗集", text, redo)
    names = []
    for file in tokenizer_files(settings):
        try:
            if load_tokenizer(file).fingerprint == tok.fingerprint:
                names.append(file.name)
        except UserError:
            continue
    if names:
        yield Finding(OK, "dataset.bin 与分词器", f"由 {'、'.join(names)} 编码")
    elif tokenizer_files(settings):
        text = "与现有的分词器文件都不同（文件里自带一份，仍可训练）"
        yield Finding(WARN, "dataset.bin 与分词器", text, redo)


def _samples(data: PoemDataset, tok: HFTokenizer, count: int = 3) -> Iterator[str]:
    first, last = data.range("train")
    for number in range(min(count, last - first)):
        index = first + (last - first) * number // count
        ids, mask, _ = data.document(index)
        yield f"\n    {number + 1}. {marked_text(ids, mask, tok)}"


def marked_text(ids: Sequence[int], mask: Sequence[int], tok: HFTokenizer) -> str:
    """文档 → 一行文字：训练的部分放在【】里，特殊符号写出名字，换行写作 ⏎，太长的中间略去。"""
    special = {token: name for name, token in tok.special_ids.items()}
    out = []
    pairs = [(int(token), int(bit)) for token, bit in zip(ids, mask)]
    for trained, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        text, waiting = "", []
        for token, _ in run:
            if token in special:
                text += tok.decode(waiting) + special[token]
                waiting = []
            else:
                waiting.append(token)
        text += tok.decode(waiting)
        text = text.replace("\n", "⏎" if can_print("⏎") else "\\n")
        if len(text) > _SAMPLE_CHARS:
            text = f"{text[: _SAMPLE_CHARS - 20]}……{text[-18:]}"
        out.append(f"【{text}】" if trained else text)
    return "".join(out)


# ── 检查点 ────────────────────────────────────────────────────────────


def check_checkpoints(settings: Settings) -> Findings:
    """检查点：完好，训练到哪里，与数据集和配置是否配套。"""
    import checkpoint

    folder = Path(settings.WORK_DIR)
    states = {}
    for name in (artefacts.BEST_MODEL, artefacts.CHECKPOINT, artefacts.CHECKPOINT_PREVIOUS):
        if not (folder / name).exists():
            continue
        try:
            states[name] = checkpoint.load(folder / name)
            text = _checkpoint_text(states[name], checkpoint.tokenizer_of(states[name]))
            yield Finding(OK, name, text)
        except (UserError, ValueError) as error:
            previous = folder / artefacts.CHECKPOINT_PREVIOUS
            spare = name == artefacts.CHECKPOINT and previous.exists()
            mend = (
                f"再运行一次训练会自动改用 {artefacts.CHECKPOINT_PREVIOUS}"
                if spare
                else "删去或移走它，再训练：python train_gpt.py"
            )
            level = WARN if spare or name == artefacts.CHECKPOINT_PREVIOUS else BAD
            yield Finding(level, name, str(error).split("\n")[0], mend)
    newest = states.get(artefacts.CHECKPOINT)
    if newest is not None:
        yield from _resume_problems(newest, settings)


def _checkpoint_text(state: dict[str, Any], tok: HFTokenizer) -> str:
    model, here, best = state["model_config"], state.get("position"), state.get("best")
    text = f"完好，{model['n_block']} 层 × {model['dim']} 维，词表 {model['vocab_size']}"
    if tok.vocab_size != model["vocab_size"]:
        raise UserError(f"分词器 {tok.vocab_size} 个 token，模型 {model['vocab_size']} 个")
    if here:
        text += f"，第 {here['update']} 次更新"
    if best and best["iter"]:
        text += f"，最佳验证 {best['val_bpc']:.3f} 比特/字（第 {best['iter']} 次迭代）"
    return text


def _resume_problems(state: dict[str, Any], settings: Settings) -> Findings:
    """现在的配置与数据能不能接着 checkpoint.bin 训练。"""
    import dataset
    from training.settings import FIXED

    saved, now = state["config"], vars(settings)
    changed = [
        f"{name} 是 {saved[name]}，现在 {now[name]}"
        for name in map(str.upper, FIXED)
        if name in saved and saved[name] != now[name]
    ]
    path = Path(settings.WORK_DIR) / artefacts.DATASET
    if path.exists():
        with dataset.load(path) as data:
            if state["dataset"] != data.fingerprint:
                changed.append("dataset.bin 不是训练用的那一份")
    if changed:
        mend = "接着训练：用回原来的值；另起一次：python train_gpt.py --RESUME=off（旧的会留着）"
        yield Finding(WARN, "接着训练", "；".join(changed), mend)
    elif path.exists():
        yield Finding(OK, "接着训练", "配置、数据集、分词器都与 checkpoint.bin 配套")
    else:
        text = "配置与 checkpoint.bin 配套；没有 dataset.bin，数据集与分词器没有比对"
        yield Finding(WARN, "接着训练", text, "要接着训练，先放回训练用的那份 dataset.bin")


CHECKS = (check_raw_data, check_poems, check_tokenizers, check_dataset, check_checkpoints)
