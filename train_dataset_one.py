"""建训练集（题目 → 诗）：WORK_DIR 里的 all_poems.json 与分词器 → dataset.bin。

先运行 data_clean.py 和 hug_face_tokenizer.py；之后运行 train_gpt.py。
"""

from __future__ import annotations

from pathlib import Path

import config
import dataset
import tokenizer
from poems import collection
from support import artefacts, console, files, lock
from support.console import UserError


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


def build(shares: dict | None, prompts_per_poem: int) -> dict:
    """按配置建 dataset.bin，打印结果，返回统计；train_dataset_all.py 也用它。"""
    poems = collection.find_cleaned(config.WORK_DIR)
    tok = load_tokenizer()
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
            max_seq_len=config.MAX_SEQ_LEN,
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
    print("下一步：python train_gpt.py")


def main() -> None:
    config.load(__doc__)
    build(None, 1)


if __name__ == "__main__":
    console.run(main)
