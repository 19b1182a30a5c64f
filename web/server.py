"""uvicorn 之上补的三件事：请求头太慢就断开，连接太多就不收，被叫停时写着的写完再走。"""

from __future__ import annotations

import asyncio
import signal
from types import FrameType
from typing import TYPE_CHECKING, Any

from web import app
from web.service import Service

if TYPE_CHECKING:
    from uvicorn import Server

HEAD_SECONDS = 30  # 请求头最多等多久
GRACE_SECONDS = 25  # 被叫停后，写着的诗最多再写多久（docker、k8s 一般等 10 到 30 秒）
BACKLOG = 128  # 一次最多接受多少个新连接
_SPARE_FILES = 64  # 留给模型、日志、训练页要读的文件
_MOST_CONNECTIONS = 4096


def most_connections() -> int:
    """同时开着的连接的上限：总在文件描述符用完之前。"""
    try:
        import resource
    except ImportError:  # Windows
        return 500
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(16, min(_MOST_CONNECTIONS, allowed - BACKLOG - _SPARE_FILES))


def make_server(service: Service, host: str = "127.0.0.1", **options: Any) -> Server:
    """配好的 uvicorn 服务器；options 给 uvicorn.Config。"""
    import uvicorn

    usual = {"log_level": "warning", "timeout_graceful_shutdown": 3}
    config = uvicorn.Config(
        app.make_app(service, host),
        http=watched_protocol(HEAD_SECONDS, most_connections()),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        backlog=BACKLOG,
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
                self.should_exit = True
            return await super().on_tick(counter)

    return Polite(config)


def watched_protocol(head_seconds: float, most: int) -> type[asyncio.Protocol]:
    """uvicorn 的 HTTP 协议，但请求头 head_seconds 秒还没收完就断开，连接多过 most 就不收。"""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Watched(AutoHTTPProtocol):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            else:
                self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            if self.head_timer is None and self._is_idle():  # 同一个连接上的下一个请求
                self._wait_for_head()
            super().data_received(data)
            if not self._is_idle():
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _is_idle(self) -> bool:
            """没有正在回答的请求。"""
            return self.cycle is None or self.cycle.response_complete

        def _wait_for_head(self) -> None:
            self.head_timer = self.loop.call_later(head_seconds, self.transport.close)

        def _stop_waiting(self) -> None:
            if self.head_timer is not None:
                self.head_timer.cancel()
                self.head_timer = None

    return Watched
