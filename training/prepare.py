"""开训之前：打开文件、各进程对齐、造好模型与优化器、装回检查点或算出起点、编译。"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import torch

import checkpoint
from gpt import GPT, Execution, GPTConfig
from support import artefacts, cuda, files, hardware
from support.console import UserError
from training import characters, growth, optim, regular, resume, sampled, teacher, warmstart
from training.beginning import Beginning, choose
from training.corpus import Corpus
from training.distributed import Ranks
from training.gradients import Gradients
from training.machine import Machine
from training.run import Run
from training.schedule import Schedule
from training.settings import Settings
from training.stepper import LossScale, Stepper
from training.stop import StopSignal
from training.voice import Voice

_STEPS_OF_SHAPE = 16  # 一份的 token 数补到最大的一份的这么多分之一的倍数


def open_run(values: dict, ranks: Ranks) -> Run:
    """values：config.values()；ranks：本进程在哪一组里，单进程是 Ranks()。"""
    hardware.keep_memory()
    folder = files.work_path(values["WORK_DIR"], ".")
    saved = ranks.together(lambda: resume.find(values) if ranks.reads_files else None)
    newest = resume.newest(saved, ranks)
    kept = newest.kept if newest is not None else None
    start = ranks.together(lambda: choose(values, kept))
    corpus = ranks.together(lambda: _open_corpus(folder, start, saved))
    values, remarks = _settle(start.values, corpus, newest)
    settings = Settings.pick(values)
    if newest is not None:
        settings = resume.reuse_choices(values, newest.chosen)
    machine = ranks.together(lambda: Machine.pick(settings, ranks.local_rank))
    refuse_shared_cards(machine, ranks)
    _agree(values, corpus, machine, ranks)
    ranks.connect(machine.device)
    model = _build_model(settings, corpus, machine)
    voice = Voice(ranks)
    run = Run(
        values=values,
        settings=settings,
        folder=folder,
        ranks=ranks,
        stop=StopSignal(patient=ranks.world_size > 1),
        voice=voice,
        corpus=corpus,
        machine=machine,
        model=model,
        gradients=Gradients(model, machine, settings, ranks, voice),
        stepper=_build_stepper(model, settings, corpus, machine),
        remarks=start.remarks + remarks,
    )
    run.gradients.teacher = teacher.find(settings, corpus, machine, ranks)
    if run.gradients.teacher is not None:
        run.remarks.append(run.gradients.teacher.told(settings.teacher))
    run.gradients.sampler = sampled.find(settings, corpus)
    if run.gradients.sampler is not None:
        run.remarks.append(run.gradients.sampler.told())
    model.configure(quantum=max(1, settings.budget // run.gradients.split // _STEPS_OF_SHAPE))
    if newest is not None:
        resume.restore(run, ranks.share(saved, newest.source))
    else:
        _start_anew(run, start.model)
    growth.begin(run)
    return run


def _open_corpus(folder: Path, start: Beginning, saved: dict | None) -> Corpus:
    """本机的数据集；与起点的模型或检查点对不上时抛 UserError。"""
    corpus = Corpus.open(folder, Settings.pick(start.values))
    start.refuse_other_tokenizer(corpus)
    if saved is not None:
        resume.refuse_changes(saved, start.values, corpus)
    return corpus


def _settle(values: dict, corpus: Corpus, newest: resume.Newest | None) -> regular.Settled:
    """写成 auto 的正则化 → 数。"""
    settings = Settings.pick(values)
    tokens = max(1, int(corpus.lengths.sum()))
    plan = regular.Plan(
        passes=settings.train_iter / corpus.plan.per_epoch,
        updates=settings.updates,
        lr=settings.muon_lr if settings.optimizer == "muon" else settings.learning_rate,
        density=_shape(settings, corpus).matrix_parameters() / tokens,
        tokens=tokens,
    )
    return regular.settle(values, plan, newest.regular if newest is not None else {})


def _agree(values: dict, corpus: Corpus, machine: Machine, ranks: Ranks) -> None:
    """各进程的配置、数据、设备必须相同。"""
    # 路径各机器可以不同；老师、起点由一个进程读，旧诗比的是内容
    elsewhere = ("WORK_DIR", "DEVICE", "TEACHER", "FROM", "REPLAY_DATA")
    watched = {n: values[n] for n in Settings.names() if n not in elsewhere}
    ranks.agree(
        {
            **watched,
            "起点": bool(values["FROM"]),
            "老师": len(teacher.paths(values["TEACHER"])),
            artefacts.DATASET: corpus.data.fingerprint[:12],
            "旧诗": resume.replayed(corpus)[:12],
            "分词器": corpus.tokenizer.fingerprint[:12],
            "设备": machine.device.type,
            "精度": machine.dtype_name,
        }
    )


def refuse_shared_cards(machine: Machine, ranks: Ranks) -> None:
    """两个进程不能用同一张显卡：NCCL 不肯，显存也只有一份。"""
    cards = [card for card in ranks.all_gather(cuda.card_id(machine.device)) if card]
    if len(set(cards)) < len(cards):
        ranks.refuse(
            "有两个进程选了同一张显卡。请让进程数等于卡数：--nproc_per_node=卡数；"
            "手工启动的给每个进程设 LOCAL_RANK，或先用 --DEVICE=cpu"
        )


def _shape(settings: Settings, corpus: Corpus) -> GPTConfig:
    """模型的形状；词表是分词器的真实大小。"""
    return GPTConfig(corpus.tokenizer.vocab_size, dropout=settings.dropout, **settings.shape())


def _build_model(settings: Settings, corpus: Corpus, machine: Machine) -> GPT:
    torch.manual_seed(settings.seed)
    config = _shape(settings, corpus)
    execution = Execution(grad_checkpoint=settings.grad_checkpoint == "on")
    return GPT(config, execution).to(machine.device)


def _build_stepper(model: GPT, settings: Settings, corpus: Corpus, machine: Machine) -> Stepper:
    optimizers = optim.build(
        model,
        settings.optimizer,
        settings.learning_rate,
        settings.muon_lr,
        settings.weight_decay,
        machine.muon_dtype,
        characters.spelling(corpus.tokenizer) if settings.char_lr else None,
        settings.char_lr,
    )
    scale = LossScale(enabled=machine.dtype == torch.float16)
    return Stepper(model, optimizers, scale, settings.grad_clip)


# ── 起点 ──────────────────────────────────────────────────────────────


def _start_anew(run: Run, model: checkpoint.Model | None) -> None:
    """新的训练：0 号进程定下起点（model 是 FROM 的模型），传给所有进程。"""
    if model is not None:
        checkpoint.load_weights(run.model, model["weights"])
    elif run.ranks.rank == 0 and _worth_counting(run):
        _warm_start(run)
    if run.ranks.world_size > 1:
        weights = run.model.state_dict() if run.ranks.rank == 0 else None
        run.model.load_state_dict(run.ranks.share(weights, source=0))


def _worth_counting(run: Run) -> bool:
    """词嵌入要不要由统计算出；诗太少时互信息不可靠，随机的起点最后更好。"""
    init = run.settings.init
    enough = int(run.corpus.trained.sum()) >= warmstart.ENOUGH
    return init == "data" or (init == "auto" and enough)


def _warm_start(run: Run) -> None:
    """词嵌入与末归一化的起点；用的时间算在训练里。"""
    began = time.perf_counter()
    config = run.model.config
    table, weight = warmstart.embedding(
        *run.corpus.data.stream("train"), config.vocab_size, config.dim, run.settings.seed
    )
    if table is not None:
        run.model.embed.weight.data.copy_(table)
        run.model.norm.weight.data.copy_(weight)
    hardware.give_back_memory()
    run.warm_seconds = run.position.seconds = time.perf_counter() - began


# ── 编译 ──────────────────────────────────────────────────────────────


def compile_model(run: Run, schedule: Schedule) -> None:
    """定下编译不编译；编译后的名字不进权重。"""
    machine, model = run.machine, run.model
    machine.compiled, machine.compile_reason = hardware.pick_compile(
        run.settings.compile,
        machine.device,
        schedule.is_long(model.flops_per_token(), machine.device.type),
    )
    if machine.compiled:
        # torch 2.1 导入编译器时警告它自己用了旧名字；使用者没有什么可改的
        warnings.filterwarnings("ignore", r"'has_\w+' is deprecated", UserWarning)
        model.configure(compiled=True)
        _try_compile(run)
    tell_uneven_compiling(run)


def tell_uneven_compiling(run: Run) -> None:
    """有的进程能编译、有的不能：结果一样，快慢由慢的定，所以要说。"""
    world_size = run.ranks.world_size
    compiled = int(run.ranks.sum([float(run.machine.compiled)])[0])
    if 0 < compiled < world_size:
        run.voice.say(
            f"{world_size} 个进程里只有 {compiled} 个能编译：结果不变，但都要等没有编译的"
        )


def _try_compile(run: Run) -> None:
    """先编译一次；auto 时失败就退回普通执行。"""
    batch = run.corpus.batch(run.settings.micro_batches(run.position.update)[0])
    parts = batch.parts(run.gradients.split)
    if run.machine.device.type == "cuda":  # 只有一行的要另编一次：趁现在，免得训练中途停半分钟
        parts = [*parts, batch.parts(len(batch.inputs))[0]]
    try:
        for part in parts:
            run.gradients.backward(part, 1.0, seed=0)
    except Exception as error:
        if not hardware.is_out_of_memory(error):  # 显存不够不是编译的错：训练时会把行分开算
            _compile_failed(run, error)
    run.gradients.clear()
    hardware.forget_freed_memory(run.machine.device)


def _compile_failed(run: Run, error: Exception) -> None:
    lines = str(error).strip().splitlines()
    reason = f"编译失败：{type(error).__name__}" + (f"，{lines[0][:120]}" if lines else "")
    if run.settings.compile == "on":
        raise UserError(f"COMPILE=on，但{reason}\n请用 --COMPILE=auto") from error
    run.machine.stop_compiling(run.model, reason)
