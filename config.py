"""全局配置：改这里的值，或运行任何脚本时用 --名字=值 临时覆盖（--help 列出全部）。

脚本在 main() 里先调用 config.load(__doc__)，再用 config.X 读取；库函数只收参数，不读本文件。
"""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from typing import NoReturn

from poems import options
from support import defaults, presets
from support.console import UserError

# ── 文件 ──────────────────────────────────────────────────────────────
WORK_DIR = "."  # 所有产物读写的目录；换一个目录就是另一次实验
RAW_DATA = "poetry/data"  # 原始诗歌：文件夹或单个文件（.pt .json .csv .md .txt……）
DATA = ""  # evaluate.py 用的诗歌文件；空 = dataset.bin 的验证集
CHECKPOINT = ""  # 要用的模型；空 = best_model.bin 或 checkpoint.bin，写诗时都没有就用随附的
TOKENIZER = "auto"  # 分词器：auto（先 hug 后 bpe）| hug | bpe | 文件路径
FROM = ""  # 从这个模型的权重与分词器开始：模型文件、别的 WORK_DIR、导出的 HF 目录；空 = 从零
TEACHER = ""  # 老师：练好的模型（几个用逗号分开），教出来的更好；写一个数就先练这么多个；空 = 没有

# ── 整套 ──────────────────────────────────────────────────────────────
PRESET = "readme"  # 一整套：readme | minutes | laptop | card | night | own；改过的、命令行给的优先

# ── 特殊符号（编号依次为 0、1、2）─────────────────────────────────────
PAD = "<|padding|>"  # 填充
IM_START = "<|im_start|>"  # 一段话开始
IM_END = "<|im_end|>"  # 一段话结束

# ── 模型配置 ──────────────────────────────────────────────────────────
VOCAB_SIZE = 20000  # 词表大小（训练分词器时的目标；模型用分词器的真实大小）
MAX_SEQ_LEN = 512  # 最大序列长度（token）
GPT_DIM = 256  # 模型维度
GPT_HEAD = 8  # 注意力头数
GPT_FF = 1024  # 前馈网络维度（SwiGLU 的隐藏宽度）
GPT_BLOCKS = 6  # Transformer 层数
ROPE_THETA = 10000.0  # 旋转位置编码的基数
DROPOUT = "auto"  # 丢弃率：auto（见得不多、模型小时 0，否则 0.1）或数

# ── 数据配置 ──────────────────────────────────────────────────────────
MIN_CHARS = 10  # 清洗：正文少于这么多字的诗丢弃
NEAR_COPY = 0.8  # 清洗：较短一首有这么大比例的三字片段也在另一首里，就算近似重复
TOKENIZER_MB = 10.0  # 训练分词器：至多用诗集里均匀取出的这么多 MB（内存不到 1 GB）；0 = 全部
VAL_SHARE = 0.02  # 验证集占比（至少一首）；0 = 直接在训练诗上验证
SEED = 42  # 随机种子：划分、提示词、训练顺序、dropout 都由它决定
PROMPT_SHARES = (  # train_dataset_all.py 的提示词比例（相对值）
    "title=30,title_author=12,author=6,first_line=12,theme=14,plain=6,lines=8,length=6,acrostic=6"
)
PROMPTS_PER_POEM = 2  # train_dataset_all.py：每首诗配几种提示词

# ── 训练配置 ──────────────────────────────────────────────────────────
TRAIN_ITER = 50000  # 训练迭代次数；一次迭代 = 一个微批次
BATCH_SIZE = 8  # 批次大小：一个微批次填满 BATCH_SIZE × MAX_SEQ_LEN 个 token
ACCUM_STEPS = 8  # 梯度累积：几次迭代更新一次权重
LEARNING_RATE = 0.003  # AdamW 学习率（词嵌入与归一化权重；OPTIMIZER=adamw 时用于全部）
MUON_LR = 0.01  # Muon 学习率（矩阵权重）
CHAR_LR = 0.003  # 同一个字的词一起学的学习率：少见的词学得好得多；0 = 各学各的
WARMUP_STEPS = 500  # 预热的更新次数（至多为总更新数的 10%）
DECAY_SHARE = 0.5  # 学习率在最后这一部分更新里线性降到 0
GROW_AT = "auto"  # 走过全程的多少才练第三块起的块，先前快得多；0 = 从头练全部；auto = 练得短 0.8
SAMPLED_SOFTMAX = "auto"  # 训练时输出层除常用的词外只抽这么多个，快；0 = 全算；auto = 诗多 2000
OPTIMIZER = "muon"  # muon（矩阵用 Muon，其余用 AdamW）| adamw
WEIGHT_DECAY = 0.1  # 权重衰减（只作用于矩阵）；也可写 auto：由练多长定
GRAD_CLIP = 1.0  # 梯度裁剪（AdamW 的参数）；0 = 不裁剪
SAVE_EVERY = 1000  # 每多少次迭代保存检查点；显卡算得快，这三样合起来超过时间的 2% 就推迟
EVAL_EVERY = 1000  # 每多少次迭代验证一次
SAMPLE_EVERY = 1000  # 每多少次迭代写一首示例诗
EARLY_STOP = 0  # 验证损失连续多少次不降就提前结束；0 = 不提前结束
MAX_BAD_STEPS = 20  # 连续多少次更新出现非有限值就停下
GRAD_CHECKPOINT = "off"  # 梯度检查点，以时间换显存：on | off
REPLAY_DATA = ""  # 旧诗：另一份 dataset.bin 或它的目录；给了就一直报告旧诗的验证分数
REPLAY_SHARE = 0.0  # 每一遍里混进这么大比例的旧诗（REPLAY_DATA 的训练诗），免得忘了
INIT = "auto"  # 词嵌入的起点：data（由相邻词统计算出，学得快得多）| random | auto（诗多才用 data）
LOGGER = "csv"  # 曲线还记到哪里：csv 总有，另可写 tensorboard,swanlab,wandb（逗号分开，都离线）
RESUME = "on"  # on = 有检查点就接着训练；off = 旧产物改名，从头开始

# ── 设备 ──────────────────────────────────────────────────────────────
DEVICE = "auto"  # 运行设备：auto | cpu | cuda | mps
DTYPE = "auto"  # 计算精度：auto | fp32 | bf16 | fp16
COMPILE = "auto"  # 编译（训练用 torch.compile，CPU 上写诗用 C++ 的核）：auto | on | off
DIST_TIMEOUT = 5.0  # 分布式：等待其他进程多少分钟后放弃

# ── 推理配置 ──────────────────────────────────────────────────────────
SAMPLER = "auto"  # auto = 量出来最好的（poems/options.py），下面改过的值优先 | readme = 下面原样
TEMPERATURE = 0.7  # 温度参数；0 = 每步取概率最大的 token
TOP_K = 20  # Top-K 采样；0 = 不限
TOP_P = 1.0  # Top-P（核）采样；1 = 不限
MIN_P = 0.0  # Min-P 采样；0 = 不限
REPETITION_PENALTY = 1.4  # 重复惩罚；1 = 不惩罚
PRESENCE_PENALTY = 0.0  # 出现惩罚：写过的字，对数几率减去这么多；0 = 不减
NO_REPEAT_NGRAM = 0  # 禁止重复的 n 元组长度；0 = 不禁止
MAX_NEW_TOKENS = 400  # 一首诗最多生成多少 token
CONTEXT = "stop"  # 写满 MAX_SEQ_LEN 时：stop 停下 | slide 丢掉最早的部分继续

# ── 服务、导出、测速 ──────────────────────────────────────────────────
HOST = "127.0.0.1"  # serve.py 监听地址；不是本机回环时必须设置 API_KEY
PORT = 8000  # serve.py 端口
API_KEY = ""  # serve.py 的密钥；空 = 不要求
ALLOWED_HOSTS = ""  # serve.py 没有密钥时另外认的主机名，逗号分开，如 host.docker.internal
CORS_ORIGINS = ""  # serve.py 允许哪些网站的页面来调用，逗号分开，如 http://localhost:3000
MAX_CONCURRENT = 64  # serve.py 同时处理与排队的请求上限
FORMAT = "hf"  # export.py 的格式：hf | gguf | checkpoint
OUT = ""  # 导出、量化的输出位置；空 = 默认名字
SECONDS = 600.0  # benchmark.py learn 的训练秒数
STUDY = "screen"  # study 的小样：sketch | screen | confirm；诗数不同的 few | some | many
RECIPES = ""  # 它比哪些配方，分号隔开：名字，或 新名字:配置=值,配置=值；空 = 现成的全部
SEEDS = "1,2"  # 它用哪几个种子
SAMPLES = 256  # evaluate.py 写几首来量
SWEEP = ""  # evaluate.py 比较几套抽样，如 "temperature=0.7,1;sampler=readme,auto"；空 = 只用现在的

# ── 以下是覆盖与检查的机制，一般不用改 ────────────────────────────────

_CHOICES = {
    "PRESET": tuple(presets.PRESETS),
    "SAMPLER": ("auto", "readme"),
    "OPTIMIZER": ("muon", "adamw"),
    "GRAD_CHECKPOINT": ("on", "off"),
    "INIT": ("auto", "data", "random"),
    "RESUME": ("on", "off"),
    "DEVICE": ("auto", "cpu", "cuda", "mps"),
    "DTYPE": ("auto", "fp32", "bf16", "fp16"),
    "COMPILE": ("auto", "on", "off"),
    "STUDY": ("sketch", "screen", "confirm", "few", "some", "many"),
    "FORMAT": ("hf", "gguf", "checkpoint"),
}
_AUTO_OR_NUMBER = ("DROPOUT", "WEIGHT_DECAY", "GROW_AT", "SAMPLED_SOFTMAX")
_INPUTS = ("RAW_DATA", "DATA", "CHECKPOINT", "TOKENIZER", "FROM", "TEACHER", "REPLAY_DATA")
_PATHS = ("WORK_DIR", *_INPUTS, "OUT")
_SEVERAL = {"LOGGER": ("csv", "tensorboard", "swanlab", "wandb")}  # 可以写几个，逗号分开
# 名字: (下限, 上限, 下限本身是否允许)
_RANGES = {
    "VOCAB_SIZE": (259, 1 << 24, True),
    "MAX_SEQ_LEN": (16, 1 << 20, True),
    "GPT_DIM": (1, 1 << 16, True),
    "GPT_HEAD": (1, 1 << 12, True),
    "GPT_FF": (1, 1 << 18, True),
    "GPT_BLOCKS": (1, 1 << 10, True),
    "ROPE_THETA": (1.0, math.inf, False),
    "DROPOUT": (0.0, 0.9, True),
    "MIN_CHARS": (1, 1 << 20, True),
    "NEAR_COPY": (0.1, 1.0, True),
    "TOKENIZER_MB": (0.0, math.inf, True),
    "VAL_SHARE": (0.0, 0.5, True),
    "SEED": (0, (1 << 62), True),
    "PROMPTS_PER_POEM": (1, 9, True),
    "TRAIN_ITER": (1, 1 << 40, True),
    "BATCH_SIZE": (1, 1 << 20, True),
    "ACCUM_STEPS": (1, 1 << 20, True),
    "LEARNING_RATE": (0.0, 1.0, False),
    "MUON_LR": (0.0, 1.0, False),
    "CHAR_LR": (0.0, 1.0, True),
    "WARMUP_STEPS": (0, 1 << 40, True),
    "DECAY_SHARE": (0.0, 1.0, True),
    "GROW_AT": (0.0, 0.95, True),
    "SAMPLED_SOFTMAX": (0.0, 1e6, True),
    "WEIGHT_DECAY": (0.0, 10.0, True),
    "GRAD_CLIP": (0.0, math.inf, True),
    "SAVE_EVERY": (1, 1 << 40, True),
    "EVAL_EVERY": (1, 1 << 40, True),
    "SAMPLE_EVERY": (1, 1 << 40, True),
    "EARLY_STOP": (0, 1 << 40, True),
    "REPLAY_SHARE": (0.0, 0.9, True),
    "MAX_BAD_STEPS": (1, 1 << 40, True),
    "DIST_TIMEOUT": (0.0, 1e6, False),
    "PORT": (1, 65535, True),
    "MAX_CONCURRENT": (1, 1 << 16, True),
    "SECONDS": (0.0, math.inf, False),
    "SAMPLES": (1, 1 << 20, True),
}
# 抽样选项的范围由 poems/options.py 的表来
_CHOICES.update({option.setting: option.choices for option in options.SET if option.choices})
_RANGES.update(
    {
        option.setting: (option.kind(option.low), option.kind(option.high), not option.open_low)
        for option in options.SET
        if not option.choices
    }
)


def names() -> list:
    """所有可覆盖的常量名，按文件中的顺序。"""
    return [name for name in globals() if name.isupper() and not name.startswith("_")]


def missing() -> list:
    """本文件里少了的常量（被删掉或注释掉的），各一句话。"""
    lacking = [name for name in defaults.DEFAULTS if name not in globals()]
    return [f"config.py 里缺少 {name}（默认 {defaults.DEFAULTS[name]!r}）" for name in lacking]


def values() -> dict:
    """当前全部常量：名字 → 值。"""
    return {name: globals()[name] for name in names()}


def sampling(sampler: str = "", portable: bool = False) -> dict:
    """此刻的抽样选项：chat() 的参数名 → 值；sampler 不给就照 SAMPLER。

    portable：给别的程序用（导出），只用它们也有的选项。
    """
    now = values()
    own = defaults.changed(now) | _given
    return options.sampling({**now, "SAMPLER": sampler or SAMPLER}, own, portable)


_given = set()
_before = {}  # 命令行改过的：名字 → (原来的值, 改成的值)


def given() -> set:
    """命令行里明确写了的常量名。"""
    return set(_given)


def load(doc: str | None, argv: list | None = None, positional: tuple = ()) -> list:
    """解析命令行覆盖并检查全部常量；出错时打印一条中文消息并以 2 退出。

    doc: 脚本的说明，--help 时显示；argv: 默认 sys.argv[1:]；
    positional: 允许的位置参数（名字, 可选值）的元组，可选值为空元组表示任意。
    返回位置参数的列表（没有给的为缺）。
    """
    for stream in (sys.stdout, sys.stderr):  # 控制台不是 UTF-8 时，缺字显示为 ? 而不是崩溃
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if lacking := missing():
        _quit(lacking)
    argv = sys.argv[1:] if argv is None else argv
    _forget()
    before = values()
    if "--help" in argv or "-h" in argv:
        print(_help(doc or "", positional))
        sys.exit(0)
    given, rest, problems = _parse(argv)
    for name, text in given:
        value, problem = _convert(name, text)
        if problem:
            problems.append(problem)
        else:
            globals()[name] = value
            _given.add(name)
    _apply_preset()
    _expand_home()
    changed = [name for name in names() if name in _given or globals()[name] != before[name]]
    _before.update({name: (before[name], globals()[name]) for name in changed})
    problems += _check_positional(rest, positional)
    problems += check()
    if problems:
        _quit(problems)
    return rest


def _forget() -> None:
    """上一个脚本的命令行不算了：笔记本里几个 %run 用的是同一个进程、同一份 config。

    其间又改成别的值的（config.WORK_DIR = …）照改的。
    """
    for name, (value, changed) in _before.items():
        if globals()[name] == changed:
            globals()[name] = value
    _before.clear()
    _given.clear()


def _apply_preset() -> None:
    """PRESET 的那一套；命令行给的、本文件里改过的一项一项地优先。"""
    preset = presets.PRESETS.get(PRESET)
    for name, value in preset.values.items() if preset else ():
        if name not in _given and globals()[name] == defaults.DEFAULTS[name]:
            globals()[name] = value


def read(name: str, text: str) -> object:
    """一个配置写成的文字 → 值；名字或值不对时抛 UserError。"""
    if name not in names():
        raise UserError(_unknown(name))
    value, problem = _convert(name, text)
    problem = problem or _value_problem(name, value)
    if problem:
        raise UserError(problem)
    return value


def _expand_home() -> None:
    """路径里的 ~ 换成主目录：--名字=~/… 里的 ~ bash 不展开。"""
    for name in _PATHS:
        value = globals()[name]
        if isinstance(value, str):
            globals()[name] = ",".join(map(os.path.expanduser, value.split(",")))


def check() -> list:
    """当前常量的全部问题（中文句子的列表）；没有问题时为空。"""
    wrong = {name: _value_problem(name, value) for name, value in values().items()}
    problems = [problem for problem in wrong.values() if problem]
    if not (wrong["GPT_DIM"] or wrong["GPT_HEAD"]):
        if GPT_DIM % GPT_HEAD:
            problems.append(f"GPT_DIM={GPT_DIM} 必须能被 GPT_HEAD={GPT_HEAD} 整除")
        elif GPT_DIM // GPT_HEAD % 2:
            problems.append(f"GPT_DIM/GPT_HEAD={GPT_DIM // GPT_HEAD} 必须是偶数（旋转位置成对）")
    if len({PAD, IM_START, IM_END}) < 3 or not all((PAD, IM_START, IM_END)):
        problems.append("PAD、IM_START、IM_END 必须是三个不同的非空字符串")
    if not wrong["REPLAY_SHARE"] and REPLAY_SHARE and not REPLAY_DATA:
        problems.append("REPLAY_SHARE 大于 0 时要用 REPLAY_DATA 说明旧诗的 dataset.bin 在哪里")
    if not WORK_DIR:
        problems.append("WORK_DIR 不能为空；当前目录请写 .")
    return problems


def _value_problem(name: str, value: object) -> str | None:
    if name in _AUTO_OR_NUMBER and value == "auto":
        return None
    if name in _RANGES:
        return _range_problem(name, value, *_RANGES[name])
    if not isinstance(value, str):
        return f"{name}={value!r} 应当是字符串"
    if name in _CHOICES and value not in _CHOICES[name]:
        return f"{name}={value!r} 不在可选值里：{' | '.join(_CHOICES[name])}"
    if name == "SEEDS" and not re.fullmatch(r"\d{1,18}(,\d{1,18})*", value):
        return f"SEEDS={value!r} 应当是逗号分开的整数，例如 --SEEDS=1,2"
    for word in value.split(",") if name in _SEVERAL else ():
        if word.strip() not in _SEVERAL[name]:
            return f"{name} 里的 {word.strip()!r} 不在可选值里：{' | '.join(_SEVERAL[name])}"
    return None


def _range_problem(name: str, value: object, low: float, high: float, closed: bool) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{name}={value!r} 应当是数"
    if isinstance(low, int) and not isinstance(value, int):
        return f"{name}={value!r} 应当是整数"
    above = value >= low if closed else value > low
    if above and value <= high:  # NaN 也在这里被挡住
        return None
    bracket = "≥" if closed else ">"
    return f"{name}={value} 超出范围：应当 {bracket} {low}" + (
        f" 且 ≤ {high}" if high < 1 << 20 else ""
    )


def _parse(argv: list[str]) -> tuple[list, list, list]:
    """argv → ([(名字, 文本)], 位置参数, 问题)。"""
    given, rest, problems = [], [], []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            rest.append(word)
            continue
        key, equals, text = word[2:].partition("=")
        name = key.replace("-", "_").upper()
        if name not in names():
            problems.append(_unknown(key))
            if not equals and words and not words[0].startswith("--"):
                words.pop(0)
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                problems.append(f"--{name} 后面缺少值，写成 --{name}=值")
                continue
            text = words.pop(0)
        given.append((name, text))
    return given, rest, problems


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key.upper(), names(), n=1, cutoff=0.0)
    return f"没有名为 {key} 的配置；最接近的是 --{near[0]}（--help 列出全部）"


_DEFAULT_TYPES = {name: type(globals()[name]) for name in names()}


def _convert(name: str, text: str) -> tuple[object, str | None]:
    kind = _DEFAULT_TYPES[name]
    if name in _AUTO_OR_NUMBER:
        kind = str if text == "auto" else float
    if kind is str:
        return text, None
    try:
        return (int(text.replace("_", "")) if kind is int else float(text)), None
    except ValueError:
        want = "整数" if kind is int else "auto 或数" if name in _AUTO_OR_NUMBER else "数"
        return None, f"{name}={text!r} 应当是{want}，例如 --{name}={globals()[name]}"


def _check_positional(rest: list, positional: tuple) -> list[str]:
    problems = []
    for index, word in enumerate(rest):
        if index >= len(positional):
            problems.append(f"多余的参数 {word!r}；配置请写成 --名字=值")
            continue
        label, allowed = positional[index]
        if allowed and word not in allowed:
            problems.append(f"{label} {word!r} 不认识；可选：{' | '.join(allowed)}")
    return problems


def _help(doc: str, positional: tuple) -> str:
    script = os.path.basename(sys.argv[0] or "脚本.py")
    words = "".join(f" [{'|'.join(allowed) or label}]" for label, allowed in positional)
    rows = [doc.strip(), "", f"用法：python {script}{words} [--名字=值 …]", "", "可覆盖的配置："]
    comments = _comments()
    for name in names():
        shown = f"--{name}={globals()[name]}"
        rows.append(f"  {shown:<34} {comments.get(name, '')}")
    rows += ["", "PRESET 的几套（改过的、命令行给的优先）：", *presets.lines()]
    return "\n".join(rows)


def _comments() -> dict[str, str]:
    """名字 → 本文件里写在同一行的中文注释。"""
    with open(os.path.abspath(__file__), encoding="utf-8") as file:
        found = re.findall(r"^([A-Z][A-Z_]+) = [^#\n]*#\s*(.+)$", file.read(), flags=re.M)
    return dict(found)


def _quit(problems: list[str]) -> NoReturn:
    lines = ["配置有误，什么都还没有做："] + [f"  · {problem}" for problem in problems]
    print("\n".join(lines), file=sys.stderr)
    sys.exit(2)
