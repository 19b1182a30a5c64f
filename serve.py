"""网页与 OpenAI 兼容接口：python serve.py，然后打开 http://127.0.0.1:8000

    /      写诗的页面        /train  正在进行的训练（曲线、示例、剩余时间）
    /v1    OpenAI 兼容接口（openai 客户端的 base_url；模型名 base-gpt-modern-poem）

接口里诗的控制项放在 extra_body：author、lines、length、first_line、acrostic、rhyme，
以及 top_k、min_p、repetition_penalty。每个问题单独成诗，没有对话记忆。
监听本机以外的地址（--HOST=0.0.0.0）必须设置 --API_KEY；没有密钥时只认本机的 Host。
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import functools
import hashlib
import hmac
import ipaddress
import re
import socket
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import config
from support import console, files
from support.console import UserError
from web import chat_api, live
from web.chat_api import ApiError

MAX_BODY = 1 << 20  # 请求体最多多少字节
BODY_SECONDS = 30  # 请求体最多等多久
MAX_ROWS = 16  # 一批最多同时写几首；再多的排队
_PAGES = Path(__file__).resolve().parent / "web"
_NO_ENGINE = "还没有可用的模型。请先运行 python train_gpt.py，训练的进展见 /train"


# ── 生成：引擎与事件循环之间 ──────────────────────────────────────────


class Service:
    """写诗的服务：懒加载引擎，限制同时在写与排队的诗的首数。

    load() 返回 engine.Engine：submit(question, **options) 给出句柄；句柄可迭代（整字的文字），
    有 cancel()、finish_reason、prompt_tokens、completion_tokens。
    除 load 与 Job 的取字线程外，都在事件循环的线程里运行，所以不用锁。
    """

    def __init__(self, load, work_dir: str, defaults: dict, limit: int, key: str = "") -> None:
        self.load, self.work_dir, self.defaults = load, work_dir, defaults
        self.limit, self.key = limit, key
        self.created = int(time.time())
        self.running = set()  # 占着位置的句柄
        self.pool = ThreadPoolExecutor(limit, thread_name_prefix="poem")
        self._engine, self._said = None, ""
        self._loading = threading.Lock()

    async def engine(self):
        """引擎；模型还不能用时是 503。"""
        if self._engine is None:
            loop = asyncio.get_running_loop()
            try:
                self._engine = await loop.run_in_executor(None, self.load_once)
            except UserError as error:
                self._complain(f"模型载入不了：{error}")
                raise ApiError(503, _NO_ENGINE, "model_not_ready") from None
        return self._engine

    def load_once(self):
        """载入引擎；几个请求同时来也只载入一次。"""
        with self._loading:
            if self._engine is None:
                self._engine = self.load()
            return self._engine

    def _complain(self, text):
        """可能含路径的话只在服务端的窗口说，同一句不重复。"""
        if text != self._said:
            self._said = text
            print(text, file=sys.stderr)

    async def start(self, ask) -> Job:
        """把 ask.n 首交给引擎；位置不够时一首也不交，429。"""
        engine = await self.engine()
        if len(self.running) + ask.n > self.limit:
            raise ApiError(429, "请求太多，请稍后再试", "rate_limit_exceeded")
        handles = []
        try:
            for index in range(ask.n):
                handles.append(engine.submit(ask.question, **self._options(ask, index)))
        except (UserError, ValueError) as error:
            for handle in handles:
                handle.cancel()
            raise ApiError(400, str(error), "invalid_value") from None
        return Job(self, handles, ask.stops)

    def _options(self, ask, index):
        options = {**self.defaults, **ask.options}
        if options.get("seed") is not None:
            options["seed"] += index  # 同一个种子的几个候选各不相同，又都能重现
        return options

    def close(self) -> None:
        for handle in list(self.running):
            handle.cancel()
        if hasattr(self._engine, "close"):
            self._engine.close()
        self.pool.shutdown(wait=False)


class Job:
    """一个请求的几首诗：每首由一个线程取字，汇到事件循环的一个队列里。"""

    def __init__(self, service: Service, handles: list, stops: tuple) -> None:
        self.handles = handles
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue()
        service.running.update(handles)
        for index, handle in enumerate(handles):
            leave = functools.partial(service.running.discard, handle)
            service.pool.submit(self._pump, index, handle, chat_api.StopFilter(stops), leave)

    async def pieces(self):
        """异步地给出 (第几首, 文字, finish_reason)；一首写完时 finish_reason 才不是 None。"""
        unfinished = len(self.handles)
        while unfinished:
            index, text, end = await self.queue.get()
            if isinstance(end, Exception):
                raise end
            unfinished -= end is not None
            yield index, text, end

    async def poems(self) -> list:
        """等全部写完：[(文字, finish_reason), …]"""
        texts, reasons = [[] for _ in self.handles], [None] * len(self.handles)
        async for index, text, end in self.pieces():
            texts[index].append(text)
            reasons[index] = end
        return [("".join(text), reason) for text, reason in zip(texts, reasons)]

    def usage(self) -> dict:
        written = sum(handle.completion_tokens for handle in self.handles)
        return chat_api.usage(self.handles[0].prompt_tokens, written)

    def cancel(self) -> None:
        for handle in self.handles:
            handle.cancel()

    def _pump(self, index, handle, stop, leave):
        try:
            for piece in handle:
                text = stop.feed(piece)
                if text:
                    self._put(self.queue.put_nowait, (index, text, None))
                if stop.hit:
                    handle.cancel()
                    break
            end = "stop" if stop.hit else handle.finish_reason
            item = (index, stop.flush(), end)
        except Exception as error:
            item = (index, "", error)
        self._put(leave)  # 先让出位置，再说写完了：收到回答的人立刻就能再问
        self._put(self.queue.put_nowait, item)

    def _put(self, function, *arguments):
        with contextlib.suppress(RuntimeError):  # 服务正在关，事件循环已经没了
            self.loop.call_soon_threadsafe(function, *arguments)


# ── 网络 ──────────────────────────────────────────────────────────────


def make_app(service: Service, host: str = "127.0.0.1"):
    """ASGI 应用；host 是监听的地址。"""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    web = Web(service)
    routes = [
        Route("/", _page("page.html")),
        Route("/train", _page("live.html")),
        Route("/info", web.info),
        Route("/train.json", web.training),
        Route("/v1/models", web.models),
        Route("/v1/models/{name:path}", web.model),
        Route("/v1/chat/completions", web.completions, methods=["POST"]),
    ]
    handlers = {ApiError: _api_error, HTTPException: _http_error, Exception: _crash}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=web.lifespan)
    return Guard(app, service.key, host)


class Web:
    """各个地址的处理函数。"""

    def __init__(self, service: Service) -> None:
        self.service = service

    @contextlib.asynccontextmanager
    async def lifespan(self, app):
        yield
        self.service.close()

    async def models(self, request):
        return _answer({"object": "list", "data": [chat_api.model_card(self.service.created)]})

    async def model(self, request):
        chat_api.check_model(request.path_params["name"])
        return _answer(chat_api.model_card(self.service.created))

    async def info(self, request):
        """页面要知道的：模型可用吗、默认值、训练过哪些提示词。"""
        try:
            kinds = getattr(await self.service.engine(), "prompt_kinds", None)
            shown = {"ready": True, "kinds": kinds and list(kinds)}
        except ApiError:
            shown = {"ready": False, "kinds": None}
        shown.update(model=chat_api.MODEL_ID, defaults=self.service.defaults)
        return _answer(shown)

    async def training(self, request):
        loop = asyncio.get_running_loop()
        return _answer(await loop.run_in_executor(None, live.status, self.service.work_dir))

    async def completions(self, request):
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # 别的网站不经预检发不出这种类型
            raise ApiError(415, "Content-Type 应当是 application/json")
        ask = chat_api.parse(await read_body(request))
        job = await self.service.start(ask)
        return Stream(job, ask) if ask.stream else await self._whole(request, job)

    async def _whole(self, request, job):
        """等写完；对方先挂断就不写了。"""
        work = asyncio.ensure_future(job.poems())
        watch = asyncio.ensure_future(_hung_up(request))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return _answer(chat_api.Reply().whole(work.result(), job.usage()))
            return _answer({}, status=499)  # 没有人在等了
        finally:
            watch.cancel()
            work.cancel()
            job.cancel()


class Stream:
    """SSE 回答；无论怎样结束（写完、出错、对方挂断）都收回句柄。"""

    def __init__(self, job: Job, ask) -> None:
        self.job, self.ask = job, ask

    async def __call__(self, scope, receive, send):
        from starlette.responses import StreamingResponse

        headers = {"X-Accel-Buffering": "no"}  # 反向代理不要攒着
        media = "text/event-stream"
        try:
            response = StreamingResponse(self._events(), headers=headers, media_type=media)
            await response(scope, receive, send)
        finally:
            self.job.cancel()

    async def _events(self):
        reply = chat_api.Reply(self.ask.include_usage)
        for index in range(self.ask.n):
            yield _event(reply.opening(index))
        try:
            async for index, text, end in self.job.pieces():
                if text:
                    yield _event(reply.piece(index, text))
                if end:
                    yield _event(reply.closing(index, end))
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
    PUBLIC = ("/", "/train")  # 页面本身没有秘密，不用密钥

    def __init__(self, app, key: str, host: str) -> None:
        self.app, self.key, self.host = app, key, host

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_safe(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.HEADERS]}
            await send(message)

        refused = self._refuse(scope["path"], dict(scope["headers"]))
        await (refused or self.app)(scope, receive, send_safe)

    def _refuse(self, path, headers):
        """有密钥就看密钥；没有密钥时只认本机的名字。"""
        if not self.key:
            local = is_local_name(headers.get(b"host", b""), self.host)
            refusal = _problem(403, "只接受用本机地址访问（防 DNS 重绑定）", "bad_host")
            return None if local else refusal
        allowed = path in self.PUBLIC or is_key(headers.get(b"authorization", b""), self.key)
        return None if allowed else _problem(401, "API 密钥不对或没有给", "invalid_api_key")


def _answer(data, status=200, headers=None):
    from starlette.responses import Response

    return Response(chat_api.to_json(data), status, headers, media_type="application/json")


def _problem(status, message, code=None, param=None):
    headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status)
    return _answer(chat_api.error_body(status, message, code, param), status, headers)


def _event(data):
    return b"data: " + chat_api.to_json(data) + b"\n\n"


async def _api_error(request, error):
    return _problem(error.status, error.message, error.code, error.param)


async def _http_error(request, error):
    words = {404: "没有这个地址", 405: "这个地址不接受这种请求方法"}
    return _problem(error.status_code, words.get(error.status_code, "请求有误"))


async def _crash(request, error):
    return _problem(500, "服务内部出错，详情见服务端窗口")


def _page(name):
    """一个自足的 HTML 文件，带着只许它自己的脚本运行的 CSP。"""
    from starlette.responses import Response

    html = (_PAGES / name).read_text(encoding="utf-8")  # 换行一律成 \n，散列才与浏览器算的相同
    headers = {"Content-Security-Policy": content_policy(html)}

    async def show(request):
        return Response(html, headers=headers, media_type="text/html")

    return show


async def read_body(request) -> bytes:
    """请求体；太大 413，太慢 408。"""
    from starlette.requests import ClientDisconnect

    parts, size = [], 0

    async def read():
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


async def _hung_up(request):
    """等到对方挂断才返回；请求体须已读完。"""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def is_key(header: bytes, key: str) -> bool:
    """Authorization 头是否带着正确的密钥（比较所用时间不泄露密钥）。"""
    scheme, _, token = header.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), key.encode("utf-8"))


def is_local_name(header: bytes, host: str) -> bool:
    """Host 头是不是本机的名字；别的域名即使解析到本机也不认。"""
    name = header.decode("latin-1").lower()
    name = re.sub(r":\d+$", "", name).strip("[]")
    return name in {"localhost", "127.0.0.1", "::1", host.lower().strip("[]")}


def content_policy(html: str) -> str:
    """只许页面自己的那段脚本与样式（按内容的散列）和同源请求。"""

    def hashes(tag):
        found = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.S)
        digests = (hashlib.sha256(text.encode("utf-8")).digest() for text in found)
        return " ".join(f"'sha256-{base64.b64encode(d).decode('ascii')}'" for d in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


# ── 启动 ──────────────────────────────────────────────────────────────


def is_loopback(host: str) -> bool:
    """只有本机能连上的地址。"""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_address(host: str, key: str) -> None:
    """对外监听而没有密钥：不启动。"""
    if not is_loopback(host) and not key:
        raise UserError(
            f"HOST={host} 会让别的机器也能访问，必须设置密钥。\n"
            f"请运行：python serve.py --HOST={host} --API_KEY=你的密钥"
        )


def listen(host: str, port: int) -> socket.socket:
    """打开监听的套接字；端口被占用时说清怎样换。"""
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        return socket.create_server((bare, port), family=family, backlog=512)
    except OSError as error:
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)  # Windows 上占用也会是 EACCES
        reason = "端口已被占用，或没有权限" if taken else str(error)
        raise UserError(
            f"不能监听 {host}:{port}：{reason}\n"
            f"请换一个端口：python serve.py --PORT={port % 65535 + 1}"
        ) from error


def main() -> None:
    config.load(__doc__)
    check_address(config.HOST, config.API_KEY)
    uvicorn = _import_uvicorn()
    service = Service(
        _load_engine, config.WORK_DIR, _defaults(), config.MAX_CONCURRENT, config.API_KEY
    )
    _load_first(service)
    sock = listen(config.HOST, config.PORT)
    name = f"[{config.HOST.strip('[]')}]" if ":" in config.HOST else config.HOST
    print(f"写诗：http://{name}:{config.PORT}    看训练：http://{name}:{config.PORT}/train")
    print(f"OpenAI 接口：http://{name}:{config.PORT}/v1    按 Ctrl-C 停止")
    options = uvicorn.Config(
        make_app(service, config.HOST),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=3,
    )
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn 收拾完会再抛一次
        uvicorn.Server(options).run(sockets=[sock])
    print("已停止。")


def _load_engine():
    from writing import engine

    poet = engine.Poet.load(config.CHECKPOINT, config.WORK_DIR, config.DEVICE, config.DTYPE)
    return engine.Engine(poet, max_rows=min(MAX_ROWS, config.MAX_CONCURRENT))


def _load_first(service):
    """启动时就载入模型；一个模型文件都没有时照样启动，训练页可用，有了模型再载入。"""
    names = [config.CHECKPOINT] if config.CHECKPOINT else ["best_model.bin", "checkpoint.bin"]
    if config.CHECKPOINT or any(files.find_input(n, config.WORK_DIR) for n in names):
        service.load_once()
    else:
        print("还没有模型，先只能看训练页；训练出 best_model.bin 后刷新网页就能写诗。")


def _defaults():
    """请求里没给的选项用配置里的值。"""
    return config.sampling()


def _import_uvicorn():
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(
            f"网页与接口要用 {error.name}，还没有安装。\n"
            f"请运行：{sys.executable} -m pip install starlette uvicorn"
        ) from error
    return uvicorn


if __name__ == "__main__":
    console.run(main)
