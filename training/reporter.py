"""给人看的：开场的几行、进度条上的字、预计何时训练完、结尾的话。"""

from __future__ import annotations

import math
import time

from support import artefacts, console, hardware
from training import crowded, growth, memory, overfit, underfed, validation
from training.position import Position
from training.run import Run

_NEXT = "\n下一步：python infere.py 与它对话，python evaluate.py 评测"


class Reporter:
    """一次训练的解说；peak：矩阵乘的峰值（FLOP/s），算 MFU 的分母。

    teaches：练的是一个老师，后面还有学生，不说下一步做什么、怎样改配置。
    """

    def __init__(self, run: Run, teaches: bool = False) -> None:
        self.run, self.teaches = run, teaches
        self.peak = math.inf
        self._began = 0.0
        self._first, self._before = run.position.update, run.position.seconds
        self._read = run.position.tokens
        self._foretold = False
        self._last = math.nan  # 最近一次验证
        self._warned = False

    def announce(self) -> dict:
        """开场的几行：参数、数据、计划、设备；返回 run_info.json 的内容。只有写文件的进程做。"""
        run, s = self.run, self.run.settings
        self.peak = hardware.measure_peak(run.machine.device, run.machine.dtype)
        memory_bytes = self._predicted_memory()
        print("\n".join(self._opening(memory_bytes)))
        return {
            "train_iter": s.train_iter,
            "updates": s.updates,
            "started": time.time(),
            "parameters": _parameters(run),
            "documents": len(run.corpus.lengths),
            "pass_tokens": int(run.corpus.lengths.sum()),
            "plan_tokens": self._plan_tokens(),
            "dropout": s.dropout,
            "taught": bool(s.teacher),
            "preset": run.values.get("PRESET", ""),
            "device": str(run.machine.device),
            "dtype": run.machine.dtype_name,
            "world": run.ranks.world_size,
            "memory_mb": memory_bytes >> 20,
        }

    def _opening(self, memory_bytes: int) -> list:
        run, s = self.run, self.run.settings
        corpus, machine = run.corpus, run.machine
        lines = [
            f"模型：{_parameters(run) / 1e6:.1f} M 参数（{s.gpt_blocks} 层 × {s.gpt_dim} 维，"
            f"词表 {run.model.config.vocab_size}）",
            f"数据：{len(corpus.lengths)} 个文档，{int(corpus.lengths.sum()) / 1e6:.2f} M token；"
            f"验证 {len(corpus.validation())} 首"
            + ("（就是训练诗）" if corpus.data.val_is_train else ""),
            f"计划：{s.train_iter} 次迭代 = {s.updates} 次更新，"
            f"约 {s.train_iter / corpus.plan.per_epoch:.1f} 遍数据；"
            f"每次更新至多 {s.budget * s.accum_steps} 个 token",
            f"设备：{machine.device} × {run.ranks.world_size}，{machine.dtype_name}，"
            f"{'编译' if machine.compiled else '不编译'}（{machine.compile_reason}），"
            f"矩阵乘峰值 {self.peak / 1e9:.0f} GFLOP/s",
            f"训练预计占内存：{memory.pretty(memory_bytes)}（不含{_besides(machine.device.type)}）",
        ]
        longest = corpus.data.header["max_seq_len"]
        if longest < s.max_seq_len:
            lines.append(
                f"提醒：dataset.bin 是按 MAX_SEQ_LEN={longest} 做的，"
                f"模型的位置 {longest} 到 {s.max_seq_len} 不会训练到；要用满请重做数据集。"
            )
        if machine.warning:
            lines.append(f"注意：{machine.warning}")
        if run.warm_seconds:
            lines.append(f"起点：词嵌入由训练集的相邻词统计算出（{run.warm_seconds:.1f} 秒）")
        if corpus.old is not None:
            lines.append(self._old_poems())
        lines += run.remarks
        if run.position.from_bpc is not None:
            lines.append(f"起点的模型在验证诗上：{run.position.from_bpc:.3f} 比特/字")
        if run.resumed:
            lines.append(f"续训：从第 {run.position.update} 次更新接着来")
            lines += [f"  改了配置 {change}" for change in run.taken_over]
        return lines

    def _plan_tokens(self) -> int:
        """全程要读多少 token。"""
        passes = self.run.settings.train_iter / self.run.corpus.plan.per_epoch
        return round(passes * int(self.run.corpus.lengths.sum()))

    def _old_poems(self) -> str:
        corpus = self.run.corpus
        count = len(corpus.replay.longest) if corpus.replay is not None else 0
        mixed = f"每一遍混进 {count} 个文档" if count else "不混进训练"
        before = self.run.position.old_before
        score = "" if before is None else f"，训练以前 {before:.3f} 比特/字"
        return f"旧诗：{mixed}；验证 {len(corpus.old.validation())} 首{score}"

    def _predicted_memory(self) -> int:
        """一次更新的峰值内存（字节）；短的训练用公式，免得多等两秒。"""
        run, s = self.run, self.run.settings
        extra = run.gradients.teacher.bytes() if run.gradients.teacher is not None else 0
        return extra + memory.predict_peak(
            run.model.config,
            -(-s.batch_size // run.gradients.split),
            s.max_seq_len,
            dtype=run.machine.dtype_name,
            optimizer=s.optimizer,
            grad_checkpoint=s.grad_checkpoint == "on",
            compiled=run.machine.compiled,
            device=run.machine.device.type,
            quick=s.train_iter < 200,
        )

    def start(self) -> None:
        """打开进度条，开始计时。"""
        s = self.run.settings
        self.run.voice.open_bar(s.train_iter, "次", done=s.iteration(self.run.position.update))
        self._began = time.perf_counter()

    def show(self, row: dict) -> None:
        """把 train_log.csv 的一行写在进度条后面。"""
        run = self.run
        speed, best = float(row["tokens_per_s"]), run.position.best.val_bpc
        shown = f"{best:.3f}" if math.isfinite(best) else "—"
        run.voice.show(
            row["iter"],
            f"损失 {float(row['loss']):.3f} 验证 {shown} 学习率 {row['lr']} "
            f"{speed:.0f} token/s MFU {self._mfu(speed):.2f} "
            f"第 {1 + row['iter'] // run.corpus.plan.per_epoch} 遍"
            + (f" {overfit.NOTE}" if self._overfitting() else ""),
        )

    def scored(self, bpc: float) -> None:
        """刚验证过；开始过拟合时说一次，连同怎样办。"""
        self._last = bpc
        if self._overfitting() and not self._warned and not self.teaches:
            self._warned = True
            self.run.voice.say(self._overfit_message())

    def _overfitting(self) -> bool:
        best = self.run.position.best
        return overfit.began(best.val_bpc, self._last, best.stale)

    def _overfit_message(self) -> str:
        best, s = self.run.position.best, self.run.settings
        return overfit.message(best.val_bpc, self._last, best.iter, s.dropout, bool(s.teacher))

    def foretell(self) -> None:
        """训练满一分钟时，说一次预计什么时候结束。"""
        run, here = self.run, self.run.position
        done, seconds = here.update - self._first, here.seconds - self._before
        if self._foretold or not done or time.perf_counter() - self._began < 60:
            return
        self._foretold = True
        left = seconds / done * (growth.left(run) + validation.left(run))
        end = time.strftime("%m-%d %H:%M", time.localtime(time.time() + left))
        what = "这个老师练完" if self.teaches else "训练完"
        run.voice.say(f"照现在的速度，还要 {console.duration(left)}，约 {end} {what}。")
        said = self._faster(left, (here.tokens - self._read) / seconds)
        if said:
            run.voice.say(said)

    def _faster(self, left: float, speed: float) -> str:
        """怎样改会快得多，还要练 left 秒、每秒 speed 个 token；没有可说的时为空。"""
        run, s, world = self.run, self.run.settings, self.run.ranks.world_size
        if run.machine.device.type == "cpu":
            return crowded.advice(s, left, world)
        if run.gradients.teacher is not None or run.gradients.split > 1 or self.teaches:
            return ""
        dtype = run.machine.dtype_name
        return underfed.advice(s, run.model.config, dtype, self._mfu(speed), world)

    def _mfu(self, speed: float) -> float:
        """每秒 speed 个 token 用上了峰值的多少。"""
        run = self.run
        return run.gradients.flops_per_token() * speed / self.peak / run.ranks.world_size

    def finished(self) -> None:
        run, here = self.run, self.run.position
        run.voice.say(
            f"训练完成：{here.update} 次更新，{console.duration(here.seconds)}，"
            f"验证 {here.best.val_bpc:.3f} 比特/字（最佳在第 {here.best.iter} 次迭代）。\n"
            f"{_no_gain(here)}{_old_scores(here)}"
            f"{self._advice() if not self.teaches else ''}"
            f"模型：{run.folder / artefacts.BEST_MODEL}{'' if self.teaches else _NEXT}"
            + run.ranks.report()
            + run.machine.peak_report()
        )

    def _advice(self) -> str:
        return f"{self._overfit_message()}\n" if self._overfitting() else ""

    def interrupted(self) -> None:
        self.run.voice.say(
            f"已停下。第 {self.run.position.update} 次更新以前的都已保存在 "
            f"{artefacts.CHECKPOINT}，没做完的那次更新已丢弃。\n"
            f"接着训练：{self.run.ranks.again}。"
        )

    def already_done(self) -> None:
        run, here = self.run, self.run.position
        run.voice.say(
            f"这次训练已经完成（{here.update} 次更新，最佳 {here.best.val_bpc:.3f} 比特/字）。"
            + ("" if self.teaches else _longer(run.settings.train_iter))
            + "".join(f"\n{remark}" for remark in run.remarks)
        )


def _longer(iterations: int) -> str:
    return (
        f"\n要延长：加大 TRAIN_ITER，例如 --TRAIN_ITER={iterations * 2}；要重新开始：--RESUME=off"
    )


def _no_gain(here: Position) -> str:
    """学过自己的诗以后没有比起点的模型好（一行）；好了、从零训练时为空。"""
    if here.from_bpc is None or here.best.val_bpc < here.from_bpc:
        return ""
    return (
        f"没有比起点的模型（{here.from_bpc:.3f}）好：它多半已经会写这样的诗。"
        "接着用原来的，或把 LEARNING_RATE、MUON_LR 再降到几分之一试一次。\n"
    )


def _old_scores(here: Position) -> str:
    """旧诗的验证怎样变了（一行）；没有量过为空。"""
    scores = {"训练以前": here.old_before, "最佳时": here.old_best}
    known = [f"{when} {score:.3f}" for when, score in scores.items() if score is not None]
    return f"旧诗的验证：{'，'.join(known)} 比特/字。\n" if known else ""


def _besides(device: str) -> str:
    """预计里没有数的：量不出，只说有。"""
    return " CUDA 上下文与碎片" if device == "cuda" else " torch、数据与编译器自己的，通常几百 MB"


def _parameters(run: Run) -> int:
    return sum(param.numel() for param in run.model.parameters())
