"""WORK_DIR 里各样产物的文件名，只写在这里；次序就是它们产生的次序。"""

from __future__ import annotations

POEMS = "all_poems.json"  # 清洗好的诗
POEMS_ORIGINAL = "all_poems.raw.json"  # 清洗前的原件（没有 RAW_DATA 时）
CLEAN_REPORT = "clean_report.json"
CLEAN_PICTURE = "clean_lengths.png"
TOKENIZER_HUG = "tokenizer_hug.json"  # tokenizers 库训练的
TOKENIZER_BPE = "tokenizer_bpe.json"  # 自己的 BPE 训练的
DATASET = "dataset.bin"
COPY_INDEX = "copy_index.bin"  # 查抄用的索引
CHECKPOINT = "checkpoint.bin"  # 最新的检查点，能续训
CHECKPOINT_PREVIOUS = "checkpoint.prev.bin"  # 上一个检查点
BEST_MODEL = "best_model.bin"  # 验证损失最低的模型
MODEL_INT8 = "model_int8.bin"
BOX = "weights/poem.bin"  # 随附的模型，在 README.md 旁边，不在 WORK_DIR 里
TEACHER = "teacher"  # 老师的目录是 teacher1、teacher2……
TRAIN_LOG = "train_log.csv"
LOSS_PICTURE = "loss.png"
SAMPLES = "samples.txt"
EVALUATE_PICTURE = "evaluate.png"  # 评测的几列并排
PAIRS = "pairs.txt"  # 盲评的卷子
PAIRS_KEY = "pairs_key.json"  # 它的答案
STUDY = "studies"  # benchmark.py study 的小样与结果
JUDGE = "judge.bin"  # 研究里只用来评判的诗，与它们的原文
JUDGE_POEMS = "judge_poems.json"
STUDY_TABLE = "study.csv"
STUDY_PICTURE = "study.png"
RUN_INFO = "run_info.json"
LOCK = "writing.lock"  # 谁正在写这个目录
LOGS = "logs"  # LOGGER 的 tensorboard、swanlab、wandb 写在这里
EXPORT_HF = "export_hf"
EXPORT_GGUF = "export_gguf"
IMPORTED = "checkpoint_imported.bin"  # 由 Hugging Face 目录导回的

# 程序被杀时可能留下 名字.tmp 的；检查点的不在内：写完了的还能用，由训练处置
SWEPT = (
    POEMS,
    CLEAN_REPORT,
    CLEAN_PICTURE,
    TOKENIZER_HUG,
    TOKENIZER_BPE,
    DATASET,
    BEST_MODEL,
    MODEL_INT8,
    TRAIN_LOG,
    LOSS_PICTURE,
    SAMPLES,
    RUN_INFO,
    IMPORTED,
)
