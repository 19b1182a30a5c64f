"""网页与接口：地址、各自的处理函数、谁能进来、请求体与回答的样子（ASGI，用 Starlette）。"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
import traceback
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, NamedTuple

from web import chat_api, live, openapi, pages, poem_api
from web.chat_api import ApiError, Ask
from web.cors import Cors
from web.service import Job, Service

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    Handler = Callable[[Request], Awaitable[Response]]

MAX_BODY = 1 << 20  # 请求体最多多少字节
BODY_SECONDS = 30  # 请求体最多等多久
LOAD_SECONDS = 1  # /health 最多等模型载入多久


class Doors(NamedTuple):
    """谁能进来。"""

    host: str = "127.0.0.1"  # 监听的地址
    names: frozenset[str] = frozenset()  # 没有密钥时另外认的主机名
    origins: frozenset[str] = frozenset()  # 可以来调用的网站


LOCAL = Doors()


def make_app(service: Service, doors: Doors = LOCAL) -> Cors:
    """ASGI 应用。"""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    web = Web(service)
    routes = [
        Route("/", _page("page.html")),
        Route("/train", _page("live.html")),
        Route("/health", web.health),
        Route("/info", web.info),
        Route("/openapi.json", _manual),
        Route("/train.json", web.training),
        Route("/v1/models", web.models),
        Route("/v1/models/{name:path}", web.model),
        Route("/v1/chat/completions", web.completions, methods=["POST"]),
        Route("/v1/poems/rewrite", web.rewrite, methods=["POST"]),
        Route("/v1/poems/titles", web.titles, methods=["POST"]),
    ]
    handlers = {ApiError: _api_error, HTTPException: _http_error, Exception: _crash}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=web.lifespan)
    names = frozenset({"localhost", "127.0.0.1", "::1", doors.host, *doors.names})
    return Cors(Guard(app, service.key, names), doors.origins)


class Web:
    """各个地址的处理函数。"""

    def __init__(self, service: Service) -> None:
        self.service = service

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        self.service.close()

    async def models(self, request: Request) -> Response:
        cards = [self._card(name) for name in await self.service.models()]
        return _answer({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        await self.service.check_model(name)
        return _answer(self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        return chat_api.model_card(name, self.service.created)

    async def health(self, request: Request) -> Response:
        """给 Docker、反向代理探问：能写诗了吗。问一次也就让模型载入起来。"""
        try:
            await asyncio.wait_for(self.service.engine(), LOAD_SECONDS)
            status = "stopping" if self.service.is_stopping else "ok"
        except (ApiError, asyncio.TimeoutError):
            status = "loading"
        return _answer({"status": status}, status=200 if status == "ok" else 503)

    async def info(self, request: Request) -> Response:
        """页面要知道的：模型可用吗、有哪些选项、默认值、训练过哪些提示词。"""
        try:
            kinds = getattr(await self.service.engine(), "prompt_kinds", None)
            shown = {"ready": True, "kinds": kinds and list(kinds)}
        except ApiError:
            shown = {"ready": False, "kinds": None}
        defaults, models = self.service.defaults, await self.service.models()
        shown.update(models=models, file=self.service.shelf.default_file(), defaults=defaults)
        shown.update(options=chat_api.page_options(), styles=chat_api.page_styles(defaults))
        return _answer(shown)

    async def training(self, request: Request) -> Response:
        loop = asyncio.get_running_loop()
        return _answer(await loop.run_in_executor(None, live.status, self.service.work_dir))

    async def completions(self, request: Request) -> Response | Stream:
        ask = chat_api.parse(await read_body(request))
        job = await self.service.start(ask)
        return Stream(job, ask) if ask.stream else await self._whole(request, job, ask)

    async def rewrite(self, request: Request) -> Response:
        """改这一行。"""
        change = poem_api.rewriting(await read_body(request), self.service.defaults)
        poem = await self.service.alone(change.apply, change.model)
        return _answer(change.answer(poem))

    async def titles(self, request: Request) -> Response:
        """起个题目。"""
        naming = poem_api.naming(await read_body(request))
        return _answer({"titles": await self.service.alone(naming.apply, naming.model)})

    async def _whole(self, request: Request, job: Job, ask: Ask) -> Response:
        """等写完；对方先挂断就不写了。"""
        work = asyncio.ensure_future(job.poems())
        watch = asyncio.ensure_future(_hung_up(request))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return _answer(chat_api.Reply(ask.model).whole(work.result(), job.usage()))
            return _answer({}, status=499)  # 没有人在等了
        finally:
            watch.cancel()
            work.cancel()
            job.cancel()


class Stream:
    """SSE 回答；无论怎样结束（写完、出错、对方挂断）都收回句柄。"""

    def __init__(self, job: Job, ask: Ask) -> None:
        self.job, self.ask = job, ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import StreamingResponse

        headers = {"X-Accel-Buffering": "no"}  # 反向代理不要攒着
        media = "text/event-stream"
        try:
            response = StreamingResponse(self._events(), headers=headers, media_type=media)
            await response(scope, receive, send)
        finally:
            self.job.cancel()

    async def _events(self) -> AsyncIterator[bytes]:
        reply = chat_api.Reply(self.ask.model, self.ask.include_usage)
        for index in range(self.ask.n):
            yield _event(reply.opening(index))
        try:
            async for piece in self.job.pieces():
                if piece.text:
                    yield _event(reply.piece(piece.index, piece.text))
                if piece.end:
                    yield _event(reply.closing(piece.index, piece.end))
        except ApiError as error:
            yield _event(chat_api.error_body(error.status, error.message, error.code))
            return
        except Exception:
            traceback.print_exc()
            yield _event(chat_api.error_body(500, "生成中途出错，详情见服务端窗口"))
            return
        if self.ask.include_usage:
            yield _event(reply.totals(self.job.usage()))
        yield b"data: [DONE]\n\n"


class Guard:
    """最外一层：认 Host、认密钥、给每个回答加上安全的头。"""

    HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"cache-control", b"no-store"),
    )
    PUBLIC = ("/", "/train", "/health")  # 没有秘密，不用密钥
    OUTSIDER = (
        "只接受用本机地址访问（防 DNS 重绑定）；要用别的名字访问（如 host.docker.internal），"
        "请用 --ALLOWED_HOSTS=那个名字 或 --API_KEY=密钥 启动 serve.py"
    )

    def __init__(self, app: Starlette, key: str, names: frozenset[str]) -> None:
        """names：没有密钥时认的主机名。"""
        self.app, self.key = app, key
        self.names = {name.lower().strip("[]") for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_safe(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.HEADERS]}
            await send(message)

        path = tidy_path(scope["path"])
        refused = self._refuse(path, dict(scope["headers"]))
        await (refused or self.app)({**scope, "path": path}, receive, send_safe)

    def _refuse(self, path: str, headers: dict[bytes, bytes]) -> Response | None:
        """有密钥就看密钥；没有密钥时只认本机的名字。"""
        if not self.key:
            local = host_name(headers.get(b"host", b"")) in self.names
            return None if local or path == "/health" else _problem(403, self.OUTSIDER, "bad_host")
        allowed = path in self.PUBLIC or is_key(headers.get(b"authorization", b""), self.key)
        return None if allowed else _problem(401, "API 密钥不对或没有给", "invalid_api_key")


def _answer(
    data: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    from starlette.responses import Response

    return Response(chat_api.to_json(data), status, headers, media_type="application/json")


def _problem(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> Response:
    headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status)
    return _answer(chat_api.error_body(status, message, code, param), status, headers)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + chat_api.to_json(data) + b"\n\n"


async def _api_error(request: Request, error: ApiError) -> Response:
    return _problem(error.status, error.message, error.code, error.param)


async def _http_error(request: Request, error: HTTPException) -> Response:
    words = {404: "没有这个地址；接口都在 /v1 下面", 405: "这个地址不接受这种请求方法"}
    answer = _problem(error.status_code, words.get(error.status_code, "请求有误"))
    answer.headers.update(error.headers or {})  # 405 要说接受哪些（Allow）
    return answer


async def _crash(request: Request, error: Exception) -> Response:
    return _problem(500, "服务内部出错，详情见服务端窗口")


async def _manual(request: Request) -> Response:
    return _answer(openapi.document())


def _page(name: str) -> Handler:
    from starlette.responses import Response

    html, headers = pages.page(name)

    async def show(request: Request) -> Response:
        return Response(html, headers=headers, media_type="text/html")

    return show


async def read_body(request: Request) -> bytes:
    """JSON 的请求体；别的类型 415，太大 413，太慢 408。"""
    from starlette.requests import ClientDisconnect

    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # 别的网站不经预检发不出这种类型
        raise ApiError(415, "Content-Type 应当是 application/json")
    parts, size = [], 0

    async def read() -> None:
        nonlocal size
        async for part in request.stream():
            size += len(part)
            if size > MAX_BODY:
                raise ApiError(413, f"请求体最多 {MAX_BODY} 字节", "body_too_large")
            parts.append(part)

    try:
        await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(408, "请求体来得太慢", "body_timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "请求体没有收完") from None
    return b"".join(parts)


async def _hung_up(request: Request) -> None:
    """等到对方挂断才返回；请求体须已读完。"""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def is_key(header: bytes, key: str) -> bool:
    """Authorization 头是否带着正确的密钥（比较所用时间不泄露密钥）。"""
    scheme, _, token = header.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), key.encode("utf-8"))


def host_name(header: bytes) -> str:
    """Host 头里的名字：小写，不带端口、方括号与末尾的点；不成样子的是空串。"""
    pattern = r"(?:\[([0-9a-f:.]*:[0-9a-f:.]*)\]|([^\[\]:]+?)\.?)(?::\d+)?"
    found = re.fullmatch(pattern, header.decode("latin-1").lower())
    return (found.group(1) or found.group(2)) if found else ""


def tidy_path(path: str) -> str:
    """多写的斜线不算：/v1/models/、//v1/models 都是 /v1/models。"""
    return re.sub("/+", "/", path).rstrip("/") or "/"
