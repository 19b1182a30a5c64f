"""建训练集（题目 → 诗）：WORK_DIR 里的 all_poems.json 与分词器 → dataset.bin。

先运行 data_clean.py 和 hug_face_tokenizer.py；之后运行 train_gpt.py。
从已有的模型接着学（--FROM=模型）时，分词器与最大长度用那个模型的，不用训练分词器。
"""

from __future__ import annotations

from support import console, interpreter

if __name__ == "__main__":
    interpreter.begin()

from pathlib import Path

import checkpoint
import config
import dataset
import tokenizer
from poems import collection
from support import artefacts, files, lock
from support.console import UserError
from writing import origin


def load_tokenizer() -> tokenizer.HFTokenizer:
    """按配置找到并读入分词器；词表大小与 VOCAB_SIZE 不同时提醒一句。"""
    path = dataset.find_tokenizer(config.WORK_DIR, config.TOKENIZER)
    try:
        tok = tokenizer.HFTokenizer.load(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"分词器 {path} 读不了：{error}\n请运行：python hug_face_tokenizer.py"
        ) from error
    print(f"分词器：{path}（词表 {tok.vocab_size}）")
    if tok.vocab_size != config.VOCAB_SIZE:
        print(f"提醒：词表大小与 VOCAB_SIZE={config.VOCAB_SIZE} 不同，以分词器的真实大小为准。")
    return tok


def choose_tokenizer() -> tuple[tokenizer.HFTokenizer, int]:
    """分词器与最大长度：给了 FROM 就是那个模型的，否则照配置。"""
    if not config.FROM:
        return load_tokenizer(), config.MAX_SEQ_LEN
    model = origin.open_model(config.FROM, config.WORK_DIR)
    tok = checkpoint.tokenizer_of(model)
    longest = model["model_config"]["max_seq_len"]
    print(f"分词器：{config.FROM} 自带的（词表 {tok.vocab_size}）")
    if longest != config.MAX_SEQ_LEN:
        print(f"最大长度照它的：MAX_SEQ_LEN {config.MAX_SEQ_LEN} → {longest}")
    return tok, longest


def build(shares: dict | None, prompts_per_poem: int) -> dict:
    """按配置建 dataset.bin，打印结果，返回统计；train_dataset_all.py 也用它。"""
    poems = collection.find_cleaned(config.WORK_DIR)
    tok, max_seq_len = choose_tokenizer()
    out = files.work_path(config.WORK_DIR, artefacts.DATASET)
    with lock.writing(config.WORK_DIR):
        report = dataset.build(
            poems,
            tok,
            out,
            shares=shares,
            prompts_per_poem=prompts_per_poem,
            val_share=config.VAL_SHARE,
            seed=config.SEED,
            max_seq_len=max_seq_len,
        )
    print_report(report, out)
    return report


def print_report(report: dict, out: Path) -> None:
    """打印建好的数据集的小结。"""
    print(f"\n{'':<8}{'诗':>9}{'文档':>9}{'token':>13}{'训练 token':>12}")
    for side, name in (("train", "训练"), ("val", "验证")):
        numbers = [report[f"{side}_{key}"] for key in ("poems", "documents", "tokens", "trained")]
        print(f"{name:<8}{numbers[0]:>10,}{numbers[1]:>11,}{numbers[2]:>13,}{numbers[3]:>15,}")
    if not report["val_documents"]:
        print("没有单独的验证诗（VAL_SHARE=0，或诗太少、太长分不开）：验证时用训练诗。")
    if report["val_tokens"] > report["train_tokens"]:
        print("提醒：验证诗比训练诗还多。请加些诗，或换一个 SEED、调小 VAL_SHARE。")
    side = "val" if report["val_documents"] else "train"
    # 每篇末尾的 <|im_end|> 不算字，所以比分词器自己的压缩率略低
    ratio = report[f"{side}_chars"] / max(report[f"{side}_trained"], 1)
    print(f"每个 token 的字数：{ratio:.3f}（{'验证诗' if side == 'val' else '训练诗'}）")
    print(f"最长的文档：{report['longest']} token；拆成几篇的长诗：{report['split_poems']:,} 次")
    if report["empty"]:
        print(f"没有正文而跳过的诗：{report['empty']:,} 首")
    size = report["bytes"] / 1e6
    print(f"写好 {out}（{size:.1f} MB），用时 {report['seconds']:.1f} 秒")
    if report["kept_val"]:
        print(f"原来的验证诗有 {report['kept_val']:,} 首还在，仍作验证；原来的训练诗也不换边。")
    print("下一步：python train_gpt.py" + (f" --FROM={config.FROM}" if config.FROM else ""))


def main() -> None:
    config.load(__doc__)
    build(None, 1)


if __name__ == "__main__":
    console.run(main)
