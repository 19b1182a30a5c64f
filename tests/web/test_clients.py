"""各种客户端照它们的习惯来问：CORS、主机名、多写的斜线、BOM、别名、用不着的字段。"""

from __future__ import annotations

import asyncio
import json

import pytest

from support.console import UserError
from tests.fake_engine import FakeEngine, poem
from web import app, chat_api, cors

pytest.importorskip("starlette", reason="没有安装 starlette")
pytest.importorskip("httpx", reason="没有安装 httpx")

from starlette.testclient import TestClient

from tests import server

CHAT = "/v1/chat/completions"
LOBE = "http://localhost:3000"


@pytest.fixture()
def engine():
    return FakeEngine()


def opened(engine, folder, key="", base="http://127.0.0.1", **doors):
    guarded = app.make_app(server.service(engine, folder, key=key), app.Doors(**doors))
    return TestClient(guarded, base_url=base, raise_server_exceptions=False)


@pytest.fixture()
def client(engine, tmp_path):
    return opened(engine, tmp_path)


def ask(client, headers=None, **fields):
    body = {"messages": [{"role": "user", "content": "春天"}], **fields}
    return client.post(CHAT, json=body, headers=headers)


def parsed(**fields):
    body = {"messages": [{"role": "user", "content": "春天"}], **fields}
    return chat_api.parse(json.dumps(body).encode())


# ── 请求体 ────────────────────────────────────────────────────────────


def test_byte_order_mark_and_extra_slashes(client):
    body = json.dumps({"messages": [{"role": "user", "content": "雪"}], "seed": 2}).encode()
    headers = {"Content-Type": "application/json; charset=utf-8"}
    for path in (CHAT, CHAT + "/", "/" + CHAT):
        url = "http://127.0.0.1" + path  # 只写路径时，// 开头会被当成主机名
        response = client.post(url, content=b"\xef\xbb\xbf" + body, headers=headers)
        assert response.json()["choices"][0]["message"]["content"] == poem("雪", 2)
    for path in ("/v1/models/", "//v1/models", f"/v1/models/{chat_api.MODEL_ID}/", "/health/"):
        assert client.get("http://127.0.0.1" + path, follow_redirects=False).status_code == 200
    assert client.get("/train/").headers["content-type"].startswith("text/html")


def test_many_and_empty_stops(client):
    stops = ["\n\n", "User:", "用户：", "###", "<|end|>", "", *(f"{n}:" for n in range(40))]
    whole = ask(client, stop=stops).json()["choices"][0]["message"]["content"]
    assert whole == poem("春天").split("\n\n")[0]
    assert ask(client, stop="").json()["choices"][0]["message"]["content"] == poem("春天")
    assert parsed(stop=["", "a"]).stops == ("a",)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"repeat_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"rep_pen": 1.2, "repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"presence_penalty": 0.6, "frequency_penalty": 0}, {"presence_penalty": 0.6}),
        ({"max_tokens": -1, "top_k": -1, "seed": -1}, {"max_new_tokens": 4096, "top_k": 0}),
        ({"n_predict": 9}, {"max_new_tokens": 9}),
        ({"max_tokens": 9, "max_completion_tokens": 9.0}, {"max_new_tokens": 9}),
        ({"min_tokens": 3, "no_repeat_ngram_size": 2}, {"min_new_tokens": 3, "no_repeat_ngram": 2}),
        ({"seed": -7}, {"seed": (1 << 62) - 7}),
    ],
)
def test_spellings_of_other_clients(fields, expected):
    found = parsed(**fields).options
    assert {name: value for name, value in found.items() if value} == {
        name: value for name, value in expected.items() if value
    }
    assert found.keys() >= expected.keys()


def test_tools_may_be_offered_but_not_required(client):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for fields in ({}, {"tool_choice": "none"}, {"tool_choice": "auto"}, {"functions": [tool]}):
        answer = ask(client, tools=[tool], parallel_tool_calls=True, **fields).json()
        assert answer["choices"][0]["message"]["content"] == poem("春天")
    assert ask(client, tool_choice="none").status_code == 200
    refused = ask(client, tools=[tool], tool_choice="required").json()["error"]
    assert refused["param"] == "tool_choice" and "auto" in refused["message"]


def test_content_parts():
    parts = [{"type": "text", "text": "春"}, {"type": "text", "text": "天"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert chat_api.last_question(messages) == "春\n天"
    image = [*parts, {"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(chat_api.ApiError, match="图片"):
        chat_api.last_question([{"role": "user", "content": image}])


# ── 谁能进来 ──────────────────────────────────────────────────────────


def test_health_needs_neither_key_nor_name(engine, tmp_path):
    guarded = opened(engine, tmp_path, key="sk-x", base="http://docker.example")
    assert guarded.get("/health").json() == {"status": "ok"}
    assert guarded.head("/health").status_code == 200


def test_allowed_host_names(engine, tmp_path):
    client = opened(engine, tmp_path, names=frozenset({"Host.Docker.Internal"}))
    for host in ("host.docker.internal:8000", "HOST.docker.internal.", "localhost"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    for host in ("docker.internal", "x.host.docker.internal", "host.docker.internal:x", ""):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 403


def preflight(client, origin, **headers):
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", **headers}
    return client.options(CHAT, headers=asked)


def granted(response):
    return [name for name in response.headers if name.startswith("access-control-")]


def test_cors_is_off_by_default(client):
    assert not granted(preflight(client, LOBE))
    assert not granted(ask(client, headers={"Origin": LOBE}))


def test_preflight_needs_no_key(engine, tmp_path):
    client = opened(engine, tmp_path, key="sk-x", origins=cors.origins(LOBE + "/", "sk-x"))
    wanted = "authorization,content-type,x-stainless-os"
    answer = preflight(client, LOBE, **{"Access-Control-Request-Headers": wanted})
    assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == LOBE
    assert answer.headers["access-control-allow-headers"] == wanted
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in answer.headers
    local = preflight(client, LOBE, **{"Access-Control-Request-Private-Network": "true"})
    assert local.headers["access-control-allow-private-network"] == "true"
    for other in ("http://localhost:3001", "https://localhost:3000", "http://evil.example", "null"):
        assert not granted(preflight(client, other))


def test_shared_headers_on_answers_streams_and_errors(engine, tmp_path):
    client = opened(engine, tmp_path, key="sk-x", origins=frozenset({LOBE}))
    right = {"Origin": LOBE, "Authorization": "Bearer sk-x"}
    answers = {
        200: [ask(client, right), ask(client, right, stream=True)],
        400: [ask(client, right, temperature=9)],
        401: [ask(client, {"Origin": LOBE})],
        404: [client.get("/v1/x", headers=right)],
        500: [
            client.post(
                CHAT, json={"messages": [{"role": "user", "content": "坏掉"}]}, headers=right
            )
        ],
    }
    for status, responses in answers.items():
        for response in responses:
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == LOBE
            assert "Origin" in response.headers["vary"]
    assert not granted(client.get("/v1/models", headers={**right, "Origin": "http://evil.example"}))


def test_origins_are_checked_at_the_start():
    found = cors.origins(" http://localhost:3000/ ,https://A.example,null,", "")
    assert found == {"http://localhost:3000", "https://a.example", "null"}
    for wrong in ("localhost:3000", "http://a.example/page", "http://a b"):
        with pytest.raises(UserError, match="http://localhost:3000"):
            cors.origins(wrong, "")
    with pytest.raises(UserError, match="API_KEY"):
        cors.origins("*", "")
    assert cors.origins("*", "sk-x") == {"*"}


# ── 官方与常用的库，对真的引擎 ────────────────────────────────────────


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """随机权重的小模型，跑在真的 uvicorn 上：(Poet, 接口的地址)。"""
    pytest.importorskip("uvicorn", reason="没有安装 uvicorn")
    from tests import tiny_model
    from writing import engine

    folder = tmp_path_factory.mktemp("model")
    tiny_model.save(folder / "tiny.bin")
    poet = engine.Poet.load(str(folder / "tiny.bin"), str(folder), "cpu")
    service = server.service(engine.Engine(poet, max_rows=4), folder, key="sk-x")
    with server.running(service) as url:
        yield poet, url + "/v1/"


def alone(poet, question, **given):
    """不经服务器、单独写的同一首诗。"""
    request = poet.request(question, **{**server.DEFAULTS, **given})
    return "".join(text for _, text, _ in poet.poems(request))


def test_openai_client(running):
    openai = pytest.importorskip("openai", reason="没有安装 openai")
    poet, url = running
    client = openai.OpenAI(base_url=url, api_key="sk-x", max_retries=0)
    assert next(iter(client.models.list())).id == chat_api.MODEL_ID
    chosen = {"presence_penalty": 1.5, "frequency_penalty": 0.7, "seed": 4}
    common = {"model": chat_api.MODEL_ID, "messages": [{"role": "user", "content": "春天"}]}
    create = client.chat.completions.create
    text = create(**common, **chosen, max_tokens=30).choices[0].message.content
    assert text == alone(poet, "春天", **chosen, max_new_tokens=30)
    assert text != alone(poet, "春天", seed=4, max_new_tokens=30)
    stream = create(**common, **chosen, max_completion_tokens=30, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    with pytest.raises(openai.BadRequestError, match="presence_penalty"):
        create(**common, presence_penalty=3)
    with pytest.raises(openai.NotFoundError, match=chat_api.MODEL_ID):
        create(**{**common, "model": "gpt-4"})
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="sk-y", max_retries=0).models.list()


def test_langchain(running):
    langchain = pytest.importorskip("langchain_openai", reason="没有安装 langchain-openai")
    openai = pytest.importorskip("openai", reason="没有安装 openai")
    poet, url = running
    common = {"base_url": url, "api_key": "sk-x", "seed": 5, "max_tokens": 20, "max_retries": 0}
    model = langchain.ChatOpenAI(model=chat_api.MODEL_ID, **common)
    expected = alone(poet, "春天", seed=5, max_new_tokens=20)
    assert model.invoke("春天").content == expected
    assert "".join(chunk.content for chunk in model.stream("春天")) == expected
    poem = model.bind(extra_body={"lines": 2}).invoke([("system", "写诗"), ("user", "春天")])
    assert poem.content == alone(poet, "春天", seed=5, max_new_tokens=20, lines=2)
    assert poem.usage_metadata["output_tokens"] > 0
    assert model.batch(["雪", "春天"])[1].content == expected
    assert asyncio.run(model.ainvoke("春天")).content == expected
    with pytest.raises(openai.BadRequestError, match="temperature"):
        langchain.ChatOpenAI(model=chat_api.MODEL_ID, temperature=9, **common).invoke("春天")
    with pytest.raises(openai.NotFoundError, match=chat_api.MODEL_ID):
        langchain.ChatOpenAI(model="gpt-4", **common).invoke("春天")


def test_llama_index(running):
    like = pytest.importorskip(
        "llama_index.llms.openai_like", reason="没有安装 llama-index-llms-openai-like"
    )
    openai = pytest.importorskip("openai", reason="没有安装 openai")
    from llama_index.core.llms import ChatMessage

    poet, url = running
    common = {"api_base": url, "api_key": "sk-x", "is_chat_model": True, "max_retries": 0}
    model = like.OpenAILike(
        model=chat_api.MODEL_ID,
        max_tokens=20,
        temperature=0.7,
        additional_kwargs={"seed": 5},
        **common,
    )
    expected = alone(poet, "春天", seed=5, max_new_tokens=20, temperature=0.7)
    asked = [ChatMessage(role="user", content="春天")]
    assert model.complete("春天").text == model.chat(asked).message.content == expected
    assert "".join(piece.delta or "" for piece in model.stream_chat(asked)) == expected
    with pytest.raises(openai.NotFoundError, match=chat_api.MODEL_ID):
        like.OpenAILike(model="gpt-4", **common).complete("春天")


def test_litellm(running, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # 否则一导入就去网上取价目
    litellm = pytest.importorskip("litellm", reason="没有安装 litellm")
    poet, url = running
    asked = {"messages": [{"role": "user", "content": "春天"}], "seed": 6, "max_tokens": 20}
    common = {"model": f"openai/{chat_api.MODEL_ID}", "api_base": url, "api_key": "sk-x"}
    common = {**common, **asked, "max_retries": 0}
    answer = litellm.completion(**common)
    expected = alone(poet, "春天", seed=6, max_new_tokens=20)
    assert answer.choices[0].message.content == expected
    assert answer.usage.completion_tokens > 0
    stream = litellm.completion(**common, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected
    assert asyncio.run(litellm.acompletion(**common)).choices[0].message.content == expected
    lines = litellm.completion(**common, extra_body={"lines": 2}).choices[0].message.content
    assert lines == alone(poet, "春天", seed=6, max_new_tokens=20, lines=2)
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**common, temperature=9)
    with pytest.raises(litellm.NotFoundError, match=chat_api.MODEL_ID):
        litellm.completion(**{**common, "model": "openai/gpt-4"})
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**common, "api_key": "sk-y"})
