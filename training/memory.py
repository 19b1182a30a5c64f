"""预测一次更新的峰值内存：训练前就知道显存够不够。

simulate 用真正的模型、损失和优化器，在 FakeTensorMode 里走一遍（只有形状，没有数据），
记下每个存储的出生与消亡；formula 是同一件事的近似公式，立刻就有。predict_peak 先试前者。
只算张量：CUDA 上下文、碎片由 fits 另外留出。在 H200 上核对过：真的 861 MB，估计 794 MB。
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable

import torch

import gpt
from kernels.cross_entropy import default_chunks
from support import hardware
from training import optim

try:  # torch 的内部接口；哪天没有了就只用公式
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:
    TorchDispatchMode = object

GIB = 1 << 30
# 张量以外要留的：CUDA 上下文与 cuBLAS 工作区约 0.5 GiB、桌面约 0.3 GiB；分配器碎片 15%
CONTEXT_BYTES = int(0.8 * GIB)
FRAGMENTATION = 1.15
_MOST_CHUNKS = 64  # 模拟时交叉熵至多分这么多块，免得大批次模拟太久
_PROBE_BLOCKS = (1, 2)  # 模拟这两种层数，其余按直线外推


@dataclass(frozen=True)
class Update:
    """一次更新的大小；rows × length 是最大的一个微批次。"""

    config: gpt.GPTConfig
    rows: int
    length: int
    trained: int  # 微批次里要训练的 token 数
    dtype: str = "fp32"  # fp32 | bf16 | fp16
    optimizer: str = "muon"
    grad_checkpoint: bool = False
    compiled: bool = False
    device: str = "cpu"  # cpu | cuda：决定交叉熵每块的行数

    @property
    def chunk(self) -> int:
        """交叉熵每块的行数。"""
        return min(self.trained, default_chunks(self.device).rows)


def predict_peak(
    config: gpt.GPTConfig,
    rows: int,
    length: int,
    trained: int | None = None,
    dtype: str = "fp32",
    optimizer: str = "muon",
    grad_checkpoint: bool = False,
    compiled: bool = False,
    device: str = "cpu",
    quick: bool = False,
) -> int:
    """训练一次更新的峰值内存（字节）；绝不抛出异常。

    trained 默认为全部 token；quick 时只用公式。compiled 不改变结果：编译后的算子少留一些激活，
    给出的是不编译时的上界。
    """
    trained = rows * length if trained is None else trained
    update = Update(
        config,
        rows,
        length,
        max(1, trained),
        dtype,
        optimizer,
        grad_checkpoint,
        compiled,
        device,
    )
    if not quick:
        with contextlib.suppress(Exception):  # FakeTensor 是 torch 的内部接口，各版本不同
            return simulate(update)
    return formula(update)


def pretty(size: float) -> str:
    """字节数 → 人读的大小。"""
    if size >= GIB:
        return f"{size / GIB:.1f} GB"
    return f"{size / (1 << 20):.0f} MB"


def needed(size: int) -> int:
    """张量峰值 → 显卡上实际要占的字节数（加上碎片与 CUDA 上下文）。"""
    return int(size * FRAGMENTATION) + CONTEXT_BYTES


def fits(size: int, gib: float = 8) -> bool:
    """张量峰值为 size 的训练放不放得进 gib GiB 的显卡。"""
    return needed(size) <= gib * GIB


# ── 模拟：真正的代码，假的张量 ────────────────────────────────────────


class _Meter(TorchDispatchMode):
    """每个算子之后，把新出现的存储记到账上；被回收了的销账。

    存储用 StorageWeakRef 认：给它的 Python 对象挂 weakref 的回调，Python 3.8 + torch 2.1 上见过
    解释器崩溃。
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {}  # StorageImpl 的地址 → (StorageWeakRef, 字节数)

    def __torch_dispatch__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self._drop_freed()
        for value in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        reference = StorageWeakRef(storage)
        if reference.cdata not in self._known:
            self._known[reference.cdata] = (reference, storage.nbytes())
            self.live += storage.nbytes()

    def _drop_freed(self) -> None:
        freed = [key for key, (reference, _) in self._known.items() if reference.expired()]
        for key in freed:
            self.live -= self._known.pop(key)[1]

    def take_peak(self) -> int:
        """上次取过以来的峰值。"""
        self._drop_freed()
        peak, self.peak = self.peak, self.live
        return peak


def simulate(update: Update) -> int:
    """模拟一次更新，返回峰值字节数；各层都相同，所以只模拟一层和两层，其余外推。

    torch 没有或改了所需的内部接口时，抛出什么由它决定。
    """
    blocks = update.config.n_block
    few, more = _PROBE_BLOCKS
    if blocks <= more:
        return max(_simulate_blocks(update, blocks))
    less, full = _simulate_blocks(update, few), _simulate_blocks(update, more)
    return max(int(a + (b - a) * (blocks - few) / (more - few)) for a, b in zip(less, full))


def _simulate_blocks(update: Update, blocks: int) -> tuple:
    """(前向与反向的峰值, 优化器一步的峰值)，字节。"""
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = replace(update.config, n_block=blocks)
    half = update.dtype != "fp32"  # bf16 与 fp16 一样大；旧版 CPU 上只有 bf16
    meter = _Meter()
    with FakeTensorMode(), meter:
        model = gpt.GPT(config, _execution(update))
        muon_dtype = torch.bfloat16 if half else torch.float32
        optimizers = optim.build(model, update.optimizer, 1e-3, 1e-3, 0.1, muon_dtype)
        for param in model.parameters():  # 梯度累积时，反向开始前梯度已经在了
            param.grad = torch.zeros_like(param)
        optimizers.step(1.0)  # 优化器的状态从这里起才有
        meter.take_peak()
        optimizers.step(1.0)
        step_peak = meter.take_peak()
        _one_micro_batch(model, update, half)
        train_peak = meter.take_peak()
    return train_peak, step_peak


def _execution(update: Update) -> gpt.Execution:
    """模拟时怎样算：假的张量都在 CPU 上，所以随设备而变的都要写明。"""
    rows = max(update.chunk, update.trained // _MOST_CHUNKS)
    return gpt.Execution(
        grad_checkpoint=update.grad_checkpoint,
        by_products=update.dtype != "fp32" and update.device == "cpu",
        fused=update.device == "cuda",
        chunks=default_chunks(update.device)._replace(rows=rows),
    )


def _one_micro_batch(model: gpt.GPT, update: Update, half: bool) -> None:
    ids = torch.zeros(update.rows, update.length, dtype=torch.long)
    where = torch.zeros(update.trained, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        loss = model(ids, where, labels=where)
    (loss * 1.0).backward()


# ── 公式 ──────────────────────────────────────────────────────────────


def formula(update: Update) -> int:
    """峰值字节数的近似公式：常驻的加上（前向与反向 或 优化器一步）的临时用量。"""
    resident = _resident_bytes(update)
    return int(resident + max(_training_bytes(update), _step_bytes(update)))


def _table(config: gpt.GPTConfig) -> int:
    """词嵌入的参数个数。"""
    return config.vocab_size * config.dim


def _matrices(config: gpt.GPTConfig) -> int:
    """各块的矩阵参数个数。"""
    return config.matrix_parameters() - _table(config)


def _resident_bytes(update: Update) -> int:
    """参数、梯度、优化器状态；都是 fp32。"""
    table, matrices = _table(update.config), _matrices(update.config)
    states = 2 * table + matrices * (2 if update.optimizer == "adamw" else 1)
    return 4 * (2 * (table + matrices) + states)


def _training_bytes(update: Update) -> int:
    """反向开始时留着的激活，加上交叉熵的一块或反向的临时张量（取大的）。"""
    c, half = update.config, update.dtype != "fp32"
    tokens, table = update.rows * update.length, _table(c)
    block = tokens * _block_bytes_per_token(update)
    kept = c.n_block * (tokens * c.dim * 4 if update.grad_checkpoint else block)
    ends = 4 * (5 * tokens * c.dim + 2 * update.trained * c.dim + table)  # 词嵌入、末归一化、输出层
    casts = 2 * (_matrices(c) + table) if half else 0  # 半精度的权重副本
    loss = update.chunk * c.vocab_size * _bytes_per_logit(update)
    gates = 4 * tokens * 2 * c.ff  # gate|up 的梯度
    backward = 4 * table + (block if update.grad_checkpoint else gates)
    return kept + ends + casts + max(loss, backward)


def _bytes_per_logit(update: Update) -> int:
    """交叉熵一块里每个 logit 占的字节：logits 与 exp 的几份副本，含上一块还没放手的。

    显卡上半精度时 softmax 直接读写半精度，没有 fp32 的副本。
    """
    fused = update.device == "cuda" and update.dtype != "fp32"
    return 4 if fused else 16


def _block_bytes_per_token(update: Update) -> int:
    """一层为反向留下的字节数（每个 token）；逐个数过 gpt.Block 里被保存的张量。"""
    c, wide = update.config, gpt.ACTIVATION_COPIES * update.config.ff
    if update.dtype == "fp32":
        return (64 if c.dropout else 56) * c.dim + 4 * wide
    return (52 if c.dropout else 48) * c.dim + 2 * wide


def _step_bytes(update: Update) -> int:
    """Muon 把同形状的矩阵拼在一起正交化时的临时张量。"""
    if update.optimizer == "adamw":
        return 0
    return _matrices(update.config) * (12 if update.dtype == "fp32" else 9)


# ── 实测：在新进程里真的更新两次 ──────────────────────────────────────


def measure(update: Update) -> int:
    """CPU 上真的训练两次更新，返回进程内存增长的峰值（字节）；子进程失败时抛 RuntimeError。

    glibc 会把 32 MB 以下释放了的块留在堆里，形成空洞（README 的模型上因此多占约六成）；
    这里让它用完就还给系统，量到的才是张量本身。
    """
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    values = asdict(update)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from training import memory; "
        "print(memory.measure_here(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder, json.dumps(values)],
        capture_output=True,
        check=False,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode("utf-8", "replace").strip()[-400:])
    return int(done.stdout.split()[-1])


def measure_here(text: str) -> int:
    """在本进程里量；先跑一个极小的模型，让各种库把自己的内存占好。"""
    values = json.loads(text)
    update = Update(**{**values, "config": gpt.GPTConfig(**values["config"])})
    tiny = replace(update.config, vocab_size=300, dim=32, n_head=2, ff=32, n_block=1)
    _really_update(replace(update, config=tiny, rows=2, length=16, trained=32))
    _forget_peak()
    before = hardware.process_memory()["now"]
    _really_update(update)
    return hardware.process_memory()["peak"] - before


def _really_update(update: Update) -> None:
    half = update.dtype != "fp32"
    config = update.config
    execution = gpt.Execution(update.grad_checkpoint, update.compiled)
    model = gpt.GPT(config, execution)
    muon_dtype = torch.bfloat16 if half else torch.float32
    optimizers = optim.build(model, update.optimizer, 1e-3, 1e-3, 0.1, muon_dtype)
    for _ in range(2):
        for _ in range(2):
            ids = torch.randint(3, config.vocab_size, (update.rows, update.length))
            where = torch.arange(update.trained)
            labels = torch.randint(3, config.vocab_size, (update.trained,))
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                loss = model(ids, where, labels)
            (loss / update.trained).backward()
        optimizers.step(1.0)
        model.zero_grad(set_to_none=True)


def _forget_peak() -> None:
    """让 VmHWM 从现在的用量重新记起（Linux；不许就算了）。"""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
