"""训练外围的事：到了边界验证、写诗、记录、保存，开头收拾旧产物，结尾留下模型。

Keeper 什么也不做，测速用它的子类；Records 是真正的训练用的。
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Iterator

import checkpoint
from support import artefacts, files, hardware
from support.console import UserError
from training import loggers, resume, runlog, samples, validation
from training.ornaments import Ornaments
from training.position import Best
from training.reporter import Reporter
from training.run import Run
from training.schedule import ByUpdates
from training.seal import Seal
from training.unison import Unison

SLOWED = ("cuda",)  # 这些设备上验证、写诗、保存至多占 _BOUNDARY_SHARE 的时间
_BOUNDARY_SHARE = 0.02
_MODELS = (artefacts.CHECKPOINT, artefacts.BEST_MODEL)
_RECORDS = (
    artefacts.TRAIN_LOG,
    artefacts.LOSS_PICTURE,
    artefacts.SAMPLES,
    artefacts.RUN_INFO,
    artefacts.LOGS,
)


class Keeper:
    """循环在这些时刻叫它。"""

    def __init__(self, run: Run) -> None:
        self.run = run

    def open(self) -> None:
        """训练之前，编译也还没有。"""

    def start(self) -> None:
        """第一次更新之前。"""

    def reached(self, row: dict) -> None:
        """做完了一次更新；row 是它在 train_log.csv 里的一行。"""

    def finish(self) -> None:
        """训练到头。"""

    def interrupted(self) -> None:
        """被请求停下，没做完的更新已经放弃。"""

    def rescue(self, error: BaseException) -> None:
        """别的原因离开循环：存下能存的；error 接着往外抛。"""

    def close(self) -> None:
        """无论怎样结束，最后都要做的。"""
        self.run.voice.close()


class Pace:
    """边界上的事至多占 share 的时间：显卡算得快，照次数来会太密。只按已经用掉的时间决定。"""

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.share, self._clock = share, clock
        self._cost, self._ended = 0.0, clock()

    def allows(self) -> bool:
        """上一次用掉的时间，后来的训练摊得薄了没有。"""
        return self._clock() - self._ended >= self._cost * (1 / self.share - 1)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """在里面做边界上的事。"""
        began = self._clock()
        yield
        self._ended = self._clock()
        self._cost = self._ended - began


class Records(Keeper):
    """在 WORK_DIR 里留下检查点、记录、示例诗和曲线；检查点以外的写不成，只说一声。

    teaches：练的是一个老师，后面还有学生。
    """

    def __init__(self, run: Run, schedule: ByUpdates, teaches: bool = False) -> None:
        super().__init__(run)
        self.schedule = schedule
        self.reporter = Reporter(run, teaches)
        self._log: Any = None
        self._tried = run.position.update  # 最后一次试着保存是在第几次更新
        self._old = () if run.resumed else _MODELS  # 以前的训练留下的，写出新的时才改名
        self._ornaments = Ornaments(run.folder, run.voice.say)
        self._seal = Seal(run.corpus.files())
        self._unison = Unison(run)
        self._pace = Pace(_BOUNDARY_SHARE)
        self._owed = set()  # 到了次数、推迟着的事
        self._loggers = loggers.Loggers(run.voice.say)

    def open(self) -> None:
        """新的训练把旧的记录改名留着；续训把记录裁到检查点的位置。"""
        run = self.run
        if not run.ranks.is_main:
            return
        ornaments = self._ornaments
        for name in () if run.resumed else _RECORDS:
            ornaments.put_aside(name)
        done = run.position.logged
        iteration, old_poems = run.settings.iteration(done), run.corpus.old is not None
        ornaments.reopen(artefacts.SAMPLES, lambda path: runlog.trim_samples(path, iteration))
        self._log = ornaments.reopen(
            artefacts.TRAIN_LOG, lambda path: runlog.TrainLog(path, done, old_poems)
        )
        ornaments.attempt(artefacts.LOGS, self._open_loggers, iteration)

    def _open_loggers(self, done: int) -> None:
        names = loggers.names_in(self.run.settings.logger)
        if names != ["csv"]:
            self._loggers.open(
                names, loggers.home(self.run.folder, done, asdict(self.run.settings))
            )

    def start(self) -> None:
        """说开场的话；上次停在边界上的，先把那里的事做完。"""
        if not self.run.position.update:
            self.run.position.old_before = validation.of_old_poems(self.run)
            if self.run.settings.from_:
                self.run.position.from_bpc = validation.bits_per_char(self.run)
        if self.run.ranks.is_main:
            info = self.reporter.announce()
            path = self.run.folder / artefacts.RUN_INFO
            self._ornaments.attempt(artefacts.RUN_INFO, runlog.write_info, path, info)
        self.reporter.start()
        if self.run.position.pending:
            self._at_boundary(self.run.position.pending)

    def reached(self, row: dict) -> None:
        self._seal.check()
        self._at_boundary(row)
        self.reporter.foretell()

    def _at_boundary(self, row: dict) -> None:
        due, attempt = self._due_now(), self._ornaments.attempt
        with self._pace.working() if due else contextlib.nullcontext():
            if due & {"eval", "save"}:
                self._unison.check()
            if "eval" in due:
                bpc = self._validate(row["iter"])
                row["val_bpc"] = f"{bpc:.6f}"
                self.reporter.scored(bpc)
            if "sample" in due:
                attempt(artefacts.SAMPLES, self._write_sample, row["iter"])
            self.run.position.pending = None
            if self._log is not None:
                attempt(artefacts.TRAIN_LOG, self._log.add, row)
            self._loggers.scalars(row["iter"], loggers.numbers(row))
            if "save" in due:
                self._save()
        self.reporter.show(row)

    def _due_now(self) -> set:
        """这次更新之后要做的事：eval、sample、save；太密的时候先欠着。"""
        s, run = self.run.settings, self.run
        every = {"eval": s.eval_every, "sample": s.sample_every, "save": s.save_every}
        self._owed |= {name for name, number in every.items() if self._due(number)}
        if self._owed and run.machine.device.type in SLOWED and not s.early_stop:
            last = self.schedule.is_complete(run.position)
            mine = run.ranks.is_main and (last or self._pace.allows())
            if not run.ranks.sum([float(mine)])[0]:  # 各进程听一个的，才会一起验证
                return set()
        due, self._owed = self._owed, set()
        return due

    def _due(self, every: int) -> bool:
        """这次更新是不是刚到（或刚过）every 次迭代的整数倍；最后一次总是。"""
        s, update = self.run.settings, self.run.position.update
        now, before = s.iteration(update), s.iteration(update - 1)
        return self.schedule.is_complete(self.run.position) or now // every > before // every

    def _validate(self, iteration: int) -> float:
        """验证集的比特/字；更低就写 best_model.bin。"""
        here = self.run.position
        bpc, old = validation.bits_per_char(self.run), validation.of_old_poems(self.run)
        if old is not None and here.pending is not None:
            here.pending[runlog.OLD_BPC] = f"{old:.6f}"
        if not bpc < here.best.val_bpc:
            here.best.stale += 1
            return bpc
        before = here.best, here.old_best
        here.best, here.old_best = Best(val_bpc=bpc, iter=iteration), old
        if not self._write(artefacts.BEST_MODEL, full=False):
            here.best, here.old_best = before  # 没存下就不算，下次验证再试
        return bpc

    def _write_sample(self, iteration: int) -> None:
        if not self.run.ranks.is_main:
            return
        try:
            text = samples.poem(self.run, samples.QUESTION, seed=iteration)
        except RuntimeError as error:
            if not hardware.is_out_of_memory(error):
                raise
            self.run.voice.say("警告：显存不够写示例诗，跳过这一首；训练继续。")
            hardware.forget_freed_memory(self.run.machine.device)
            return
        runlog.add_sample(self.run.folder / artefacts.SAMPLES, iteration, samples.QUESTION, text)
        self._loggers.poem(iteration, samples.QUESTION, text)

    def _write(self, name: str, full: bool, final: bool = False) -> bool:
        """写一个检查点文件；训练途中写不下时只警告并返回 False。只有写文件的进程真的写。"""
        run = self.run
        if not run.ranks.is_main:
            return True
        self._seal.check(wait=True)
        state = resume.state_of(run, full)
        try:
            if not run.folder.is_dir():
                run.voice.say(f"警告：WORK_DIR={run.folder} 不见了（被移走或删除），重新建一个。")
            path = files.work_path(str(run.folder), name)
            spare = self._spare(path, full)
            checkpoint.save(path, state, spare)
        except UserError as error:
            if final:
                raise
            run.voice.say(f"警告：{error}\n训练继续，下一次保存时再试。")
            return False
        if name in self._old:
            self._replaced(name, spare)
        return True

    def _spare(self, path: Path, full: bool) -> Path | None:
        """写好新的 path 以后，原来的那个改成什么名字；None 就是不留。"""
        if path.name in self._old and path.exists():
            return files.unused(path)
        return checkpoint.spare_name(path) if full else None

    def _replaced(self, name: str, aside: Path | None) -> None:
        """以前的训练留下的 name 刚换成了这次的。"""
        self._old = tuple(other for other in self._old if other != name)
        if aside is not None:
            self.run.voice.say(f"已有的 {name} 改名为 {aside.name}")
        if name == artefacts.CHECKPOINT:
            self._ornaments.put_aside(artefacts.CHECKPOINT_PREVIOUS)

    def _save(self, final: bool = False) -> None:
        """保存检查点，重画曲线。"""
        folder = self.run.folder
        if not self.run.ranks.is_main:
            return
        self._tried = self.run.position.update
        if self._write(artefacts.CHECKPOINT, full=True, final=final):
            paths = (folder / artefacts.TRAIN_LOG, folder / artefacts.LOSS_PICTURE)
            self._ornaments.attempt(artefacts.LOSS_PICTURE, runlog.draw, *paths)

    def finish(self) -> None:
        """无论多短，都有验证、示例诗、checkpoint.bin 与 best_model.bin。"""
        here = self.run.position
        if self.schedule.is_stale(here):
            self.run.voice.say(f"验证损失连续 {here.best.stale} 次没有下降，提前结束。")
        self._unison.check()
        if not math.isfinite(here.best.val_bpc):
            self._validate(self.run.settings.iteration(here.update))
        self._save(final=True)
        iteration = self.run.settings.iteration(here.update)
        self._loggers.picture(iteration, self.run.folder / artefacts.LOSS_PICTURE)
        self.reporter.finished()

    def interrupted(self) -> None:
        self._save(final=True)
        self.reporter.interrupted()

    def rescue(self, error: BaseException) -> None:
        """最后一次完整的更新；非有限的几次之后不存，从更早的检查点换个学习率才有用。

        数据坏了是真正的原因，就改说这个。
        """
        run, here = self.run, self.run.position
        if run.ranks.is_main and isinstance(error, Exception):
            self._seal.check(wait=True)
        if not run.whole or here.bad or here.update == self._tried or not run.ranks.is_main:
            return
        try:
            self._save(final=True)
        except Exception as trouble:
            run.voice.say(f"最后的更新也没能存下：{trouble}")
        else:
            run.voice.say(
                f"第 {here.update} 次更新以前的都已存进 {artefacts.CHECKPOINT}，"
                f"{run.ranks.again}就接着训练。"
            )

    def close(self) -> None:
        super().close()
        self._loggers.close()
