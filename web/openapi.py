"""接口自己的说明书（OpenAPI 3.1），在 /openapi.json：由选项的表写出，与 chat_api 认的一样。"""

from __future__ import annotations

from typing import Any, Dict

from poems import options
from poems.options import Option
from web import chat_api, poem_api

Schema = Dict[str, Any]

_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_POEM: Schema = {**_TEXT, "minLength": 1, "maxLength": poem_api.MAX_POEM, "pattern": r"\S"}
_PROBLEMS = {  # 状态 → 说法；每个地址都可能有的在 _ALWAYS
    400: "请求不合规矩，param 是哪个字段",
    401: "密钥不对或没有给",
    403: "没有密钥时只认本机的名字",
    404: "没有这个模型",
    408: "请求体来得太慢",
    413: "请求体太大",
    415: "Content-Type 应当是 application/json",
    429: "位置满了，过一会儿再来",
    503: "还没有可用的模型，或正在停止",
}
_ALWAYS = (401, 403)
_ASKING = (400, 404, 408, 413, 415, 429, 503)


def document() -> Schema:
    """整份说明书。"""
    chat = _answers(_COMPLETION, _ASKING)
    chat["200"]["content"]["text/event-stream"] = {"schema": _TEXT}  # stream=true
    name = {"name": "name", "in": "path", "required": True, "schema": {**_TEXT, "minLength": 1}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "写现代诗的 GPT", "version": "1"},
        "paths": {
            "/health": {"get": _operation("能写诗了吗", _answers(_STATUS, (), also=503))},
            "/info": {"get": _operation("网页要知道的", _answers({"type": "object"}))},
            "/train.json": {"get": _operation("训练的进展", _answers({"type": "object"}))},
            "/v1/models": {"get": _operation("可用的模型", _answers(_MODELS))},
            "/v1/models/{name}": {
                "parameters": [name],
                "get": _operation("一个模型", _answers(_MODEL, (404,))),
            },
            "/v1/chat/completions": {"post": _operation("写诗", chat, _CHAT)},
            "/v1/poems/rewrite": {
                "post": _operation("改一行", _answers(_REWRITTEN, _ASKING), _REWRITE)
            },
            "/v1/poems/titles": {"post": _operation("起题目", _answers(_TITLES, _ASKING), _TITLE)},
        },
    }


def _operation(summary: str, answers: Schema, body: Schema | None = None) -> Schema:
    found = {"summary": summary, "responses": answers}
    if body:
        found["requestBody"] = {"required": True, "content": _content(body)}
    return found


def _answers(schema: Schema, problems: tuple[int, ...] = (), also: int = 0) -> Schema:
    """200 与会有的各种错误；also：这个状态的样子与 200 的一样。"""
    found = {"200": {"description": "好", "content": _content(schema)}}
    for status in sorted((*_ALWAYS, *problems)):
        found[str(status)] = {"description": _PROBLEMS[status], "content": _content(_ERROR)}
    if also:
        found[str(also)] = {"description": _PROBLEMS[also], "content": _content(schema)}
    return found


def _content(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _object(required: str, **properties: Schema) -> Schema:
    return {"type": "object", "required": required.split(), "properties": properties}


def _whole(**properties: Schema) -> Schema:
    """各项都有的一个对象。"""
    return _object(" ".join(properties), **properties)


def _or_null(*choices: Schema) -> Schema:
    return {"anyOf": [*choices, {"type": "null"}]}


# ── 选项的表 → 请求的样子 ─────────────────────────────────────────────


def option_schema(option: Option) -> Schema:
    """一个选项可以是什么。"""
    found = [_value_schema(option)]
    if option.switch:
        found.append({"type": "boolean"})
    if option.name in chat_api.MINUS_ONE:
        found.append({"const": -1})
    return {**_or_null(*found), "description": f"{option.label}；{option.note}"}


def _value_schema(option: Option) -> Schema:
    if option.choices:
        return {"enum": [*option.choices, ""]}  # 空的就是没有给
    if option.kind is bool:
        return {"type": "boolean"}
    if option.kind is str:
        return {**_TEXT, "maxLength": option.high}
    low, high = options.bounds(option)
    return {"type": "integer" if option.kind is int else "number", "minimum": low, "maximum": high}


def _options_schema() -> dict[str, Schema]:
    """各选项，连同别名。"""
    return {
        name: option_schema(option)
        for option in (*options.SAMPLING, *options.CONTROLS)
        for name in (option.name, *option.aliases)
    }


_PART = _whole(type={"const": "text"}, text=_TEXT)
_SAID: Schema = {"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": [_TEXT, _PART]}}]}
_STOP: Schema = {**_TEXT, "maxLength": chat_api.MAX_STOP_CHARS}
_STOPS: Schema = {"type": "array", "items": _STOP, "maxItems": chat_api.MAX_STOPS}
_FLAG = _or_null({"type": "boolean"})
_NAME = _or_null(_TEXT)
_COUNT = option_schema(options.BY_NAME["n"])
_CHAT = _object(
    "messages",
    messages={
        "type": "array",
        "items": _object("role", role=_TEXT, content={}),
        "contains": _object("role content", role={"const": "user"}, content=_SAID),
        "description": "只读最后一条 user 的文字",
    },
    model=_NAME,
    stream=_FLAG,
    stop=_or_null(_STOP, _STOPS),
    n=_COUNT,
    **_options_schema(),
)
_TITLE = _object("poem", poem=_POEM, n=_COUNT, model=_NAME)
_REWRITE = _object(
    "poem line",
    poem=_POEM,
    line={**_WHOLE, "minimum": 1, "description": "第几行，从 1 数，空行不算"},
    title=_or_null({**_TEXT, "maxLength": chat_api.MAX_QUESTION}),
    n=_COUNT,
    model=_NAME,
    **_options_schema(),
)

# ── 回答的样子 ────────────────────────────────────────────────────────

_PROBLEM = _whole(message=_TEXT, type=_TEXT, param=_NAME, code=_NAME)
_ERROR = _whole(error=_PROBLEM)
_STATUS = _whole(status={"enum": ["ok", "loading", "stopping"]})
_MODEL = _whole(id=_TEXT, object={"const": "model"}, created=_WHOLE, owned_by=_TEXT)
_MODELS = _whole(object={"const": "list"}, data={"type": "array", "items": _MODEL})
_MESSAGE = _whole(role={"const": "assistant"}, content=_TEXT)
_CHOICE = _whole(index=_WHOLE, message=_MESSAGE, finish_reason=_TEXT)
_USAGE = _whole(prompt_tokens=_WHOLE, completion_tokens=_WHOLE, total_tokens=_WHOLE)
_COMPLETION = _whole(
    id=_TEXT,
    object={"const": "chat.completion"},
    created=_WHOLE,
    model=_TEXT,
    choices={"type": "array", "items": _CHOICE},
    usage=_USAGE,
)
_REWRITTEN = _whole(poem=_TEXT, line=_WHOLE, text=_TEXT)
_TITLES = _whole(titles={"type": "array", "items": _TEXT})
