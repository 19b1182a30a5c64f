"""唯一的训练循环：train_gpt.py（单进程）与 train_gpt_ddp.py（多进程）都用它。

一次更新的故事：取 ACCUM_STEPS 个微批次 → 各算各的梯度（显存不够就把行分开重算）→ 进程间汇总
→ 检查有限 → 裁剪 → 优化器走一步 → 记录；到了边界就验证、写诗、保存。
第 n 个微批次（含 dropout）只由（种子、更新、n）决定，所以被杀掉再续训、换进程数，都是同一次训练。
CUDA 上的路径与 CPU 是同一份代码（docs/GPU.md 说在哪张卡上跑过）。
"""

from __future__ import annotations

import contextlib
import functools
import time

from support import lock
from support.console import UserError
from training import growth, launch, lessons, prepare, runlog
from training.batching import Batch, Prefetcher
from training.distributed import Ranks
from training.keeper import Keeper, Records
from training.lessons import Lesson
from training.run import Run
from training.schedule import ByUpdates, Schedule
from training.stop import Interrupted


def train(values: dict) -> dict:
    """按 config.values() 训练（或续训）到头，返回 Run.result()；TEACHER 是一个数时先练老师。"""
    ranks = launch.start(values["RESUME"], values["DIST_TIMEOUT"])
    with contextlib.ExitStack() as held:
        held.callback(ranks.close)
        ranks.together(lambda: _own(values["WORK_DIR"], ranks, held))
        planned = lessons.settle(values, ranks)
        for lesson in planned:
            if lesson.title:
                ranks.in_turn(functools.partial(_prepare, lesson, values["WORK_DIR"], ranks, held))
            result = _train(lesson.values, ranks, last=lesson is planned[-1])
            if result["stopped"]:
                break
    return result


def _prepare(lesson: Lesson, work_dir: str, ranks: Ranks, held: contextlib.ExitStack) -> None:
    """几次训练里的一次开始之前；老师在自己的目录里。"""
    if ranks.rank == 0:
        print(f"\n{lesson.title}", flush=True)
    if lesson.values["WORK_DIR"] != work_dir:
        _own(lesson.values["WORK_DIR"], ranks, held)
        lessons.lend_data(work_dir, lesson.values["WORK_DIR"])


def _train(values: dict, ranks: Ranks, last: bool) -> dict:
    run = prepare.open_run(values, ranks)
    schedule = ByUpdates(run.settings)
    records = Records(run, schedule, teaches=not last)
    if schedule.is_complete(run.position):
        records.reporter.already_done()
        return run.result()
    result = fit(run, schedule, records)
    return result if last or result["stopped"] else _heed(run, result)


def _heed(run: Run, result: dict) -> dict:
    """收场时才来的信号：这一次已经练完，下一次不再开始。"""
    try:
        run.stop.check_marks(run.ranks.sum(run.stop.marks()))
    except Interrupted as stopped:
        again = run.ranks.again
        run.voice.say(f"已停下：这一次练完了，下一次没有开始。接着训练：{again}。")
        return run.result(stopped.number)
    return result


def _own(work_dir: str, ranks: Ranks, held: contextlib.ExitStack) -> None:
    """0 号进程拿着 WORK_DIR 的锁，直到训练结束。"""
    if ranks.rank == 0:
        held.enter_context(lock.writing(work_dir))


def exit_code(result: dict) -> int:
    """训练结果 → 退出码：被信号停下时是 128 + 信号编号。"""
    return 128 + result["stopped"] if result["stopped"] else 0


def fit(run: Run, schedule: Schedule, keeper: Keeper) -> dict:
    """按日程训练到头（或被停下），返回 Run.result()。"""
    with run.stop:
        try:
            keeper.open()
            prepare.compile_model(run, schedule)
            keeper.start()
            _update_until_over(run, schedule, keeper)
            keeper.finish()
        except Interrupted as stopped:
            keeper.interrupted()
            run.ranks.wait_for_main()
            return run.result(stopped.number)
        except BaseException as error:  # 也包括失去联系、内存不足、第二次 Ctrl-C、程序的错
            keeper.rescue(error)
            raise
        finally:
            keeper.close()
    return run.result()


def _update_until_over(run: Run, schedule: Schedule, keeper: Keeper) -> None:
    first, last = run.position.update, run.settings.updates
    numbers = (number for update in range(first, last) for number in run.share(update))

    def prepared(number: int) -> Batch:
        batch = run.corpus.batch(number)
        batch.prepare(run.gradients.split, run.machine.hold)
        return batch

    with Prefetcher(prepared, numbers) as feed:  # 后台按次序准备本进程的微批次
        run.ranks.start_clock()
        while not schedule.is_over(run.position):
            growth.reach(run, schedule.share(run.position))
            row = one_update(run, schedule, feed)
            keeper.reached(row)


def one_update(run: Run, schedule: Schedule, feed: Prefetcher) -> dict:
    """算出一次更新并应用，位置前进一次；返回 train_log.csv 的一行。"""
    began, here = time.perf_counter(), run.position
    size = run.corpus.size(run.settings.micro_batches(here.update))
    batches = [(number, feed.get(number)) for number in run.share(here.update)]
    loss = run.gradients.compute(batches, size.trained, run.stepper.scale.value, run.stop)
    lr_scale = schedule.scale(here)
    run.whole = False
    norm, finite = run.stepper.step(loss, lr_scale)
    run.gradients.clear()
    seconds = time.perf_counter() - began
    here.advance(size.tokens, seconds, finite)
    here.pending = runlog.row(
        runlog.Step(run.settings, here, loss, norm, lr_scale, size.tokens, seconds)
    )
    run.whole = True
    if not finite:
        complain(run)
    return here.pending


def complain(run: Run) -> None:
    """刚才的更新因非有限值跳过了；连续太多次就停。"""
    count = run.position.bad
    usual = run.stepper.scale.enabled and count < 3  # fp16 溢出一两次是常事，放大倍数会自己降
    if not usual:
        run.voice.say(f"这次更新出现非有限的损失或梯度，已跳过（连续第 {count} 次）。")
    if count >= run.settings.max_bad_steps:
        raise UserError(
            f"连续 {count} 次更新都是非有限值，停止训练；最近的检查点没有被它们影响。\n"
            "请降低学习率再继续，例如：--LEARNING_RATE=0.001 --MUON_LR=0.005"
        )
