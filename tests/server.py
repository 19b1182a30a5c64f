"""在空闲的回环端口上跑真的 uvicorn，供接口与页面的测试用；Chromium 在哪里、怎样启动。"""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time

from web.server import make_server
from web.service import Service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DEFAULTS = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.4, "max_new_tokens": 400}


def service(engine, folder, limit: int = 8, key: str = "") -> Service:
    return Service(lambda: engine, str(folder), dict(DEFAULTS), limit, key)


@contextlib.contextmanager
def running(the_service: Service):
    """给出 http://127.0.0.1:端口；离开时停下。"""
    sock = socket.create_server(("127.0.0.1", 0))
    options = {"log_level": "critical", "timeout_graceful_shutdown": 1}
    server = make_server(the_service, **options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        sock.close()


def wait_until(condition, seconds: float = 30.0) -> bool:
    """等条件成立；等不到给 False。"""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
