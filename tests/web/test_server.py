"""服务器：慢的请求头、太多的连接、叫停时的收尾、/health。"""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest

from support.console import UserError
from tests.fake_engine import FakeEngine, poem
from web.service import Service

httpx = pytest.importorskip("httpx", reason="没有安装 httpx")
pytest.importorskip("starlette", reason="没有安装 starlette")
pytest.importorskip("uvicorn", reason="没有安装 uvicorn")

from tests import server  # noqa: E402
from web import app  # noqa: E402
from web import server as web_server  # noqa: E402

CHAT = "/v1/chat/completions"
HALF = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture()
def slow(tmp_path):
    """(引擎, 服务, 网址)；引擎放行一次写一段。"""
    engine = FakeEngine(step=threading.Semaphore(0))
    service = server.service(engine, tmp_path, limit=4)
    with server.running(service) as url:
        yield engine, service, url
        for handle in engine.handles:
            handle.cancel()


def ask(url, **fields):
    body = {"messages": [{"role": "user", "content": "雪"}], **fields}
    return httpx.post(url + CHAT, json=body, timeout=60)


def connect(url):
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=60)


def is_closed(sock) -> bool:
    """对方关了：读到结尾，或被重置。"""
    with contextlib.suppress(ConnectionError):
        return sock.recv(4096) == b""
    return True


# ── 连接 ──────────────────────────────────────────────────────────────


def test_half_sent_heads_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(web_server, "HEAD_SECONDS", 0.2)
    with server.running(server.service(FakeEngine(), tmp_path)) as url:
        with connect(url) as silent, connect(url) as half:
            half.sendall(HALF)
            assert is_closed(silent) and is_closed(half)
        with connect(url) as again:  # 同一个连接上的第二个请求
            again.sendall(HALF + b"\r\n")
            assert again.recv(4096).startswith(b"HTTP/1.1 200")
            again.sendall(HALF)
            while not is_closed(again):
                pass
        assert httpx.get(url + "/v1/models").status_code == 200


def test_a_slow_answer_is_not_a_slow_head(tmp_path, monkeypatch):
    monkeypatch.setattr(web_server, "HEAD_SECONDS", 0.05)
    engine = FakeEngine(pause=0.05)
    with server.running(server.service(engine, tmp_path)) as url:
        assert ask(url).json()["choices"][0]["message"]["content"] == poem("雪")


def test_too_many_connections_cut_the_one_that_waits_longest(tmp_path, monkeypatch):
    monkeypatch.setattr(web_server, "room", lambda: web_server.Room(128, 3))
    engine = FakeEngine(step=threading.Semaphore(0))
    with server.running(server.service(engine, tmp_path)) as url:
        texts = []
        asking = threading.Thread(target=lambda: texts.append(ask(url).json()))
        asking.start()
        assert server.wait_until(lambda: engine.handles)
        with connect(url) as first, connect(url) as second:
            second.sendall(HALF)
            assert httpx.get(url + "/v1/models").status_code == 200  # 来问的人进得来
            assert is_closed(first)
            assert httpx.get(url + "/v1/models").status_code == 200
        for _ in range(9):
            engine.step.release()
        asking.join(60)
    assert texts[0]["choices"][0]["message"]["content"] == poem("雪")  # 正在回答的不受影响


def answers(url) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url + "/v1/models").status_code == 200
    return False


def test_connections_stay_below_the_descriptors():
    assert 16 <= web_server.room().connections <= 4096


@pytest.mark.parametrize("allowed", [128, 256, 1024, 4096, 1 << 20])
def test_connections_being_dropped_count_too(monkeypatch, allowed):
    """断开多出来的要转几圈事件循环，每圈又接受一批：加起来仍在文件描述符的上限之内。"""
    resource = pytest.importorskip("resource", reason="Windows 没有 resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    found = web_server.room()
    assert found.connections >= 16 and found.backlog >= 4
    assert found.connections + 5 * found.backlog < allowed - 30


# ── 叫停 ──────────────────────────────────────────────────────────────


def events(response) -> list:
    return [line[6:] for line in response.iter_lines() if line.startswith("data: ")]


def test_stopping_finishes_what_runs_and_takes_nothing_new(slow):
    engine, service, url = slow
    body = {"messages": [{"role": "user", "content": "雪"}], "stream": True}
    with httpx.Client(timeout=60).stream("POST", url + CHAT, json=body) as response:
        assert server.wait_until(lambda: service.running)
        service.stop(60)
        refused = ask(url)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        health = httpx.get(url + "/health")
        assert (health.status_code, health.json()) == (503, {"status": "stopping"})
        for _ in range(9):
            engine.step.release()
        found = events(response)
    assert found[-1] == "[DONE]"
    texts = [json.loads(item)["choices"][0]["delta"].get("content", "") for item in found[:-1]]
    assert "".join(texts) == poem("雪")
    assert server.wait_until(lambda: not answers(url))


def test_what_is_not_finished_in_time_ends_with_an_error(slow):
    _, service, url = slow
    body = {"messages": [{"role": "user", "content": "雪"}], "stream": True}
    with httpx.Client(timeout=60).stream("POST", url + CHAT, json=body) as response:
        assert server.wait_until(lambda: service.running)
        service.stop(0)
        last = json.loads(events(response)[-1])
    assert last["error"]["code"] == "shutting_down"


def test_whole_answers_are_503_when_time_is_up(slow):
    _, service, url = slow
    answer = []
    asking = threading.Thread(target=lambda: answer.append(ask(url)))
    asking.start()
    assert server.wait_until(lambda: service.running)
    service.stop(0)
    asking.join(60)
    assert answer[0].status_code == 503


def test_a_failing_candidate_frees_the_others(tmp_path):
    class Moody(FakeEngine):
        def submit(self, question, **options):
            if self.handles:
                raise RuntimeError("第二首写不了")
            return super().submit(question, **options)

    engine = Moody(step=threading.Semaphore(0))
    service = server.service(engine, tmp_path)
    with server.running(service) as url:
        assert ask(url, n=2).status_code == 500
        assert engine.handles[0].cancelled.is_set() and not service.running


# ── 门 ────────────────────────────────────────────────────────────────


def test_health(tmp_path):
    models = []

    def load():
        if not models:
            raise UserError("没有模型")
        return models[0]

    service = Service(load, str(tmp_path), {}, 4, key="钥匙")
    with server.running(service) as url:
        waiting = httpx.get(url + "/health", headers={"Host": "10.0.0.3"})
        assert (waiting.status_code, waiting.json()) == (503, {"status": "loading"})
        models.append(FakeEngine())
        assert httpx.get(url + "/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("header", "local"),
    [
        ("localhost", True),
        ("localhost.", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("[[127.0.0.1]]", False),
        ("[127.0.0.1]", False),
        ("[localhost]", False),
        ("::1", False),
        ("localhost..", False),
        ("localhost:80:80", False),
        ("evil.example", False),
        ("", False),
    ],
)
def test_local_names(header, local):
    assert (app.host_name(header.encode()) in {"localhost", "127.0.0.1", "::1"}) is local


def test_names_of_hosts():
    assert app.host_name(b"[::2]:80") == "::2" and app.host_name(b"127.0.0.5") == "127.0.0.5"
