"""唯一的训练循环：train_gpt.py（单进程）与 train_gpt_ddp.py（多进程）都用它。

一次更新的故事：取 ACCUM_STEPS 个微批次 → 各算各的梯度（显存不够就把行分开重算）→ 进程间汇总
→ 检查有限 → 裁剪 → 优化器走一步 → 记录；到了边界就验证、写诗、保存。
第 n 个微批次（含 dropout）只由（种子、更新、n）决定，所以被杀掉再续训、换进程数，都是同一次训练。
CUDA 上的路径与 CPU 是同一份代码，但没有在显卡上跑过。
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import checkpoint
import dataset
from gpt import GPT, GPTConfig
from support import artefacts, console, files, hardware
from support.console import UserError
from training import distributed, memory, optim, runlog, validation, warmstart
from training.batching import BatchPlan, Prefetcher, assemble, split_for
from writing import engine

SAMPLE_QUESTION = "一只鸟在想方向"
_STEPS_OF_SHAPE = 16  # 一份的 token 数补到最大的一份的这么多分之一的倍数


@dataclass(frozen=True)
class Settings:
    """训练要用的配置；字段就是 config.py 里小写的名字。"""

    work_dir: str
    max_seq_len: int
    gpt_dim: int
    gpt_head: int
    gpt_ff: int
    gpt_blocks: int
    rope_theta: float
    dropout: float
    seed: int
    train_iter: int
    batch_size: int
    accum_steps: int
    learning_rate: float
    muon_lr: float
    warmup_steps: int
    decay_share: float
    optimizer: str
    weight_decay: float
    grad_clip: float
    save_every: int
    eval_every: int
    sample_every: int
    early_stop: int
    max_bad_steps: int
    grad_checkpoint: str
    init: str
    resume: str
    device: str
    dtype: str
    compile: str
    dist_timeout: float
    temperature: float
    top_k: int
    repetition_penalty: float
    max_new_tokens: int

    @classmethod
    def pick(cls, values: dict) -> Settings:
        """从 config.values() 里挑出需要的。"""
        return cls(**{field.name: values[field.name.upper()] for field in fields(cls)})

    @property
    def budget(self) -> int:
        """一个微批次的 token 数上限。"""
        return self.batch_size * self.max_seq_len

    @property
    def updates(self) -> int:
        return -(-self.train_iter // self.accum_steps)


# 续训时必须相同的配置；其余的改了就照新的来，并说出来
FIXED = (
    "gpt_dim",
    "gpt_head",
    "gpt_ff",
    "gpt_blocks",
    "max_seq_len",
    "rope_theta",
    "seed",
    "optimizer",
    "batch_size",
    "accum_steps",
)


def lr_scale(update: int, total: int, warmup: int, decay_share: float) -> float:
    """第 update 次更新（从 0 数）的学习率倍数：线性预热、保持、最后 decay_share 线性降到 0。"""
    warmup = min(warmup, total // 10)
    rise = (update + 1) / (warmup + 1)
    fall = (total - update) / max(1.0, decay_share * total)
    return max(0.0, min(1.0, rise, fall))


def micro_batches(update: int, settings: Settings) -> range:
    """一次更新的微批次编号；最后一次更新可能不足 ACCUM_STEPS 个。"""
    first = update * settings.accum_steps
    return range(first, min(first + settings.accum_steps, settings.train_iter))


def is_out_of_memory(error: BaseException) -> bool:
    """显存（或内存）不足。"""
    kind = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
    if isinstance(error, (kind, torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


class Interrupted(Exception):
    """收到 Ctrl-C 或 SIGTERM：放弃没做完的更新，保存最后一次完整的更新。"""


class StopSignal:
    """第一次 Ctrl-C / SIGTERM 只立一个标志，第二次照常中断。

    patient：终端与 torchrun 会把同一次 Ctrl-C 各送一遍，几秒内的重复不算第二次。
    """

    def __init__(self, patient: bool = False) -> None:
        self.received = 0
        self._patience, self._first = (5.0 if patient else 0.0), 0.0
        self._old = {}

    def __enter__(self) -> StopSignal:
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None:
                with contextlib.suppress(ValueError):  # 不在主线程时不能装
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if not self.received:
            self.received, self._first = number, time.monotonic()
        elif time.monotonic() - self._first >= self._patience:
            raise KeyboardInterrupt

    def check(self) -> None:
        if self.received:
            raise Interrupted


class LossScale:
    """fp16 的损失放大：溢出减半并跳过，连续 2000 次正常加倍。其余精度恒为 1。"""

    GROWTH = 2000

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.value = 65536.0 if enabled else 1.0
        self.good = 0

    def update(self, finite: bool) -> None:
        if not self.enabled:
            return
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 2.0**-14)
        elif self.good == self.GROWTH:
            self.value, self.good = min(self.value * 2, 2.0**24), 0

    def state_dict(self) -> dict:
        return {"value": self.value, "good": self.good}

    def load_state_dict(self, state: dict) -> None:
        if self.enabled:
            self.value, self.good = state["value"], state["good"]


class _GradientSum(nn.Module):
    """让 DDP 汇总已经累积好的梯度：前向恒为 0，反向只触发 DDP 的分桶 all-reduce。

    各进程先在 no_sync 之下算完自己的微批次，确认没有谁显存不足，再一起做这一步。
    于是出错时没有半途的通信，没分到微批次的进程自然权重为 0。
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self):
        return sum(p.sum() * 0.0 for p in self.model.parameters())


class Run:
    """一次训练（可能跨多次启动）。"""

    def __init__(self, values: dict, ranks: distributed.Ranks) -> None:
        """values：config.values()；ranks：本进程在哪一组里，单进程是 Ranks()。"""
        hardware.keep_memory()
        self.values, self.ranks = values, ranks
        self.settings = Settings.pick(values)
        self.folder = files.work_path(self.settings.work_dir, ".")
        self.stop = StopSignal(patient=ranks.world > 1)
        saved = ranks.together(self._open)
        saved, source = self._newest(saved)
        self.device, self.dtype = ranks.together(self._pick_device)
        self._agree()
        ranks.connect(self.device)
        if source is not None:
            saved = ranks.share(saved, source, self._talk_device())
        self.config = self._model_config()
        torch.manual_seed(self.settings.seed)
        self.model = GPT(self.config).to(self.device)
        self.split = split_for(self.settings.budget, self.device.type)
        self.model.configure(
            grad_checkpoint=self.settings.grad_checkpoint == "on",
            quantum=max(1, self.settings.budget // self.split // _STEPS_OF_SHAPE),
        )
        self.optimizers = self._new_optimizers()
        self.scale = LossScale(enabled=self.dtype == torch.float16)
        self.position = {"update": 0, "tokens": 0, "seconds": 0.0, "bad": 0, "skipped": 0}
        self.position["pending"] = None  # 更新已做、边界上的事（验证、写诗、记录）还没做完的那一行
        self.best = {"val_bpc": math.inf, "iter": 0, "stale": 0}
        self.warm_seconds = 0.0
        if saved is not None:
            self._restore(saved)
        elif ranks.rank == 0 and self._worth_counting():  # 其余进程由 DDP 从 0 号同步
            self._warm_start()
        self.resumed = saved is not None
        self.plan = BatchPlan(self.lengths, self.settings.budget, self.settings.seed)

    # ── 准备 ──────────────────────────────────────────────────────────

    def _open(self):
        """本机的数据集、分词器和（每台机器一个进程读的）检查点。"""
        self.data = self._open_data()
        self.tokenizer = self._tokenizer()
        saved = self._saved_state() if self.ranks.reads_files else None
        if saved is not None:
            self._refuse_changes(saved)
        return saved

    def _newest(self, saved):
        """各机器的检查点里最新的那个算数，有它的进程从此写文件；返回 (saved, 它的编号)。

        通常是 0 号；换过机器、重排过编号时，也不会从旧的或空的检查点开始。
        """
        mine = None
        if saved is not None:
            mine = {"update": saved["position"]["update"], "chosen": saved["chosen"]}
        everyone = self.ranks.everyone(mine)
        owners = [rank for rank, there in enumerate(everyone) if there is not None]
        if not owners:
            return None, None
        source = max(owners, key=lambda rank: (everyone[rank]["update"], -rank))
        self.ranks.writer = source
        self.settings = self._reuse_choices(everyone[source]["chosen"])
        return saved, source

    def _pick_device(self):
        device = hardware.pick_device(self.settings.device, self.ranks.local_rank)
        return device, hardware.pick_dtype(self.settings.dtype, device)

    def _open_data(self):
        path = self.folder / "dataset.bin"
        if not path.exists():
            raise UserError(
                f"没有找到 {path}。\n请先制作数据集：python train_dataset_one.py"
                "（或 python train_dataset_all.py）"
            )
        data = dataset.load(path)
        if data.header["max_seq_len"] > self.settings.max_seq_len:
            raise UserError(
                f"dataset.bin 是按 MAX_SEQ_LEN={data.header['max_seq_len']} 做的，"
                f"比现在的 {self.settings.max_seq_len} 长。\n"
                "请重做数据集：python train_dataset_one.py"
            )
        first, last = data.range("train")
        if last == first:
            raise UserError("dataset.bin 里没有训练诗。请重做数据集：python train_dataset_one.py")
        self.train_first = first
        self.lengths = np.asarray(data.lengths("train")) - 1
        self.trained = np.asarray(data.trained("train"))
        return data

    def _tokenizer(self):
        from tokenizer import HFTokenizer

        return HFTokenizer.from_json(self.data.tokenizer_json)

    def _saved_state(self):
        if self.settings.resume == "off":
            return None
        return checkpoint.load_newest(self.settings.work_dir)

    def _reuse_choices(self, chosen):
        """auto 的选择随检查点沿用。"""
        values = dict(self.values)
        for name, choice in chosen.items():
            if values[name] == "auto" and not (name == "DEVICE" and not _device_there(choice)):
                values[name] = choice
        return Settings.pick(values)

    def _model_config(self):
        s = self.settings
        return GPTConfig(
            vocab_size=self.tokenizer.vocab_size,
            max_seq_len=s.max_seq_len,
            dim=s.gpt_dim,
            n_head=s.gpt_head,
            ff=s.gpt_ff,
            n_block=s.gpt_blocks,
            rope_theta=s.rope_theta,
            dropout=s.dropout,
        )

    def _new_optimizers(self):
        s = self.settings
        muon_dtype = torch.float32 if self.dtype == torch.float32 else torch.bfloat16
        return optim.build(
            self.model, s.optimizer, s.learning_rate, s.muon_lr, s.weight_decay, muon_dtype
        )

    def _worth_counting(self):
        """词嵌入要不要由统计算出；诗太少时互信息不可靠，随机的起点最后更好。"""
        init = self.settings.init
        return init == "data" or (init == "auto" and int(self.trained.sum()) >= warmstart.ENOUGH)

    def _warm_start(self):
        """词嵌入与末归一化的起点；用的时间算在训练里。"""
        began = self._now()
        table, weight = warmstart.embedding(
            *self.data.stream("train"), self.config.vocab_size, self.config.dim, self.settings.seed
        )
        if table is not None:
            self.model.embed.weight.data.copy_(table)
            self.model.norm.weight.data.copy_(weight)
        hardware.give_back_memory()
        self.warm_seconds = self.position["seconds"] = self._now() - began

    def _refuse_changes(self, saved):
        """必须相同的配置变了就拒绝，一次说全。"""
        old = Settings.pick({**self.values, **saved["config"]})
        pairs = [(name, getattr(old, name), getattr(self.settings, name)) for name in FIXED]
        problems = [
            f"  · {name.upper()}：检查点是 {was}，现在是 {now}"
            for name, was, now in pairs
            if was != now
        ]
        if checkpoint.tokenizer_of(saved).fingerprint != self.tokenizer.fingerprint:
            problems.append("  · 分词器：与检查点里的不同")
        if saved["dataset"] != self.data.fingerprint:
            problems.append("  · dataset.bin：与检查点训练用的不是同一份")
        if problems:
            raise UserError(
                "检查点不能照现在的配置接着训练（什么都没有改动）：\n"
                + "\n".join(problems)
                + "\n改回原来的值就能继续；要另起一次训练：加 --RESUME=off（旧产物会改名留着），"
                "或换一个 --WORK_DIR"
            )

    def _agree(self):
        names = [field.name.upper() for field in fields(Settings)]
        watched = {n: self.values[n] for n in names if n not in ("WORK_DIR", "DEVICE")}
        self.ranks.agree(
            {
                **watched,
                "dataset.bin": self.data.fingerprint[:12],
                "分词器": self.tokenizer.fingerprint[:12],
                "设备": self.device.type,
                "精度": hardware.dtype_name(self.dtype),
            }
        )

    def _restore(self, saved):
        checkpoint.load_weights(self.model, saved["weights"])
        self.optimizers.load_state_dict(saved["optimizer"])
        self.scale.load_state_dict(saved["scaler"])
        self.position = dict(saved["position"])
        self.best = dict(saved["best"])
        names = {field.name.upper() for field in fields(Settings)} - {"WORK_DIR", "RESUME"}
        self.taken_over = [
            f"{name}：{saved['config'][name]} → {self.values[name]}"
            for name in self.values
            if name in names and saved["config"].get(name, self.values[name]) != self.values[name]
        ]

    def _prepare_files(self):
        """新的训练把旧产物改名留着；续训把记录裁到检查点的位置。"""
        if not self.ranks.first:
            return
        if not self.resumed:
            names = (artefacts.CHECKPOINT, artefacts.CHECKPOINT_PREVIOUS, artefacts.BEST_MODEL)
            names += (runlog.LOG, runlog.PICTURE, runlog.SAMPLES, runlog.INFO)
            for name in names:
                aside = files.keep_aside(self.folder / name)
                if aside is not None:
                    print(f"已有的 {name} 改名为 {aside.name}")
        done = self.position["update"] - (1 if self.position["pending"] else 0)
        runlog.trim_samples(self.folder / runlog.SAMPLES, self._iteration(done))
        self.log = runlog.TrainLog(self.folder / runlog.LOG, done)

    def _wrap(self):
        """编译与 DDP；名字都不进权重。"""
        compiled, self.compile_reason = hardware.pick_compile(
            self.settings.compile, self.device, self._is_long()
        )
        self.compiled = compiled
        if compiled:
            self.model.configure(compiled=True)
            self._try_compile()
        self.gradient_sum = None
        if self.ranks.world > 1:
            with self.ranks.talking():
                self.gradient_sum = DistributedDataParallel(_GradientSum(self.model))

    def _is_long(self):
        """全程的计算量够不够让编译省下的时间超过编译本身（约一分钟）。"""
        work = self.settings.train_iter * self.settings.budget * self.model.flops_per_token()
        return work > (2e15 if self.device.type == "cuda" else 1e14)

    def _try_compile(self):
        """先编译一次；auto 时失败就退回普通执行。"""
        batch = self._batch(self.position["update"] * self.settings.accum_steps)
        try:
            for part in batch.parts(self.split):
                self._backward(part, 1.0, seed=0)
        except Exception as error:
            if self.settings.compile == "on" or is_out_of_memory(error):
                raise
            self.model.configure(compiled=False)
            self.compiled, self.compile_reason = False, f"编译失败：{type(error).__name__}"
        self.model.zero_grad(set_to_none=True)

    # ── 循环 ──────────────────────────────────────────────────────────

    def fit(self) -> dict:
        """训练到头；返回 {"val_bpc", "iter", "updates", "seconds", "skipped", "stopped"}。"""
        if self.position["update"] >= self.settings.updates:
            return self._already_done()
        self._prepare_files()
        with self.stop:
            try:
                self._wrap()
                self._announce()
                self._loop()
                self._finish()
            except Interrupted:
                self._save_interrupted()
                return self._result(stopped=self.stop.received)
            except distributed.LostPeer:
                self._save(final=True)  # 最后一次完整的更新，自动重启就从这里接着
                raise
            finally:
                self._close()
        return self._result()

    def _loop(self):
        self.bar = self._progress_bar()
        if self.position["pending"]:
            self._boundary(self.position["pending"])
        self.feed = self._feed()
        self.ranks.start_clock()
        self.started, self.foretold = self._now(), False
        first = self.position["update"]
        while not self._is_over():
            began = self._now()
            outcome = self._update(self.position["update"])
            row = self._advance(outcome, self._now() - began)
            self._boundary(row)
            self._foretell(first)

    def _is_over(self):
        if self.settings.early_stop and self.best["stale"] >= self.settings.early_stop:
            self._say(f"验证损失连续 {self.best['stale']} 次没有下降，提前结束。")
            return True
        return self.position["update"] >= self.settings.updates

    def _now(self):
        return time.perf_counter()

    def _feed(self):
        """后台按次序准备本进程接下来的微批次。"""
        first = self.position["update"]

        def mine():
            update = first
            while update < self.settings.updates:
                yield from self._my_share(update)
                update += 1

        return Prefetcher(self._batch, mine())

    def _my_share(self, update):
        """本进程算的微批次：从费时的到省时的来回发牌，各进程差不多同时算完。"""
        numbers, world = micro_batches(update, self.settings), self.ranks.world
        if world == 1:
            return numbers
        dealt = sorted(numbers, key=self._cost, reverse=True)
        seats = (self.ranks.rank, 2 * world - 1 - self.ranks.rank)
        return sorted(number for i, number in enumerate(dealt) if i % (2 * world) in seats)

    def _cost(self, number):
        """一个微批次大概费时多少：每个 token 一份，注意力随长度再加。"""
        documents = self.plan.documents(number)
        longest = int(self.lengths[documents].max())
        return len(documents) * longest * (1000 + longest)

    def _batch(self, number):
        documents = self.plan.documents(number)
        return assemble([self.data.document(self.train_first + int(i))[:2] for i in documents])

    def _update(self, update):
        """算出一次更新并应用；返回 {"loss", "tokens", "scale"}。"""
        numbers = micro_batches(update, self.settings)
        chosen = [self.plan.documents(number) for number in numbers]
        trained = int(sum(self.trained[documents].sum() for documents in chosen))
        tokens = int(sum(self.lengths[documents].sum() for documents in chosen))
        batches = [(number, self.feed.get(number)) for number in self._my_share(update)]
        loss = self._gradients(batches, trained)
        self._reduce()
        scale = self._lr_scale(update)
        finite = self._step(loss, scale)
        return {"loss": loss, "tokens": tokens, "scale": scale, "finite": finite}

    def _gradients(self, batches, trained):
        """本进程的梯度，和全体每 token 的平均损失；有谁显存不足就全体把行分得更细重来。"""
        weight = self.ranks.world * self.scale.value / max(1, trained)
        while True:
            self.model.zero_grad(set_to_none=True)
            total, short = 0.0, 0
            try:
                total = self._local_gradients(batches, weight)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                short = 1
            stopped = 1 if self.stop.received else 0
            total, shorts, stops = self.ranks.sum([total, short, stopped], self._talk_device())
            if stops:
                raise Interrupted
            if not shorts:
                return total / max(1, trained)
            self._split_more(batches)

    def _local_gradients(self, batches, weight):
        total = torch.zeros((), device=self.device)
        for number, batch in batches:
            if self.ranks.world == 1:
                self.stop.check()
            for index, part in enumerate(batch.parts(self.split)):
                total += self._backward(part, weight, self._seed(number, index))
        return total.item()  # 一次更新只在这里等一次设备

    def _backward(self, part, weight, seed):
        """一份微批次的前向与反向；返回损失之和（不求导的标量）。"""
        inputs, where, labels = (self._to_device(array) for array in part)
        torch.manual_seed(seed)
        with hardware.autocast(self.device, self.dtype):
            loss = self.model(inputs, where, labels)
        (loss * weight).backward()
        return loss.detach()

    def _to_device(self, array):
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _seed(self, number, index):
        entropy = (self.settings.seed, number, index)
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _split_more(self, batches):
        rows = max((len(batch.inputs) for _, batch in batches), default=0)
        rows = self.ranks.sum([rows], self._talk_device())[0]
        if self.split >= rows:
            raise UserError(
                "显存不够：一次只算一首诗也放不下。最近的检查点是完好的。\n"
                "可以：--GRAD_CHECKPOINT=on，或减小 MAX_SEQ_LEN、GPT_DIM（要重新训练）。"
            )
        self.split *= 2
        self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._say(f"显存不够，改成每个微批次分 {self.split} 份计算（梯度不变），重做这次更新。")

    def _reduce(self):
        if self.gradient_sum is None:
            return
        for param in self.model.parameters():  # 没分到微批次的进程梯度为 0
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        with self.ranks.talking("reduce"):
            self.gradient_sum().backward()

    def _talk_device(self):
        return self.device if self.device.type == "cuda" else "cpu"

    def _step(self, loss, lr):
        """检查、裁剪、走一步；非有限时跳过并返回 False。"""
        grads = [p.grad for p in self.model.parameters()]
        norm = torch.stack([grad.float().norm() for grad in grads]).norm().item() / self.scale.value
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            clip = self.settings.grad_clip
            shrink = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
            if shrink != 1.0 or self.scale.value != 1.0:
                torch._foreach_mul_(grads, shrink / self.scale.value)
            self.optimizers.step(lr)
        self.model.zero_grad(set_to_none=True)
        self.scale.update(finite)
        return finite

    def _lr_scale(self, update):
        s = self.settings
        return lr_scale(update, s.updates, s.warmup_steps, s.decay_share)

    def _advance(self, outcome, seconds):
        """位置前进一次更新，返回 train_log.csv 的一行。"""
        here = self.position
        here["update"] += 1
        here["tokens"] += outcome["tokens"]
        here["seconds"] += seconds
        here["bad"] = 0 if outcome["finite"] else here["bad"] + 1
        here["skipped"] += 0 if outcome["finite"] else 1
        row = {
            "iter": self._iteration(here["update"]),
            "update": here["update"],
            "loss": f"{outcome['loss']:.6f}",
            "val_bpc": "",
            "lr": f"{self.settings.learning_rate * outcome['scale']:.6g}",
            "tokens": here["tokens"],
            "tokens_per_s": f"{outcome['tokens'] / seconds:.1f}",
            "seconds": f"{here['seconds']:.2f}",
        }
        here["pending"] = row
        if here["bad"]:
            self._bad_update(here["bad"])
        return row

    def _bad_update(self, count):
        self._say(f"这次更新出现非有限的损失或梯度，已跳过（连续第 {count} 次）。")
        if count >= self.settings.max_bad_steps:
            raise UserError(
                f"连续 {count} 次更新都是非有限值，停止训练；最近的检查点没有被它们影响。\n"
                "请降低学习率再继续，例如：--LEARNING_RATE=0.001 --MUON_LR=0.005"
            )

    def _iteration(self, update):
        return min(update * self.settings.accum_steps, self.settings.train_iter)

    # ── 边界：验证、写诗、记录、保存 ──────────────────────────────────

    def _boundary(self, row):
        now = row["iter"]
        last = self.position["update"] >= self.settings.updates
        before = now - self.settings.accum_steps
        if last:
            before = self._iteration(self.position["update"] - 1)

        def due(every):
            return last or now // every > before // every

        if due(self.settings.eval_every):
            row["val_bpc"] = f"{self._validate(now):.6f}"
        if due(self.settings.sample_every):
            self._write_sample(now)
        self.position["pending"] = None
        if self.ranks.first:
            self.log.add(row)
        if due(self.settings.save_every):
            self._save()
        self._show(row)

    def _validate(self, iteration):
        """验证集的比特/字；更低就写 best_model.bin。"""
        bpc = self.validation_bpc()
        if not bpc < self.best["val_bpc"]:
            self.best["stale"] += 1
            return bpc
        before = self.best
        self.best = {"val_bpc": bpc, "iter": iteration, "stale": 0}
        if not self._write(artefacts.BEST_MODEL, self.state(full=False)):
            self.best = before  # 没存下就不算，下次验证再试
        return bpc

    def validation_bpc(self) -> float:
        """只给标题、整首放得下的验证诗：比特数之和 ÷ 字数之和；各进程各算一份。"""
        indices = self._validation_documents()
        mine = indices[self.ranks.rank :: self.ranks.world]
        documents = [self.data.document(int(i))[:2] for i in mine]
        check = self.stop.check if self.ranks.world == 1 else None
        nats = validation.document_nats(
            self.model,
            documents,
            budget=self.settings.budget,
            device=self.device,
            dtype=self.dtype,
            check=check,
        )
        chars = sum(int(self.data.chars[i]) for i in mine)
        nats, chars = self.ranks.sum([float(nats.sum()), chars], self._talk_device())
        return validation.bits(nats) / max(1.0, chars)

    def _validation_documents(self):
        first, last = self.data.range("val")
        indices = np.arange(first, last)
        chosen = [i for i in indices if self.data.whole[i] and self.data.kind(int(i)) == "title"]
        return np.asarray(chosen or [i for i in indices if self.data.whole[i]] or indices)

    def _write_sample(self, iteration):
        if not self.ranks.first:
            return
        text = self.sample_poem(SAMPLE_QUESTION, seed=iteration)
        runlog.add_sample(self.folder / runlog.SAMPLES, iteration, SAMPLE_QUESTION, text)

    def sample_poem(self, question: str, seed: int) -> str:
        """用此刻的权重写一首；不动训练的随机数。"""
        s = self.settings
        self.model.eval()
        try:
            poet = engine.Poet(self.model, self.tokenizer)
            request = poet.request(
                question,
                temperature=s.temperature,
                top_k=s.top_k,
                repetition_penalty=s.repetition_penalty,
                max_new_tokens=s.max_new_tokens,
                seed=seed,
            )
            return "".join(text for _, text, _ in poet.poems(request))
        finally:
            self.model.train()

    def state(self, full: bool = True) -> dict:
        """检查点的内容；full=False 时是只够推理的 best_model.bin。"""
        state = {
            "model_config": {**self.config.to_dict()},
            "weights": checkpoint.weights_of(self.model),
            "tokenizer": self.data.tokenizer_json,
            "prompt_kinds": list(self.data.prompt_kinds),
            "config": dict(self.values),
            "dataset": self.data.fingerprint,
            "chosen": {
                "DEVICE": self.device.type,
                "DTYPE": hardware.dtype_name(self.dtype),
                "COMPILE": "on" if self.compiled else "off",
            },
            "position": dict(self.position),
            "best": dict(self.best),
        }
        if full:
            state["optimizer"] = self.optimizers.state_dict()
            state["scaler"] = self.scale.state_dict()
        return state

    def _write(self, name, state, keep_previous=False, final=False) -> bool:
        """写一个检查点文件；训练途中写不下时只警告并返回 False。只有写文件的进程真的写。"""
        if not self.ranks.first:
            return True
        try:
            checkpoint.save(self.folder / name, state, keep_previous=keep_previous)
        except UserError as error:
            if final:
                raise
            self._say(f"警告：{error}\n训练继续，下一次保存时再试。")
            return False
        return True

    def _save(self, final: bool = False):
        """保存检查点，重画曲线。"""
        if not self.ranks.first:
            return
        if self._write(artefacts.CHECKPOINT, self.state(), keep_previous=True, final=final):
            runlog.draw(self.folder / runlog.LOG, self.folder / runlog.PICTURE)

    def _finish(self):
        """收尾：无论多短，都有验证、示例诗、checkpoint.bin 与 best_model.bin。"""
        if not math.isfinite(self.best["val_bpc"]):
            self._validate(self._iteration(self.position["update"]))
        self._save(final=True)
        here = self.position
        self._say(
            f"训练完成：{here['update']} 次更新，{console.duration(here['seconds'])}，"
            f"验证 {self.best['val_bpc']:.3f} 比特/字（最佳在第 {self.best['iter']} 次迭代）。\n"
            f"模型：{self.folder / artefacts.BEST_MODEL}\n下一步：python infere.py 与它对话，"
            "python evaluate.py 评测" + self.ranks.report()
        )

    def _save_interrupted(self):
        self._save(final=True)
        self._say(
            f"已停下。第 {self.position['update']} 次更新以前的都已保存在 {artefacts.CHECKPOINT}，"
            "没做完的那次更新已丢弃。\n接着训练：重新运行同一条命令。"
        )

    def _close(self):
        for name in ("feed", "bar"):
            part = getattr(self, name, None)
            if part is not None:
                part.close()
        if self.ranks.first and hasattr(self, "log"):
            self.log.close()

    def _already_done(self):
        self._say(
            f"这次训练已经完成（{self.position['update']} 次更新，"
            f"最佳 {self.best['val_bpc']:.3f} 比特/字）。\n"
            f"要延长：加大 TRAIN_ITER，例如 --TRAIN_ITER={self.settings.train_iter * 2}；"
            "要重新开始：--RESUME=off"
        )
        return self._result()

    def _result(self, stopped=0):
        return {
            "val_bpc": self.best["val_bpc"],
            "iter": self._iteration(self.position["update"]),
            "updates": self.position["update"],
            "seconds": self.position["seconds"],
            "skipped": self.position["skipped"],
            "stopped": stopped,
        }

    # ── 给人看 ────────────────────────────────────────────────────────

    def _say(self, text):
        if self.ranks.first:
            bar = getattr(self, "bar", None)
            (bar.write if bar is not None else print)(text)

    def _announce(self):
        """开场的几行：参数、数据、计划、设备。"""
        if not self.ranks.first:
            return
        s, model = self.settings, self.model
        total = sum(p.numel() for p in model.parameters())
        tokens = int(self.lengths.sum())
        epochs = s.train_iter / self.plan.per_epoch
        self.peak = hardware.measure_peak(self.device, self.dtype)
        predicted = self._predicted_memory()
        lines = [
            f"模型：{total / 1e6:.1f} M 参数（{s.gpt_blocks} 层 × {s.gpt_dim} 维，"
            f"词表 {self.config.vocab_size}）",
            f"数据：{len(self.lengths)} 个文档，{tokens / 1e6:.2f} M token；"
            f"验证 {len(self._validation_documents())} 首"
            + ("（就是训练诗）" if self.data.val_is_train else ""),
            f"计划：{s.train_iter} 次迭代 = {s.updates} 次更新，约 {epochs:.1f} 遍数据；"
            f"每次更新至多 {s.budget * s.accum_steps} 个 token",
            f"设备：{self.device} × {self.ranks.world}，{hardware.dtype_name(self.dtype)}，"
            f"{'编译' if self.compiled else '不编译'}（{self.compile_reason}），"
            f"矩阵乘峰值 {self.peak / 1e9:.0f} GFLOP/s",
            f"预计峰值内存：{memory.pretty(predicted)}（不含 CUDA 上下文与碎片）",
        ]
        if self.warm_seconds:
            lines.append(f"起点：词嵌入由训练集的相邻词统计算出（{self.warm_seconds:.1f} 秒）")
        if self.resumed:
            lines.append(f"续训：从第 {self.position['update']} 次更新接着来")
            lines += [f"  改了配置 {change}" for change in self.taken_over]
        print("\n".join(lines))
        info = {
            "train_iter": s.train_iter,
            "updates": s.updates,
            "started": time.time(),
            "parameters": total,
            "device": str(self.device),
            "dtype": hardware.dtype_name(self.dtype),
            "world": self.ranks.world,
            "memory_mb": predicted >> 20,
        }
        runlog.write_info(self.folder / runlog.INFO, info)

    def _predicted_memory(self):
        """一次更新的峰值内存（字节）；短的训练用公式，免得多等两秒。"""
        s = self.settings
        return memory.predict_peak(
            self.config,
            -(-s.batch_size // self.split),
            s.max_seq_len,
            dtype=hardware.dtype_name(self.dtype),
            optimizer=s.optimizer,
            grad_checkpoint=s.grad_checkpoint == "on",
            compiled=self.compiled,
            device=self.device.type,
            world=self.ranks.world,
            quick=s.train_iter < 200,
        )

    def _foretell(self, first):
        """训练满一分钟时，说一次预计什么时候结束；first 是这次启动时的更新次数。"""
        seconds, done = self._now() - self.started, self.position["update"]
        if self.foretold or seconds < 60:
            return
        self.foretold = True
        left = seconds / (done - first) * max(0, self.settings.updates - done)
        end = time.strftime("%m-%d %H:%M", time.localtime(time.time() + left))
        self._say(f"照现在的速度，还要 {console.duration(left)}，约 {end} 训练完。")

    def _progress_bar(self):
        if not self.ranks.first:
            return None
        done = self._iteration(self.position["update"])
        return console.progress(self.settings.train_iter, "训练", "次", initial=done)

    def _show(self, row):
        if getattr(self, "bar", None) is None:
            return
        speed = float(row["tokens_per_s"])
        mfu = self.model.flops_per_token() * speed / self.peak / self.ranks.world
        best = f"{self.best['val_bpc']:.3f}" if math.isfinite(self.best["val_bpc"]) else "—"
        self.bar.set_postfix_str(
            f"损失 {float(row['loss']):.3f} 验证 {best} 学习率 {row['lr']} "
            f"{speed:.0f} token/s MFU {mfu:.2f} 第 {1 + row['iter'] // self.plan.per_epoch} 遍",
            refresh=False,
        )
        self.bar.update(row["iter"] - self.bar.n)


def _device_there(name: str) -> bool:
    return name != "cuda" or torch.cuda.is_available()


def train(values: dict) -> dict:
    """按 config.values() 训练（或续训）到头，返回 Run.fit() 的结果。"""
    group = distributed.start(values["RESUME"], values["DIST_TIMEOUT"])
    try:
        return Run(values, group).fit()
    finally:
        group.close()


def exit_code(result: dict) -> int:
    """训练结果 → 退出码：被信号停下时是 128 + 信号编号。"""
    return 128 + result["stopped"] if result["stopped"] else 0
