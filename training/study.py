"""研究：几种配方 × 几个种子，在小样上各训练一次，一次一行记进 CSV；做完的不重做。

配方是 名字 → 对配置的改动；小写的名字是 training/trials.py 里还没有进产品的做法。
选哪个看验证集；judge 一列是另一批诗，谁也没看过，只用来评判选出来的。
"""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import hashlib
import math
import time
from pathlib import Path
from typing import Callable, NamedTuple

import dataset
from support import artefacts, files
from support.console import UserError
from training import loop, prepare, validation
from training.batching import BatchPlan
from training.corpus import Corpus
from training.distributed import Ranks
from training.keeper import Keeper
from training.position import Best
from training.proxy import Proxy
from training.run import Run
from training.schedule import ByUpdates, lr_scale
from training.settings import Settings
from training.trials import TRIALS

_ELSEWHERE = ("WORK_DIR", "SEED", "DIST_TIMEOUT", "LOGGER")  # 与练出什么无关，或另有一列
BASELINE = "today"  # 与它相比
SCORES = 12  # 一次训练里验证几次
RECIPES = {
    BASELINE: {},
    "drop0": {"DROPOUT": 0.0},
    "drop0.05": {"DROPOUT": 0.05},
    "drop0.2": {"DROPOUT": 0.2},
    "drop0.3": {"DROPOUT": 0.3},
    "decay0": {"WEIGHT_DECAY": 0.0},
    "decay0.5": {"WEIGHT_DECAY": 0.5},
    "decay1": {"WEIGHT_DECAY": 1.0},
    "decay2": {"WEIGHT_DECAY": 2.0},
    "embed_decay0.1": {"embed_decay": 0.1},
    "embed_decay0.5": {"embed_decay": 0.5},
    "cautious0.5": {"WEIGHT_DECAY": 0.0, "cautious_decay": 0.5},
    "cautious1": {"WEIGHT_DECAY": 0.0, "cautious_decay": 1.0},
    "steady0.5": {"WEIGHT_DECAY": 0.0, "steady_decay": 0.5},
    "noise0.05": {"noise": 0.05},
    "noise0.15": {"noise": 0.15},
    "split0.1": {"split": 0.1},
    "average0.99": {"average": 0.99},
    "average0.998": {"average": 0.998},
    "fall0.3": {"DECAY_SHARE": 0.3},
    "fall0.8": {"DECAY_SHARE": 0.8},
    "fall1": {"DECAY_SHARE": 1.0},
    "counted": {"INIT": "data"},
    "fast": {"LEARNING_RATE": 0.006, "MUON_LR": 0.02},
    "apart": {"CHAR_LR": 0.0},
    "slow": {"LEARNING_RATE": 0.0015, "MUON_LR": 0.005},
    "faster": {"LEARNING_RATE": 0.012, "MUON_LR": 0.04},
    "half_batch": {"BATCH_SIZE": 4},
    "quarter_batch": {"BATCH_SIZE": 2},
    "taught0.5": {"taught": 0.5},
    "teachers1": {"teachers": 1},
    "teachers3": {"teachers": 3},
    "embed_only0.1": {"DROPOUT": 0.0, "drop_embed": 0.1},
    "attention_only0.1": {"DROPOUT": 0.0, "drop_attention": 0.1},
    "mlp_only0.1": {"DROPOUT": 0.0, "drop_mlp": 0.1},
    "block0.1": {"DROPOUT": 0.0, "drop_block": 0.1},
    "growing0.5": {"BATCH_SIZE": 2, "ACCUM_STEPS": 4, "growing": 0.5},
}
COLUMNS = (
    "recipe",
    "changes",
    "seed",
    "val_bpc",  # 训练途中最低的
    "last_bpc",  # 训练完的
    "judge_bpc",  # 验证最低的那份权重，在没有看过的诗上
    "updates",
    "tokens",
    "seconds",
    "data",  # 小样的指纹
    "config",  # 训练的配置的指纹：改了 config.py，就要重做
    "curve",  # 第几遍:验证 …
)


class Recipe(NamedTuple):
    """一种配方。"""

    name: str
    changes: dict  # 大写的是配置，小写的是 TRIALS

    def settings(self) -> dict:
        """其中的配置。"""
        return {name: value for name, value in self.changes.items() if name not in TRIALS}

    def trials(self) -> list:
        """其中还没有进产品的做法。"""
        return [TRIALS[n](float(value)) for n, value in self.changes.items() if n in TRIALS]

    def text(self) -> str:
        """写进 CSV 的样子。"""
        return ";".join(f"{name}={value}" for name, value in sorted(self.changes.items()))


def choose(text: str, read: Callable[[str, str], object], base: dict) -> list:
    """RECIPES → 配方的列表，第一个是基线；空的就是全部。

    写法：用分号隔开，名字，或 新名字:配置=值,配置=值。read(名字, 文本) 读一个配置的值；
    base：命令行里另外给的配置，每个配方都带着。
    """
    chosen = [Recipe(BASELINE, dict(base))]
    for word in filter(None, (part.strip() for part in text.split(";"))):
        name, colon, rest = word.partition(":")
        changes = _changes(rest, read) if colon else RECIPES.get(name)
        if changes is None:
            raise UserError(f"没有名为 {name} 的配方；现成的：{'、'.join(RECIPES)}")
        chosen.append(Recipe(name, {**base, **changes}))
    if len(chosen) == 1:
        chosen += [Recipe(name, {**base, **changes}) for name, changes in RECIPES.items()]
    return list({recipe.name: recipe for recipe in chosen}.values())


def _changes(text: str, read: Callable[[str, str], object]) -> dict:
    found = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = pair.partition("=")
        found[name] = float(value) if name in TRIALS else read(name, value)
    return found


# ── 一次训练 ──────────────────────────────────────────────────────────


class Examiner(Keeper):
    """只在内存里验证，记下最好的权重；不写文件。"""

    def __init__(self, run: Run, trials: list, judge: Corpus) -> None:
        super().__init__(run)
        self.trials, self.judge = trials, judge
        self.curve = []
        self._weights: dict = {}

    def reached(self, row: dict) -> None:
        run, here = self.run, self.run.position
        here.pending = None
        s = run.settings
        scale = lr_scale(here.update - 1, s.updates, s.warmup_steps, s.decay_share)
        for trial in self.trials:
            trial.updated(run, scale)
        marks = here.update * SCORES // s.updates, (here.update - 1) * SCORES // s.updates
        if marks[0] > marks[1]:
            self._score()
        best = here.best.val_bpc
        run.voice.show(here.update, f"最好 {best:.3f}" if math.isfinite(best) else "")

    def _score(self) -> None:
        run, here = self.run, self.run.position
        with contextlib.ExitStack() as stack:
            for trial in self.trials:
                stack.enter_context(trial.scoring(run))
            bpc = validation.bits_per_char(run)
            passes = run.settings.iteration(here.update) / run.corpus.plan.per_epoch
            self.curve.append((passes, bpc))
            if bpc < here.best.val_bpc:
                here.best = Best(bpc, here.update)
                self._weights = copy.deepcopy(run.model.state_dict())

    def judged(self) -> float:
        """最好的那份权重在评判的诗上。"""
        self.run.model.load_state_dict(self._weights)
        return validation.bits_per_char(dataclasses.replace(self.run, corpus=self.judge))


def run_values(proxy: Proxy, values: dict, recipe: Recipe, seed: int) -> dict:
    """这一次训练的全部配置；values 是 config.values()。"""
    made = {**values, **proxy.size.shape, **recipe.settings()}
    made.update(WORK_DIR=str(proxy.folder), SEED=seed, RESUME="off", EARLY_STOP=0)
    made.update(FROM="", REPLAY_DATA="", REPLAY_SHARE=0.0)
    budget = made["BATCH_SIZE"] * made["MAX_SEQ_LEN"]
    with dataset.load(proxy.folder / artefacts.DATASET) as data:
        plan = BatchPlan(data.lengths("train") - 1, budget, seed)
    return {**made, "TRAIN_ITER": max(1, round(proxy.size.passes * plan.per_epoch))}


def _fingerprint(values: dict) -> str:
    """训练的配置 → 几个字；放在哪里不算。"""
    told = {name: values[name] for name in Settings.names() if name not in _ELSEWHERE}
    return hashlib.sha256(repr(sorted(told.items())).encode("utf-8")).hexdigest()[:12]


def train(proxy: Proxy, values: dict, recipe: Recipe, seed: int) -> dict:
    """在小样上照配方训练一次 → CSV 的一行；中途被叫停时抛 KeyboardInterrupt。"""
    began, trials = time.perf_counter(), recipe.trials()
    values = run_values(proxy, values, recipe, seed)
    run = prepare.open_run(values, Ranks())
    for trial in trials:
        run = trial.begin(run)
    with dataset.load(proxy.judge) as data:
        examiner = Examiner(run, trials, Corpus(data, run.settings))
        run.voice.open_bar(run.settings.updates, "次更新")
        try:
            if loop.fit(run, ByUpdates(run.settings), examiner)["stopped"]:
                raise KeyboardInterrupt
        finally:
            run.voice.close()
        judged = examiner.judged()
    here = run.position
    return {
        "recipe": recipe.name,
        "changes": recipe.text(),
        "seed": seed,
        "val_bpc": f"{here.best.val_bpc:.4f}",
        "last_bpc": f"{examiner.curve[-1][1]:.4f}",
        "judge_bpc": f"{judged:.4f}",
        "updates": here.update,
        "tokens": here.tokens,
        "seconds": f"{time.perf_counter() - began:.1f}",
        "data": proxy.fingerprint,
        "config": _fingerprint(values),
        "curve": " ".join(f"{epoch:.2f}:{bpc:.4f}" for epoch, bpc in examiner.curve),
    }


# ── 全部 ──────────────────────────────────────────────────────────────


def read(path: Path) -> list:
    """CSV 的各行；没有文件时为空。"""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def _write(path: Path, rows: list) -> None:
    with files.atomic_write(path) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def carry_out(proxy: Proxy, values: dict, recipes: list, seeds: list) -> list:
    """没有做过的都做一遍，做一次记一次；返回这些配方、这些种子的行。"""
    path = proxy.folder / artefacts.STUDY_TABLE
    wanted = {}
    for seed in seeds:
        for recipe in recipes:
            settings = _fingerprint(run_values(proxy, values, recipe, seed))
            key = recipe.name, recipe.text(), str(seed), proxy.fingerprint, settings
            wanted[key] = recipe, seed
    done = {_key(row): row for row in read(path)}
    for number, (key, (recipe, seed)) in enumerate(wanted.items(), 1):
        if key in done:
            continue
        print(f"[{number}/{len(wanted)}] {recipe.name}，种子 {seed}", flush=True)
        try:
            row = train(proxy, values, recipe, seed)
        except UserError as error:  # 学习率太高之类：记不成，别的照做
            print(f"  没有做成：{error}", flush=True)
            continue
        _write(path, [*read(path), row])
        done[key] = {name: str(value) for name, value in row.items()}
        print(f"  验证 {row['val_bpc']}，评判 {row['judge_bpc']}，{row['seconds']} 秒", flush=True)
    return [done[key] for key in wanted if key in done]


def _key(row: dict) -> tuple:
    return tuple(row.get(name) for name in ("recipe", "changes", "seed", "data", "config"))
