"""网页与接口：OpenAI 形状的回答、停止串、挂断、限流、密钥、Host。"""

from __future__ import annotations

import json
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.console import UserError
from tests.fake_engine import FakeEngine, poem
from web import app, chat_api, live, pages
from web.service import Service

pytest.importorskip("starlette", reason="没有安装 starlette")
pytest.importorskip("httpx", reason="没有安装 httpx")

from starlette.testclient import TestClient

from tests import server

CHAT = "/v1/chat/completions"


@pytest.fixture()
def engine():
    return FakeEngine()


@pytest.fixture()
def client(engine, tmp_path):
    guarded = app.make_app(server.service(engine, tmp_path))
    with TestClient(guarded, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def ask(client, question="春天", **fields):
    body = {"model": chat_api.MODEL_ID, "messages": [{"role": "user", "content": question}]}
    return client.post(CHAT, json={**body, **fields})


def events(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


# ── 回答的形状 ────────────────────────────────────────────────────────


def test_whole_answer(client):
    answer = ask(client, seed=7).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": poem("春天", 7)}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}


def test_stream_says_the_same_as_the_whole(client):
    response = ask(client, seed=7, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(response)
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 13
    assert all(chunk["usage"] is None for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == poem("春天", 7)
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_candidates_use_neighbouring_seeds(client, engine):
    choices = ask(client, n=3, seed=5).json()["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    assert texts == [poem("春天", seed) for seed in (5, 6, 7)]
    chunks = events(ask(client, n=2, seed=5, stream=True))
    for index in range(2):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(c["delta"].get("content", "") for c in mine) == poem("春天", 5 + index)


def test_last_user_message_is_the_question(client, engine):
    messages = [
        {"role": "system", "content": "你是诗人"},
        {"role": "user", "content": "第一问"},
        {"role": "assistant", "content": "答"},
        {"role": "user", "content": [{"type": "text", "text": "第二问"}]},
    ]
    assert client.post(CHAT, json={"messages": messages}).status_code == 200
    assert engine.asked[-1][0] == "第二问"


def test_controls_reach_the_engine(client, engine):
    ask(client, author="海子", lines=4, acrostic="春夏秋冬", rhyme=True, top_p=0, max_tokens=9)
    options = engine.asked[-1][1]
    assert options["author"] == "海子" and options["lines"] == 4 and options["rhyme"] is True
    assert options["acrostic"] == "春夏秋冬" and 0 < options["top_p"] < 1e-3
    assert options["max_new_tokens"] == 9 and options["temperature"] == 0.7


def test_length_is_reported(client):
    assert ask(client, max_tokens=2).json()["choices"][0]["finish_reason"] == "length"


def test_stop_strings_cut_the_poem_and_stop_the_engine(client, engine):
    choice = ask(client, stop=["像一句没"]).json()["choices"][0]
    assert choice["message"]["content"] == "春天，在窗台上坐了一夜\n灯还亮着，"
    assert choice["finish_reason"] == "stop"
    assert engine.handles[-1].cancelled.is_set()


def test_models(client):
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == [chat_api.MODEL_ID]
    assert client.get(f"/v1/models/{chat_api.MODEL_ID}").json()["object"] == "model"
    missing = client.get("/v1/models/gpt-4")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_other_models_of_the_folder(tmp_path):
    """WORK_DIR 里别的模型文件也可以点名要；文件换了，用到时重新载入；别的 .bin 不算。"""
    path = tmp_path / "second.bin"
    loaded = []

    def load(name=""):
        loaded.append(name)
        return FakeEngine(verse=(f"{name or '默认'}写{{q}}", str(len(loaded))))

    def replace(data):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", data)

    replace("一")
    (tmp_path / "dataset.bin").write_bytes(b"GPTD")
    (tmp_path / "folder.bin").mkdir()
    service = Service(load, str(tmp_path), {}, 4)
    with TestClient(app.make_app(service), base_url="http://127.0.0.1") as client:
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert names == [chat_api.MODEL_ID, "second.bin"] and loaded == []
        assert client.get("/v1/models/second.bin").json()["id"] == "second.bin"
        answer = ask(client, model="second.bin").json()
        assert answer["model"] == "second.bin"
        assert answer["choices"][0]["message"]["content"] == "second.bin写春天1"
        ask(client, model="second.bin")
        assert loaded == ["second.bin"]
        replace("换过的")
        assert ask(client, model="second.bin").json()["choices"][0]["message"]["content"][-1] == "2"
        assert ask(client).json()["choices"][0]["message"]["content"] == "默认写春天3"
        for wrong in ("dataset.bin", "../second.bin", "folder.bin", "second"):
            refused = ask(client, model=wrong)
            assert refused.status_code == 404 and "second.bin" in refused.json()["error"]["message"]
        info = client.get("/info").json()
        assert info["models"] == names and info["file"] == ""


def test_a_broken_model_is_told_and_the_default_still_writes(tmp_path):
    def load(name=""):
        if name:
            raise UserError(f"{tmp_path / name} 不完整或已损坏")
        return FakeEngine()

    with zipfile.ZipFile(tmp_path / "bad.bin", "w") as archive:
        archive.writestr("data", "")
    service = Service(load, str(tmp_path), {}, 4)
    with TestClient(app.make_app(service), base_url="http://127.0.0.1") as client:
        refused = ask(client, model="bad.bin")
        assert refused.status_code == 503 and str(tmp_path) not in refused.text
        assert "bad.bin 载入不了" in refused.json()["error"]["message"]
        assert ask(client).status_code == 200


def test_styles_come_from_the_table(client):
    styles = client.get("/info").json()["styles"]
    assert [style["label"] for style in styles] == ["沉静", "平常", "恣意"]
    assert [style["options"].get("temperature") for style in styles] == [0.56, None, 0.84]


# ── 改一行、起题目 ────────────────────────────────────────────────────

REWRITE, TITLES = "/v1/poems/rewrite", "/v1/poems/titles"
POEM = "春天来了\n\n花开在山坡上\n夏天的雨"


def test_rewrite(client, engine):
    body = {"title": "春", "poem": POEM, "line": 2, "seed": 3, "acrostic": "春花夏"}
    answer = client.post(REWRITE, json=body).json()
    assert answer == {"poem": "春天来了\n\n新的第2行\n夏天的雨", "line": 2, "text": "新的第2行"}
    question, options = engine.asked[-1]
    assert (question, options["n"], options["seed"], options["acrostic"]) == ("春", 8, 3, "春花夏")
    assert options["temperature"] == 0.7  # 没有给的是默认的


def test_titles(client):
    assert client.post(TITLES, json={"poem": POEM, "n": 2}).json() == {"titles": ["灯", "窗台"]}
    assert len(client.post(TITLES, json={"poem": POEM}).json()["titles"]) == 3


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (REWRITE, {"line": 1}, "poem"),
        (REWRITE, {"poem": " \n", "line": 1}, "poem"),
        (REWRITE, {"poem": 3, "line": 1}, "poem"),
        (REWRITE, {"poem": "长" * 20001, "line": 1}, "poem"),
        (REWRITE, {"poem": POEM}, "line"),
        (REWRITE, {"poem": POEM, "line": True}, "line"),
        (REWRITE, {"poem": POEM, "line": "2"}, "line"),
        (REWRITE, {"poem": POEM, "line": 1, "n": 9}, "n"),
        (REWRITE, {"poem": POEM, "line": 1, "title": 3}, "title"),
        (REWRITE, {"poem": POEM, "line": 1, "temperature": 3}, "temperature"),
        (REWRITE, {"poem": POEM, "line": 1, "model": 3}, "model"),
        (TITLES, {"poem": ""}, "poem"),
        (TITLES, {"poem": POEM, "n": 0}, "n"),
    ],
)
def test_wrong_fields_of_poems_are_named(client, path, body, param):
    response = client.post(path, json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_a_line_that_is_not_there_and_other_refusals(client):
    for line in (0, 4, -1):
        refused = client.post(REWRITE, json={"poem": POEM, "line": line})
        assert refused.status_code == 400 and f"没有第 {line} 行" in refused.text
    for path in (REWRITE, TITLES):
        assert client.post(path, content="{}").status_code == 415
        assert client.post(path, json={"poem": POEM, "line": 1, "model": "x"}).status_code == 404
        assert client.get(path).status_code == 405


def test_rewriting_takes_a_seat(engine, tmp_path):
    service = server.service(engine, tmp_path, limit=1)
    with TestClient(app.make_app(service), base_url="http://127.0.0.1") as client:
        service.running.add("写着的一首")
        assert client.post(TITLES, json={"poem": POEM}).status_code == 429
        service.running.clear()
        assert client.post(TITLES, json={"poem": POEM}).status_code == 200
        assert not service.running


@pytest.mark.parametrize("stops", [("月亮",), ("aab", "ab"), ("一", "二三")])
def test_stop_filter_equals_a_search_in_the_whole(stops):
    text = "看月光aaabx二二三一月亮很圆"
    for size in range(1, 6):
        stop = chat_api.StopFilter(stops)
        parts = [stop.feed(text[i : i + size]) for i in range(0, len(text), size)]
        found = [text.find(s) for s in stops if s in text]
        # 片段跨过两个停止串时，只保证不越过先出现的那个
        assert "".join(parts) + stop.flush() == text[: min(found)]
        assert stop.hit


# ── 错误 ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "热"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 99}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens 与 max_completion_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": "x"}, "frequency_penalty"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop": ["长" * 257]}, "stop"),
        ({"stop": [3]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"lines": 0}, "lines"),
        ({"acrostic": "长" * 65}, "acrostic"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "嗨"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": ["嗨"]}, "messages[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        ({"tools": [{"type": "function"}], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_wrong_fields_are_named(client, fields, param):
    response = ask(client, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error"
    assert error["message"] and set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"n": ' + b"9" * 9000]
)
def test_broken_bodies(client, body):
    response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["type"]


def test_unknown_model_path_method_and_type(client):
    assert ask(client, model="gpt-4").status_code == 404
    assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    refused = client.get(CHAT)
    assert refused.status_code == 405 and refused.headers["allow"] == "POST"
    assert client.post(CHAT, content="{}").status_code == 415


def test_too_long(client):
    assert ask(client, "太长").status_code == 400  # 引擎说装不下
    assert ask(client, "长" * 9000).json()["error"]["code"] == "context_length_exceeded"
    assert ask(client, "长" * chat_api.MAX_QUESTION * 200).status_code == 413


def test_engine_failure_leaks_nothing(client, capfd):
    response = ask(client, "坏掉")
    assert response.status_code == 500
    assert "secret" not in response.text and "Traceback" not in response.text
    response = ask(client, "坏掉", stream=True)
    assert "secret" not in response.text
    error = json.loads(response.text.strip().split("\n\n")[-1][6:])["error"]
    assert error["type"] == "server_error"


def test_no_model_is_503_and_the_page_still_opens(tmp_path):
    def load():
        raise UserError(f"没有模型：{tmp_path}")

    service = Service(load, str(tmp_path), {}, 4)
    client = TestClient(app.make_app(service), base_url="http://127.0.0.1")
    response = ask(client)
    assert response.status_code == 503 and str(tmp_path) not in response.text
    assert client.get("/info").json()["ready"] is False
    assert client.get("/").status_code == client.get("/train").status_code == 200


def test_html_is_never_spelled_out(client):
    response = ask(client, "<script>alert(1)</script>")
    assert "<script" not in response.text
    assert "<script>alert(1)</script>" in response.json()["choices"][0]["message"]["content"]
    assert "<b" not in ask(client, model="<b>x</b>").text


def test_lone_surrogate_does_not_crash(client):
    body = b'{"messages":[{"role":"user","content":"\\ud800"}]}'
    response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200


# ── 门户 ──────────────────────────────────────────────────────────────


def test_foreign_host_is_refused(client):
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 403
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    refused = client.get("/v1/models", headers={"Host": "host.docker.internal:8000"}).json()
    assert "--ALLOWED_HOSTS=" in refused["error"]["message"]
    assert "--API_KEY=" in refused["error"]["message"]


def test_key_is_required_when_set(engine, tmp_path):
    locked = app.make_app(server.service(engine, tmp_path, key="钥匙123"))
    client = TestClient(locked, base_url="http://poem.example")
    for path in ("/v1/models", "/info", "/train.json", "/v1/anything"):
        refused = client.get(path)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
    assert client.get("/").status_code == 200
    right = "Bearer 钥匙123".encode()
    assert client.get("/v1/models", headers={"Authorization": right}).status_code == 200
    wrong = "Bearer 钥匙12".encode()
    assert client.get("/v1/models", headers={"Authorization": wrong}).status_code == 401


def test_training_page_asks_for_the_state(client, tmp_path):
    assert client.get("/train.json").json() == live.status(str(tmp_path))


def test_headers(client):
    headers = client.get("/").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert not any(name.startswith("access-control") for name in headers)


def test_windows_line_ends_do_not_break_the_page(engine, tmp_path, monkeypatch):
    for path in pages.FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        (tmp_path / path.name).write_bytes(text.replace("\n", "\r\n").encode("utf-8"))
    here = TestClient(app.make_app(server.service(engine, tmp_path)), base_url="http://127.0.0.1")
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    there = TestClient(app.make_app(server.service(engine, tmp_path)), base_url="http://127.0.0.1")
    for path in ("/", "/train"):
        policies = [c.get(path).headers["content-security-policy"] for c in (here, there)]
        assert policies[0] == policies[1]  # 浏览器按 \n 算散列


def test_pages_are_self_contained(client):
    for path in ("/", "/train"):
        html = client.get(path).text
        assert " src=" not in html.replace(' src="data:', "") and "@import" not in html
        assert "innerHTML" not in html and "insertAdjacentHTML" not in html
        assert "style=" not in html  # CSP 会拦下内联样式
        assert "http://" not in html.replace("http://www.w3.org/", "") and "https://" not in html


# ── 真的服务器：限流、排队、挂断 ──────────────────────────────────────


@pytest.fixture()
def slow(tmp_path):
    """每放行一次才写一段的引擎，跑在真的 uvicorn 上；最多四首。"""
    pytest.importorskip("uvicorn", reason="没有安装 uvicorn")
    engine = FakeEngine(step=threading.Semaphore(0))
    service = server.service(engine, tmp_path, limit=4)
    with server.running(service) as url:
        yield engine, service, url


def _post(url, **fields):
    import httpx

    body = {"messages": [{"role": "user", "content": "雪"}], **fields}
    return httpx.Client(timeout=30).stream("POST", url + CHAT, json=body)


def test_full_queue_is_429_and_frees_up(slow):
    import httpx

    engine, service, url = slow
    with _post(url, stream=True, n=3), _post(url, stream=True):
        assert server.wait_until(lambda: len(engine.handles) == 4)
        body = {"messages": [{"role": "user", "content": "雪"}]}
        refused = httpx.post(url + CHAT, json=body)
        assert refused.status_code == 429 and refused.headers["retry-after"]
        assert refused.json()["error"]["type"] == "rate_limit_error"
    assert server.wait_until(lambda: not service.running)
    for _ in range(10):
        engine.step.release()
    assert httpx.post(url + CHAT, json=body, timeout=30).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_stops_the_poem(slow, stream):
    import httpx

    engine, service, url = slow
    body = {"messages": [{"role": "user", "content": "雪"}], "stream": stream}
    engine.step.release()
    if stream:
        with httpx.Client().stream("POST", url + CHAT, json=body) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + CHAT, json=body, timeout=0.3)
    assert server.wait_until(lambda: engine.handles and engine.handles[0].cancelled.is_set())
    assert server.wait_until(lambda: not service.running)


def test_body_cut_short_is_no_crash(slow):
    import socket

    import httpx

    _, _, url = slow
    port = int(url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as sock:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())
    assert httpx.get(url + "/v1/models").status_code == 200


def test_pieces_arrive_as_they_are_written(slow):
    engine, _, url = slow
    with _post(url, stream=True) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)  # 开头的 role
        engine.step.release()
        chunk = json.loads(next(lines)[6:])
        assert chunk["choices"][0]["delta"]["content"] == "雪，"


def test_official_client(tmp_path):
    openai = pytest.importorskip("openai", reason="没有安装 openai")
    pytest.importorskip("uvicorn", reason="没有安装 uvicorn")
    service = server.service(FakeEngine(), tmp_path, limit=4, key="sk-x")
    with server.running(service) as url:
        client = openai.OpenAI(base_url=url + "/v1", api_key="sk-x", max_retries=0)
        model = client.models.list().data[0].id
        messages = [{"role": "user", "content": "雪"}]
        whole = client.chat.completions.create(
            model=model, messages=messages, seed=3, n=2, extra_body={"lines": 4}
        )
        assert [c.message.content for c in whole.choices] == [poem("雪", 3), poem("雪", 4)]
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12
        chunks = list(
            client.chat.completions.create(
                model=model,
                messages=messages,
                seed=3,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == poem("雪", 3) and chunks[-1].usage.completion_tokens == 6
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(model=model, messages=messages, temperature=5)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-4")
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model=model, messages=messages, n=5)
        with pytest.raises(openai.APIError):
            broken = [{"role": "user", "content": "坏掉"}]
            list(client.chat.completions.create(model=model, messages=broken, stream=True))
        wrong = openai.OpenAI(base_url=url + "/v1", api_key="sk-y", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()


# ── 真的引擎（随机权重的小模型）───────────────────────────────────────


@pytest.fixture(scope="module")
def poet(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="没有安装 tokenizers")
    from tests import tiny_model
    from writing import engine

    path = tmp_path_factory.mktemp("model") / "tiny.bin"
    tiny_model.save(path)
    return engine.Poet.load(str(path), str(path.parent), "cpu")


@pytest.fixture()
def real(poet, tmp_path):
    pytest.importorskip("uvicorn", reason="没有安装 uvicorn")
    from writing import engine

    service = server.service(engine.Engine(poet, max_rows=4), tmp_path, limit=64)
    with server.running(service) as url:
        yield service, url


def alone(poet, question, **options):
    """不经服务器、单独写的同一首诗。"""
    request = poet.request(question, **{**server.DEFAULTS, **options})
    return "".join(text for _, text, _ in poet.poems(request))


def test_many_clients_get_their_own_poems(poet, real):
    import httpx

    def one(number):
        question = f"第{number}个题目"
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 24}
        body.update(seed=number, stream=number % 2 == 0)
        response = httpx.post(real[1] + CHAT, json=body, timeout=60)
        if not body["stream"]:
            return response.json()["choices"][0]["message"]["content"]
        return "".join(c["choices"][0]["delta"].get("content", "") for c in events(response))

    with ThreadPoolExecutor(12) as pool:
        texts = list(pool.map(one, range(24)))
    wanted = [alone(poet, f"第{k}个题目", seed=k, max_new_tokens=24) for k in range(24)]
    assert texts == wanted
    assert len(set(wanted)) > 12


def test_real_controls_usage_and_errors(poet, real):
    import httpx

    def post(**fields):
        body = {"messages": [{"role": "user", "content": "春天"}], "seed": 1, **fields}
        return httpx.post(real[1] + CHAT, json=body, timeout=60)

    answer = post(acrostic="春夏秋", max_tokens=90).json()
    lines = [line for line in answer["choices"][0]["message"]["content"].split("\n") if line]
    assert [line[0] for line in lines] == list("春夏秋")
    assert answer["usage"]["prompt_tokens"] == len(poet.request("春天", acrostic="春夏秋").prompt)
    short = post(max_tokens=5, temperature=0).json()
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 5
    for wrong in ({"acrostic": "春 夏"}, {"rhyme": "？"}, {"lines": 50, "max_tokens": 5}):
        assert post(**wrong).status_code == 400
    too_long = post(messages=[{"role": "user", "content": "长" * 500}])
    assert too_long.status_code == 400 and "上下文" in too_long.json()["error"]["message"]


def test_real_rewriting_and_titles(poet, real):
    import httpx

    body = {"title": "四季", "poem": POEM, "line": 3, "seed": 5, "n": 2, "min_p": 0.03}
    answers = [httpx.post(real[1] + REWRITE, json=body, timeout=60).json() for _ in range(2)]
    assert answers[0] == answers[1]  # 同一个种子，同一行
    new = answers[0]["text"]
    assert answers[0]["poem"] == POEM.replace("夏天的雨", new) and new not in POEM
    refused = httpx.post(real[1] + REWRITE, json={**body, "line": 9}, timeout=60)
    assert refused.status_code == 400 and "没有第 9 行" in refused.json()["error"]["message"]
    titles = httpx.post(real[1] + TITLES, json={"poem": POEM, "n": 2}, timeout=60).json()["titles"]
    assert titles and all(title in POEM for title in titles)


def test_hanging_up_frees_the_real_engine(real):
    import httpx

    service, url = real
    body = {"messages": [{"role": "user", "content": "春天"}], "stream": True, "n": 4}
    with httpx.Client().stream("POST", url + CHAT, json=body) as response:
        next(response.iter_lines())
    assert server.wait_until(lambda: not service.running)
