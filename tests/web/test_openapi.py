"""接口自己的说明书：写着的地址都在，各选项的范围与真的读请求时一样。"""

from __future__ import annotations

import json

import pytest

from poems import options
from tests import server
from tests.fake_engine import FakeEngine
from web import app, chat_api, openapi

MANUAL = openapi.document()
CHAT = MANUAL["paths"]["/v1/chat/completions"]["post"]
FIELDS = CHAT["requestBody"]["content"]["application/json"]["schema"]["properties"]
OPTIONS = (*options.SAMPLING, *options.CONTROLS)
NUMBERS = [option for option in OPTIONS if option.kind in (int, float)]
TEXTS = [option for option in OPTIONS if option.kind is str]


def parse(**fields):
    asked = {"messages": [{"role": "user", "content": "春天"}], **fields}
    return chat_api.parse(json.dumps(asked).encode("utf-8"))


def kinds(name):
    """一个字段可以是的几种样子。"""
    return FIELDS[name]["anyOf"]


def test_every_option_is_there_with_its_aliases():
    for option in OPTIONS:
        assert {option.name, *option.aliases} <= set(FIELDS)
        assert option.note in FIELDS[option.name]["description"]


@pytest.mark.parametrize("option", NUMBERS, ids=lambda option: option.name)
def test_number_ranges_are_those_of_requests(option):
    low, high = kinds(option.name)[0]["minimum"], kinds(option.name)[0]["maximum"]
    for value in (low, high):
        assert option.name in parse(**{option.name: value}).options
    for value in (low - 3, 2 * high + 1):
        with pytest.raises(chat_api.ApiError):
            parse(**{option.name: value})
    assert ({"const": -1} in kinds(option.name)) == (option.name in chat_api.MINUS_ONE)


@pytest.mark.parametrize("option", TEXTS, ids=lambda option: option.name)
def test_text_limits_are_those_of_requests(option):
    shown = kinds(option.name)[0]
    right = shown.get("enum", ["诗" * shown.get("maxLength", 0)])
    for value in right:
        parse(**{option.name: value})
    with pytest.raises(chat_api.ApiError):
        parse(**{option.name: "诗" * (len(max(right, key=len)) + 1)})


def test_every_address_in_it_answers(tmp_path):
    pytest.importorskip("starlette", reason="没有安装 starlette")
    pytest.importorskip("httpx", reason="没有安装 httpx")
    from starlette.testclient import TestClient

    guarded = app.make_app(server.service(FakeEngine(), tmp_path))
    with TestClient(guarded, base_url="http://127.0.0.1") as client:
        assert client.get("/openapi.json").json() == MANUAL
        for path, operations in MANUAL["paths"].items():
            for method in {"get", "post"} & set(operations):
                answer = client.request(method, path, json={})
                assert str(answer.status_code) in operations[method]["responses"], path
                assert answer.headers["content-type"] == "application/json"
            other = client.request("delete", path)
            assert other.status_code == 405
            assert {word.lower() for word in other.headers["allow"].split(", ")} >= (
                {"get", "post"} & set(operations)
            )
