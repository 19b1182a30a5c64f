"""uvicorn 之上补的三件事：请求头太慢就断开，连接太多就断开闲着的，被叫停时写着的写完再走。"""

from __future__ import annotations

import asyncio
import signal
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from web import app
from web.service import Service

if TYPE_CHECKING:
    from uvicorn import Server

HEAD_SECONDS = 30  # 请求头最多等多久
GRACE_SECONDS = 25  # 被叫停后，写着的诗最多再写多久（docker、k8s 一般等 10 到 30 秒）
_MOST_BACKLOG = 128  # 一次最多接受多少个新连接
_BATCHES = 5  # 从接受到断开，事件循环要转几圈；每圈都可能又接受一批
_SPARE_FILES = 64  # 留给模型、日志、训练页要读的文件
_MOST_CONNECTIONS = 4096


class Room(NamedTuple):
    """容得下多少连接：断开多出来的也要时间，总在文件描述符用完之前。"""

    backlog: int  # 一次接受几个
    connections: int  # 同时开着几个


def room() -> Room:
    """照系统许的文件描述符。"""
    try:
        import resource
    except ImportError:  # Windows
        return Room(_MOST_BACKLOG, 500)
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return Room(_MOST_BACKLOG, _MOST_CONNECTIONS)
    backlog = max(4, min(_MOST_BACKLOG, allowed // 16))
    left = allowed - _BATCHES * backlog - _SPARE_FILES
    return Room(backlog, max(16, min(_MOST_CONNECTIONS, left)))


def make_server(service: Service, doors: app.Doors = app.LOCAL, **options: Any) -> Server:
    """配好的 uvicorn 服务器；options 给 uvicorn.Config。"""
    import uvicorn

    limits = room()
    usual = {"log_level": "warning", "timeout_graceful_shutdown": 3}
    config = uvicorn.Config(
        app.make_app(service, doors),
        http=watched_protocol(HEAD_SECONDS, limits.connections),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        backlog=limits.backlog,
        **{**usual, **options},
    )

    class Polite(uvicorn.Server):
        """叫停时不再接新的，等写着的写完；Ctrl-C 与第二次叫停立刻停下。"""

        def handle_exit(self, number: int, frame: FrameType | None) -> None:
            hurry = number == signal.SIGINT or service.is_stopping
            service.stop(0 if hurry else GRACE_SECONDS)

        async def on_tick(self, counter: int) -> bool:
            if service.is_over():
                service.cancel()
                return True
            return await super().on_tick(counter)

    return Polite(config)


def watched_protocol(head_seconds: float, most: int) -> type[asyncio.Protocol]:
    """uvicorn 的 HTTP 协议，但请求头 head_seconds 秒还没收完就断开。

    连接多过 most 时断开等请求头等得最久的那一个：占着不说话的人挡不住来问的人。
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    waiting: dict[Watched, asyncio.TimerHandle] = {}  # 请求头还没收完的，等得久的在前

    class Watched(AutoHTTPProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.wait_for_head()
            if len(self.connections) > most:
                next(iter(waiting)).refuse()

        def data_received(self, data: bytes) -> None:
            if self not in waiting and self.is_idle():  # 同一个连接上的下一个请求
                self.wait_for_head()
            super().data_received(data)
            if not self.is_idle():
                self.stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop_waiting()
            super().connection_lost(exc)

        def is_idle(self) -> bool:
            """没有正在回答的请求。"""
            return self.cycle is None or self.cycle.response_complete

        def wait_for_head(self) -> None:
            waiting[self] = self.loop.call_later(head_seconds, self.transport.close)

        def stop_waiting(self) -> None:
            timer = waiting.pop(self, None)
            if timer is not None:
                timer.cancel()

        def refuse(self) -> None:
            self.stop_waiting()
            self.transport.abort()

    return Watched
