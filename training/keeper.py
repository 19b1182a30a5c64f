"""训练外围的事：到了边界验证、写诗、记录、保存，开头收拾旧产物，结尾留下模型。

Keeper 什么也不做，测速用它的子类；Records 是真正的训练用的。
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable

import checkpoint
from support import artefacts, console, files
from support.console import UserError
from training import resume, runlog, samples, validation
from training.position import Best
from training.reporter import Reporter
from training.run import Run
from training.schedule import ByUpdates
from training.seal import Seal

_MODELS = (artefacts.CHECKPOINT, artefacts.BEST_MODEL)
_ORNAMENTS = (artefacts.TRAIN_LOG, artefacts.LOSS_PICTURE, artefacts.SAMPLES, artefacts.RUN_INFO)


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


class Records(Keeper):
    """在 WORK_DIR 里留下检查点、记录、示例诗和曲线；检查点以外的写不成，只说一声。"""

    def __init__(self, run: Run, schedule: ByUpdates) -> None:
        super().__init__(run)
        self.schedule = schedule
        self.reporter = Reporter(run)
        self._log: Any = None
        self._tried = run.position.update  # 最后一次试着保存是在第几次更新
        self._old = () if run.resumed else _MODELS  # 以前的训练留下的，写出新的时才改名
        self._silenced = set()
        self._seal = Seal(run.corpus.data)

    def open(self) -> None:
        """新的训练把旧的记录改名留着；续训把记录裁到检查点的位置。"""
        run = self.run
        if not run.ranks.is_main:
            return
        for name in () if run.resumed else _ORNAMENTS:
            self._ornament(name, self._put_aside, name)
        done = run.position.logged
        iteration = run.settings.iteration(done)
        self._reopen(artefacts.SAMPLES, lambda path: runlog.trim_samples(path, iteration))
        self._log = self._reopen(artefacts.TRAIN_LOG, lambda path: runlog.TrainLog(path, done))

    def _reopen(self, name: str, work: Callable[[Path], Any]) -> Any:
        """接着写一份记录；它损坏了就改名留着，另起一份。"""
        path = self.run.folder / name
        try:
            return work(path)
        except ValueError as error:
            self.run.voice.say(f"警告：{name} 已损坏，接不下去（{error}）；训练不受影响。")
            self._ornament(name, self._put_aside, name)
        except OSError:  # 再试一次，还是不成就由 _ornament 说
            pass
        return self._ornament(name, work, path)

    def _put_aside(self, name: str) -> None:
        aside = files.keep_aside(self.run.folder / name)
        if aside is not None:
            self.run.voice.say(f"已有的 {name} 改名为 {aside.name}")

    def _ornament(self, name: str, work: Callable, *given: Any) -> Any:
        """做一件少了也不要紧的事：出错时同一样只说一次，训练继续。"""
        try:
            return work(*given)
        except Exception as error:
            if name not in self._silenced:
                self._silenced.add(name)
                known = isinstance(error, OSError)
                reason = console.explain(error) if known else f"{type(error).__name__}：{error}"
                self.run.voice.say(f"警告：{name} 没有写成，训练继续。{reason}")
            return None

    def start(self) -> None:
        """说开场的话；上次停在边界上的，先把那里的事做完。"""
        if self.run.ranks.is_main:
            info = self.reporter.announce()
            path = self.run.folder / artefacts.RUN_INFO
            self._ornament(artefacts.RUN_INFO, runlog.write_info, path, info)
        self.reporter.start()
        if self.run.position.pending:
            self._at_boundary(self.run.position.pending)

    def reached(self, row: dict) -> None:
        self._seal.check()
        self._at_boundary(row)
        self.reporter.foretell()

    def _at_boundary(self, row: dict) -> None:
        s, here = self.run.settings, self.run.position
        if self._due(s.eval_every):
            row["val_bpc"] = f"{self._validate(row['iter']):.6f}"
        if self._due(s.sample_every):
            self._ornament(artefacts.SAMPLES, self._write_sample, row["iter"])
        here.pending = None
        if self._log is not None:
            self._ornament(artefacts.TRAIN_LOG, self._log.add, row)
        if self._due(s.save_every):
            self._save()
        self.reporter.show(row)

    def _due(self, every: int) -> bool:
        """这次更新是不是刚到（或刚过）every 次迭代的整数倍；最后一次总是。"""
        s, update = self.run.settings, self.run.position.update
        now, before = s.iteration(update), s.iteration(update - 1)
        return self.schedule.is_complete(self.run.position) or now // every > before // every

    def _validate(self, iteration: int) -> float:
        """验证集的比特/字；更低就写 best_model.bin。"""
        here = self.run.position
        bpc = validation.bits_per_char(self.run)
        if not bpc < here.best.val_bpc:
            here.best.stale += 1
            return bpc
        before, here.best = here.best, Best(val_bpc=bpc, iter=iteration)
        if not self._write(artefacts.BEST_MODEL, full=False):
            here.best = before  # 没存下就不算，下次验证再试
        return bpc

    def _write_sample(self, iteration: int) -> None:
        if not self.run.ranks.is_main:
            return
        text = samples.poem(self.run, samples.QUESTION, seed=iteration)
        runlog.add_sample(self.run.folder / artefacts.SAMPLES, iteration, samples.QUESTION, text)

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
            spare = artefacts.CHECKPOINT_PREVIOUS
            self._ornament(spare, self._put_aside, spare)

    def _save(self, final: bool = False) -> None:
        """保存检查点，重画曲线。"""
        folder = self.run.folder
        if not self.run.ranks.is_main:
            return
        self._tried = self.run.position.update
        if self._write(artefacts.CHECKPOINT, full=True, final=final):
            paths = (folder / artefacts.TRAIN_LOG, folder / artefacts.LOSS_PICTURE)
            self._ornament(artefacts.LOSS_PICTURE, runlog.draw, *paths)

    def finish(self) -> None:
        """无论多短，都有验证、示例诗、checkpoint.bin 与 best_model.bin。"""
        here = self.run.position
        if self.schedule.is_stale(here):
            self.run.voice.say(f"验证损失连续 {here.best.stale} 次没有下降，提前结束。")
        if not math.isfinite(here.best.val_bpc):
            self._validate(self.run.settings.iteration(here.update))
        self._save(final=True)
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
                "重新运行同一条命令就接着训练。"
            )
