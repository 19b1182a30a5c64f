"""写诗的服务：引擎的线程与事件循环之间。

引擎一边一首诗一个取字的线程，网络一边全在事件循环里；两边只经过一个队列，所以不用锁。
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, AsyncIterator, Callable, NamedTuple

from poems import options
from support.console import UserError
from web import chat_api
from web.chat_api import ApiError, Ask
from web.shelf import Shelf

_STOPPING = "服务正在停止，请稍后再试"
_NO_ENGINE = "还没有可用的模型。请先运行 python train_gpt.py，训练的进展见 /train"


class Piece(NamedTuple):
    """第 index 首的一段文字；写完时 end 是 finish_reason，出错时是那个错误，没写完时是 None。"""

    index: int
    text: str
    end: Any = None


class _Seat(NamedTuple):
    """占着的一个位置；几秒就好，不中途停。"""

    engine: Any

    def cancel(self) -> None:
        """等它做完。"""


class Service:
    """写诗的服务：懒加载引擎，限制同时在写与排队的诗的首数。

    load() 返回默认的 engine.Engine，load(文件名) 是 WORK_DIR 里别的；submit(题目, **选项) 给出
    句柄：可迭代（整字的文字），有 cancel()、finish_reason、prompt_tokens、completion_tokens。
    除 load 与 Job 的取字线程外，都在事件循环的线程里运行，所以不用锁。
    """

    def __init__(
        self,
        load: Callable[..., Any],
        work_dir: str,
        defaults: dict[str, Any],
        limit: int,
        key: str = "",
    ) -> None:
        self.shelf = Shelf(load, work_dir)
        self.work_dir, self.defaults = work_dir, defaults
        self.limit, self.key = limit, key
        self.created = int(time.time())
        self.running: set[Any] = set()  # 占着位置的句柄
        self.pool = ThreadPoolExecutor(limit, thread_name_prefix="poem")
        self._said = ""
        self._deadline: float | None = None  # 被叫停后，写着的诗最晚写到何时

    async def engine(self, model: str = chat_api.MODEL_ID) -> Any:
        """一个模型的引擎；没有这个名字是 404，还不能用是 503。"""
        await self.check_model(model)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(None, self.load_once, model)
        except UserError as error:
            self._complain(f"模型载入不了：{error}")
            usual = model == chat_api.MODEL_ID
            problem = _NO_ENGINE if usual else f"{model} 载入不了，原因见服务端窗口"
            raise ApiError(503, problem, "model_not_ready") from None

    def load_once(self, model: str = chat_api.MODEL_ID) -> Any:
        """载入引擎；几个请求同时来也只载入一次。"""
        return self.shelf.engine(model, self._is_writing)

    def _is_writing(self, engine: Any) -> bool:
        return any(getattr(handle, "engine", None) is engine for handle in list(self.running))

    async def models(self) -> list[str]:
        """可用的模型，默认的在前。"""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, self.shelf.names)

    async def check_model(self, model: str) -> None:
        """没有这个名字的模型是 404。"""
        if model != chat_api.MODEL_ID and model not in await self.models():
            raise chat_api.no_model(model, await self.models())

    def _complain(self, text: str) -> None:
        """可能含路径的话只在服务端的窗口说，同一句不重复。"""
        if text != self._said:
            self._said = text
            print(text, file=sys.stderr)

    async def start(self, ask: Ask) -> Job:
        """把 ask.n 首交给引擎；位置不够时一首也不交，429；正在停止时 503。"""
        engine = await self._ready(ask.model, ask.n)
        handles = []
        try:
            for index in range(ask.n):
                handles.append(engine.submit(ask.question, **self._options(ask, index)))
        except Exception as error:
            for handle in handles:
                handle.cancel()
            if isinstance(error, (UserError, ValueError)):
                raise ApiError(400, str(error), "invalid_value") from None
            raise
        return Job(self, handles, ask.stops)

    async def alone(self, work: Callable[[Any], Any], model: str) -> Any:
        """占一个位置，把引擎交给 work，等它做完（改一行、起题目）。"""
        seat = _Seat(await self._ready(model, 1))
        self.running.add(seat)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.pool, work, seat.engine)
        except (UserError, ValueError) as error:
            raise ApiError(400, str(error), "invalid_value") from None
        finally:
            self.running.discard(seat)

    async def _ready(self, model: str, seats: int) -> Any:
        """引擎，还有 seats 个位置给它。"""
        if self.is_stopping:
            raise ApiError(503, _STOPPING, "shutting_down")
        engine = await self.engine(model)
        if len(self.running) + seats > self.limit:
            raise ApiError(429, "请求太多，请稍后再试", "rate_limit_exceeded")
        return engine

    def _options(self, ask: Ask, index: int) -> dict[str, Any]:
        chosen = options.merge(self.defaults, ask.options)
        if chosen.get("seed") is not None:
            chosen["seed"] += index  # 同一个种子的几个候选各不相同，又都能重现
        return chosen

    @property
    def is_stopping(self) -> bool:
        return self._deadline is not None

    def stop(self, grace: float) -> None:
        """不再接新的；写着的与排着的最多再给 grace 秒。"""
        self._deadline = time.monotonic() + grace

    def is_over(self) -> bool:
        """可以走了吗：叫停之后写完了，或时间到了。"""
        if self._deadline is None:
            return False
        return not self.running or time.monotonic() >= self._deadline

    def cancel(self) -> None:
        """写着的都停下。"""
        for handle in list(self.running):
            handle.cancel()

    def close(self) -> None:
        self.cancel()
        self.shelf.close()
        self.pool.shutdown(wait=False)


class Job:
    """一个请求的几首诗：每首由一个线程取字，汇到事件循环的一个队列里。"""

    def __init__(self, service: Service, handles: list[Any], stops: tuple[str, ...]) -> None:
        self.handles = handles
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue()
        service.running.update(handles)
        for index, handle in enumerate(handles):
            leave = functools.partial(service.running.discard, handle)
            service.pool.submit(self._pump, index, handle, chat_api.StopFilter(stops), leave)

    async def pieces(self) -> AsyncIterator[Piece]:
        """边写边给出每一首的文字；有一首出错就抛出那个错误。"""
        unfinished = len(self.handles)
        while unfinished:
            piece = await self.queue.get()
            if isinstance(piece.end, Exception):
                raise piece.end
            unfinished -= piece.end is not None
            yield piece

    async def poems(self) -> list[tuple[str, str]]:
        """等全部写完：[(文字, finish_reason), …]"""
        texts, reasons = [[] for _ in self.handles], [None] * len(self.handles)
        async for piece in self.pieces():
            texts[piece.index].append(piece.text)
            reasons[piece.index] = piece.end
        return [("".join(text), reason) for text, reason in zip(texts, reasons)]

    def usage(self) -> dict[str, int]:
        written = sum(handle.completion_tokens for handle in self.handles)
        return chat_api.usage(self.handles[0].prompt_tokens, written)

    def cancel(self) -> None:
        for handle in self.handles:
            handle.cancel()

    def _pump(
        self, index: int, handle: Any, stop: chat_api.StopFilter, leave: Callable[[], None]
    ) -> None:
        """取字的线程：一首诗从头到尾。"""
        try:
            for piece in handle:
                text = stop.feed(piece)
                if text:
                    self._put(self.queue.put_nowait, Piece(index, text))
                if stop.hit:
                    handle.cancel()
                    break
            end = "stop" if stop.hit else handle.finish_reason
            if end == "cancelled":  # 不是对方挂断（那就没有人在读），是服务要停了
                raise ApiError(503, _STOPPING, "shutting_down")
            last = Piece(index, stop.flush(), end)
        except Exception as error:
            last = Piece(index, "", error)
        self._put(leave)  # 先让出位置，再说写完了：收到回答的人立刻就能再问
        self._put(self.queue.put_nowait, last)

    def _put(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # 服务正在关，事件循环已经没了
            self.loop.call_soon_threadsafe(function, *arguments)
