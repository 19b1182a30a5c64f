"""网页与 OpenAI 兼容接口：python serve.py，然后打开 http://127.0.0.1:8000

    /      写诗的页面        /train  正在进行的训练（曲线、示例、剩余时间）
    /v1    OpenAI 兼容接口（openai 客户端的 base_url；模型名 base-gpt-modern-poem）

接口里诗的控制项放在 extra_body：author、lines、length、line_chars、first_line、acrostic、
rhyme、form、tones，以及 top_k、min_p、repetition_penalty。每个问题单独成诗，没有对话记忆。
监听本机以外的地址（--HOST=0.0.0.0）必须设置 --API_KEY；没有密钥时只认本机的 Host，
别的名字写进 --ALLOWED_HOSTS。别的网站的页面要来调用，写进 --CORS_ORIGINS。
"""

from __future__ import annotations

from support import console, interpreter

if __name__ == "__main__":
    interpreter.begin()

import errno
import functools
import ipaddress
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import config
from support.console import UserError
from web import cors, server
from web.app import Doors
from web.service import Service

MAX_ROWS = 16  # 一批最多同时写几首；再多的排队


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


def load_engine(settings: dict[str, Any], name: str = "") -> Any:
    """照配置载入引擎；name 是 WORK_DIR 里别的模型文件。"""
    from writing import engine

    names = ("CHECKPOINT", "WORK_DIR", "DEVICE", "DTYPE", "COMPILE")
    chosen = {**settings, "CHECKPOINT": str(Path(settings["WORK_DIR"]) / name)}
    poet = engine.Poet.load(*((chosen if name else settings)[key] for key in names))
    return engine.Engine(poet, max_rows=min(MAX_ROWS, settings["MAX_CONCURRENT"]))


def load_first(service: Service, given: str) -> None:
    """启动时就载入模型；一个模型文件都没有时照样启动，训练页可用，有了模型再载入。"""
    import checkpoint

    if given or checkpoint.models_in(Path(service.work_dir)) or checkpoint.BOX_FILE.is_file():
        service.load_once()
    else:
        print("还没有模型，先只能看训练页；训练出 best_model.bin 后刷新网页就能写诗。")


def serve(service: Service, doors: Doors, sock: socket.socket) -> None:
    """一直服务到被叫停。"""
    its_server = server.make_server(service, doors)
    hang_up = getattr(signal, "SIGHUP", None)  # Windows 没有
    if hang_up and signal.getsignal(hang_up) is not signal.SIG_IGN:  # nohup 的意思是接着运行
        signal.signal(hang_up, its_server.handle_exit)
    its_server.run(sockets=[sock])


def open_doors() -> Doors:
    """照配置：谁能进来。"""
    names = frozenset(each.strip() for each in config.ALLOWED_HOSTS.split(",") if each.strip())
    return Doors(config.HOST, names, cors.origins(config.CORS_ORIGINS, config.API_KEY))


def check_installed() -> None:
    """网页与接口要用的包都在吗。"""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"网页与接口要用 {error.name}，还没有安装。\n"
            f"请运行：{sys.executable} -m pip install starlette uvicorn"
        ) from error


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """还在载入时被叫停。容器里是 1 号进程，系统不替它装默认的处理。"""
    sys.exit(128 + number)


def main() -> None:
    signal.signal(signal.SIGTERM, leave)
    config.load(__doc__)
    host, port = config.HOST, config.PORT
    check_address(host, config.API_KEY)
    doors = open_doors()
    check_installed()
    load = functools.partial(load_engine, config.values())
    limit = config.MAX_CONCURRENT
    service = Service(load, config.WORK_DIR, config.sampling(), limit, config.API_KEY)
    load_first(service, config.CHECKPOINT)
    sock = listen(host, port)
    name = f"[{host.strip('[]')}]" if ":" in host else host
    print(f"写诗：http://{name}:{port}    看训练：http://{name}:{port}/train")
    print(f"OpenAI 接口：http://{name}:{port}/v1    按 Ctrl-C 停止")
    serve(service, doors, sock)
    print("已停止。")


if __name__ == "__main__":
    console.run(main, must_finish=True)
