"""别的网站的页面来调用接口（CORS）：预检的回答，与每个回答上的头（流与错误也有）。

只放行点了名的来源（config.py 的 CORS_ORIGINS）；不放行任何来源时什么也不做。
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from support.console import UserError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

ANY = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,]+")


def origins(text: str, key: str) -> frozenset[str]:
    """“http://localhost:3000, https://a.example” → 来源的集合；写错的抛出 UserError。"""
    found = {each.strip().rstrip("/").lower() for each in text.split(",") if each.strip()}
    for origin in sorted(found - {ANY, "null"}):
        if not _ORIGIN.fullmatch(origin):
            raise UserError(
                f"CORS_ORIGINS 里的 {origin!r} 不是来源：写协议、名字与端口，"
                "如 http://localhost:3000；几个用逗号分开"
            )
    if ANY in found and not key:
        raise UserError(
            "CORS_ORIGINS=* 会让任何网页都能使用这个服务，必须设置密钥。\n"
            "请运行：python serve.py --CORS_ORIGINS='*' --API_KEY=你的密钥"
        )
    return frozenset(found)


class Cors:
    """包在应用外面。"""

    METHODS = b"GET, POST, OPTIONS"
    KEEP = b"600"  # 预检的回答，浏览器可以记多少秒

    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        self.app, self.allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        origin = headers.get(b"origin", b"")
        if not self._allows(origin):
            return await self.app(scope, receive, send)
        shared = [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"retry-after"),
            (b"vary", b"Origin"),
        ]
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            start = {"type": "http.response.start", "status": 204}
            await send({**start, "headers": shared + self._permission(headers)})
            return await send({"type": "http.response.body"})

        async def send_shared(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *shared]}
            await send(message)

        return await self.app(scope, receive, send_shared)

    def _allows(self, origin: bytes) -> bool:
        name = origin.decode("latin-1").lower()
        return bool(name) and (name in self.allowed or ANY in self.allowed)

    def _permission(self, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """预检的回答：它要带的头都可以带（openai 的网页客户端会多带几个）。"""
        wanted = headers.get(b"access-control-request-headers", b"authorization, content-type")
        found = [
            (b"access-control-allow-methods", self.METHODS),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", self.KEEP),
        ]
        if headers.get(b"access-control-request-private-network") == b"true":
            found.append((b"access-control-allow-private-network", b"true"))
        return found
