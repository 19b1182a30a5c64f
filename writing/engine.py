"""Engine：给服务用的连续批处理，自己一个线程，随时提交。"""

from __future__ import annotations

import queue
import threading
from typing import Iterator

from support.console import UserError
from writing import rewrite, titles
from writing.poet import Poet
from writing.request import Request
from writing.session import Session


class Handle:
    """提交出去的一首诗：可迭代，给出完整的字。"""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.engine, self.request, self.seed = engine, request, request.seed()
        self.row = None  # 轮到它以后才有
        self.cancelled = False
        self.finish_reason = None  # stop | length | cancelled
        self.prompt_tokens = len(request.prompt)
        self.completion_tokens = 0
        self.warnings = request.warnings
        self._pieces = queue.Queue()

    def __iter__(self) -> Iterator[str]:
        while True:
            piece = self._pieces.get()
            if piece is None:
                self._pieces.put(None)  # 再迭代也马上结束
                return
            if isinstance(piece, Exception):
                self._pieces.put(None)
                raise piece
            yield piece

    def cancel(self) -> None:
        """不要了；已经写完的不变。"""
        self.cancelled = True
        self.engine.wake()

    def deliver(self) -> bool:
        """交出新写的文字；写完了返回 True。"""
        row = self.row
        text = row.take() if row.finish_reason != "cancelled" else ""
        self.completion_tokens = row.written
        if text:
            self._pieces.put(text)
        if row.finish_reason is not None:
            self.finish(row.finish_reason)
        return row.finish_reason is not None

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """到此为止；error 交给取字的人。"""
        self.finish_reason = self.finish_reason or reason
        self._pieces.put(error)


class Engine:
    """连续批处理：一个工作线程，至多 max_rows 首同时写，其余排队；线程安全。"""

    def __init__(self, poet: Poet, max_rows: int = 8) -> None:
        self.poet, self.max_rows = poet, max_rows
        self.prompt_kinds, self.path = poet.prompt_kinds, poet.path
        self._waiting, self._active = [], []
        self._changed = threading.Condition()
        self._thread, self._closed = None, False

    def submit(self, question: object = None, **options: object) -> Handle:
        """检查请求并排队；选项同 chat()，没有给的不起作用；有问题时立刻抛出 UserError。"""
        handle = Handle(self, self.poet.request(question, **options))
        with self._changed:
            if self._closed:
                raise UserError("服务正在关闭")
            self._waiting.append(handle)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="poet", daemon=True)
                self._thread.start()
            self._changed.notify()
        return handle

    def rewrite(self, question: str, poem: str, number: int, **given: object) -> str:
        """改这一行，见 rewrite.rewrite；在调用者的线程里写，不进这一批。"""
        return rewrite.rewrite(self.poet, question, poem, number, **given)

    def titles(self, poem: str, n: int) -> list:
        """起个题目，见 titles.suggest。"""
        return titles.suggest(self.poet, poem, n)

    def wake(self) -> None:
        """有事要看：新的请求，或有人取消。"""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """取消全部请求，等线程结束。"""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        session = None
        while True:
            with self._changed:
                while not (self._waiting or self._active or self._closed):
                    self._changed.wait()
                if self._closed:
                    break
                arrived = self._admit()
            try:
                session = session or self.poet.session(self.max_rows)
                self._advance(session, arrived)
            except Exception as error:  # 整批的事：交给等着的人，线程继续服务后来的请求
                for handle in {*self._active, *arrived}:
                    handle.finish("cancelled", error)
                self._active, session = [], None
        for handle in [*self._waiting, *self._active]:
            handle.finish("cancelled")

    def _admit(self) -> list:
        """轮到的请求；一轮只放进一首，免得预填拖住正在写的。"""
        for handle in [handle for handle in self._waiting if handle.cancelled]:
            self._waiting.remove(handle)
            handle.finish("cancelled")
        room = len(self._active) < self.max_rows
        return [self._waiting.pop(0)] if room and self._waiting else []

    def _advance(self, session: Session, arrived: list) -> None:
        for handle in self._active:
            if handle.cancelled:
                session.drop(handle.row)
        session.step()
        self._active += arrived
        for handle in list(self._active):
            try:
                if handle.row is None:
                    handle.row = self.poet.row(handle.request, handle.seed)
                    session.start([handle.row])
                finished = handle.deliver()
            except Exception as error:  # 一首自己的事：别的照写
                handle.finish("cancelled", error)
                finished = True
                if handle.row is not None:
                    session.drop(handle.row)
            if finished:
                self._active.remove(handle)
