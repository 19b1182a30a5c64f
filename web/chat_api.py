"""OpenAI 形状的聊天接口：请求怎样读、回答怎样写。只处理数据，不碰网络与模型。

每个问题单独成诗：取最后一条 user 消息为题，其余消息不读。
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field

from poems import options
from poems.options import Option
from writing import rhyme

MODEL_ID = "base-gpt-modern-poem"
MAX_QUESTION = 8000  # 题目最多多少字；再长的请求不必交给分词器
MAX_STOPS = 64
MAX_STOP_CHARS = 256


class ApiError(Exception):
    """要作为 OpenAI 形状的错误返回的问题；message 会原样给客户端看，不得含路径。"""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


def error_body(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict:
    """OpenAI 的错误对象。"""
    kinds = {429: "rate_limit_error", 401: "authentication_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def to_json(data: object) -> bytes:
    """JSON 的 UTF-8 字节；< > & 一律转义，即使被当成 HTML 也只是文字。"""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "replace")  # 落单的代理字符变成 ?


# ── 请求 ──────────────────────────────────────────────────────────────


@dataclass
class Ask:
    """读好的请求。options 是 chat() 的选项名 → 值，只含客户端给了的。"""

    question: str
    options: dict = field(default_factory=dict)
    n: int = 1
    model: str = MODEL_ID
    stops: tuple = ()
    stream: bool = False
    include_usage: bool = False


# 做不到的参数：给了起作用的值就明说，而不是装作照办
_UNSUPPORTED = {
    "logprobs": "逐词概率",
    "logit_bias": "词的偏置",
    "audio": "音频",
}
_TOKEN_LIMIT = 4096  # 更大的 max_tokens 按此值；上下文长度另有限制
MINUS_ONE = {"max_new_tokens": _TOKEN_LIMIT, "top_k": 0, "seed": None}  # -1：不限，或每次不同


def parse(raw: bytes) -> Ask:
    """请求体 → Ask；不合规矩时 ApiError 说清是哪个字段。"""
    body = read_json(raw)
    _check_supported(body)
    ask = Ask(question=last_question(body.get("messages")))
    ask.stream = _flag(body, "stream")
    ask.n = number_in(body, "n", options.BY_NAME["n"]) or 1
    ask.stops = _stops(body.get("stop"))
    stream_options = body.get("stream_options")
    if stream_options is not None:
        if not isinstance(stream_options, dict) or not ask.stream:
            raise wrong("stream_options", "只在 stream=true 时可用，应当是对象")
        ask.include_usage = _flag(stream_options, "include_usage")
    ask.options = options_in(body)
    ask.model = text_in(body, "model", 0) or MODEL_ID
    return ask


def no_model(name: str, known: list) -> ApiError:
    """没有这个模型。"""
    message = f"没有名为 {name[:80]!r} 的模型；可用的是 {'、'.join(known)}"
    return ApiError(404, message, "model_not_found", "model")


def last_question(messages: object) -> str:
    """最后一条 user 消息的文字。"""
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "应当是非空的数组")
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise wrong(f"messages[{index}]", "应当是带 role 与 content 的对象")
        if message["role"] == "user":
            question = _content(message.get("content"), f"messages[{index}].content").strip()
            if len(question) > MAX_QUESTION:
                message = f"题目有 {len(question)} 字，最多 {MAX_QUESTION} 字"
                raise ApiError(400, message, "context_length_exceeded", "messages")
            return question
    raise wrong("messages", "里面没有 role 为 user 的消息")


def read_json(raw: bytes) -> dict:
    try:
        body = json.loads(raw.decode("utf-8-sig"))  # 有的客户端在前面带 BOM
    except (ValueError, RecursionError):
        raise ApiError(400, "请求体不是合法的 UTF-8 JSON", "invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "请求体应当是一个 JSON 对象", "invalid_json")
    return body


def _check_supported(body: dict) -> None:
    for name, label in _UNSUPPORTED.items():
        if body.get(name):
            raise ApiError(400, f"这个模型不支持{label}", "unsupported_parameter", name)
    for name in ("tool_choice", "function_call"):  # 工具可以带着，不可以非用不可
        if body.get(name) not in (None, "none", "auto"):
            problem = f"这个模型不会调用工具；{name} 请写 none 或 auto"
            raise ApiError(400, problem, "unsupported_parameter", name)
    style = body.get("response_format")
    if style is not None and (not isinstance(style, dict) or style.get("type") != "text"):
        raise ApiError(400, "只能写成文字", "unsupported_parameter", "response_format")


def options_in(body: dict) -> dict:
    """表里的抽样选项与控制项，只含给了的；名字按表，也认 OpenAI 的别名。"""
    given = {}
    for option in (*options.SAMPLING, *options.CONTROLS):
        found = {name: _value(body, name, option) for name in (option.name, *option.aliases)}
        found = {name: value for name, value in found.items() if value is not None}
        if len(set(found.values())) > 1:
            raise wrong(" 与 ".join(found), "是同一项，给了不同的值")
        for value in found.values():
            given[option.name] = value
    if "seed" in given:
        given["seed"] %= 1 << 62
    if "top_p" in given:  # OpenAI 允许 0：只留概率最大的词
        given["top_p"] = max(given["top_p"], 1e-6)
    if "max_new_tokens" in given:
        given["max_new_tokens"] = min(given["max_new_tokens"], _TOKEN_LIMIT)
    return given


def _value(body: dict, name: str, option: Option) -> object:
    """一个选项的值；没有给时为 None。"""
    if option.kind is bool:
        return None if body.get(name) is None else _flag(body, name)
    if option.kind is not str:
        return number_in(body, name, option)
    if option.switch and isinstance(body.get(name), bool):
        return body[name] or None
    text = text_in(body, name, option.high)
    if text and option.choices and text not in option.choices:
        raise wrong(name, f"应当是 {' 或 '.join(option.choices)}")
    return text or None


def number_in(body: dict, name: str, option: Option) -> float | None:
    value, kind = body.get(name), option.kind
    if option.name in MINUS_ONE and value == -1:
        value = MINUS_ONE[option.name]
    if value is None:
        return None
    right = isinstance(value, int) or (
        isinstance(value, float) and (kind is float or value.is_integer())
    )
    if isinstance(value, bool) or not right:
        raise wrong(name, "应当是整数" if kind is int else "应当是数")
    low, high = options.bounds(option)
    if not low <= value <= high:  # NaN 也在这里被挡住
        raise wrong(name, f"应当在 {low} 与 {high} 之间")
    return kind(value)


def text_in(body: dict, name: str, limit: int) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise wrong(name, "应当是字符串")
    if limit and len(value) > limit:
        raise wrong(name, f"最多 {limit} 字")
    return value.strip()


def _flag(body: dict, name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong(name, "应当是 true 或 false")
    return value


def _stops(value: object) -> tuple:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise wrong("stop", f"应当是字符串，或至多 {MAX_STOPS} 个字符串的数组")
    for stop in stops:
        if not isinstance(stop, str) or len(stop) > MAX_STOP_CHARS:
            raise wrong("stop", f"每个停止串应当是至多 {MAX_STOP_CHARS} 字的字符串")
    return tuple(stop for stop in stops if stop)  # 空的不起作用


def _content(content: object, name: str) -> str:
    """消息的文字：字符串，或几段 {"type": "text", "text": …}，一段一行。"""
    parts = content if isinstance(content, list) else [content]
    texts = [
        part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        for part in parts
    ]
    if not all(isinstance(text, str) for text in texts):
        raise wrong(name, "应当是文字（图片、声音、文件都读不了）")
    return "\n".join(texts)


def wrong(name: str, problem: str) -> ApiError:
    return ApiError(400, f"{name} {problem}", "invalid_value", name)


# ── 网页的选项 ────────────────────────────────────────────────────────

_SAFE = (1 << 53) - 1  # JavaScript 能准确表示的最大整数


def page_options() -> list:
    """页面照着画的选项：各是什么、范围、说明，来自 poems/options.py 的表。"""
    return [_page_option(option) for option in (*options.CONTROLS, *options.SAMPLING)]


def page_styles(defaults: dict) -> list:
    """笔意：各改哪些选项。"""
    usual = defaults.get("temperature", options.BY_NAME["temperature"].neutral)
    return [
        {"label": label, "options": {} if times == 1 else {"temperature": round(usual * times, 2)}}
        for label, times in options.STYLES
    ]


def _page_option(option: Option) -> dict:
    shown = {
        "name": option.name,
        "label": option.label,
        "note": option.note,
        "kind": {float: "number", int: "integer", str: "text", bool: "choice"}[option.kind],
        "common": option.common,
        "blank": option.blank,
        "brief": option.brief or f"{option.label} {{}}",
        "prompt": option.prompt,
        "control": option.stage == options.CONTROL,
        "neutral": option.neutral,
        "slider": option.slider,
        "switch": option.switch or ("是" if option.kind is bool else ""),
    }
    names = rhyme.NAMES if option.name == "rhyme" else option.choices
    if names:
        shown.update(kind="choice", choices=names)
    elif option.kind is str:
        shown.update(most=option.high)
    elif option.kind is not bool:
        low, high = options.bounds(option)
        shown.update(low=max(low, option.low), high=min(high, _SAFE))
    return shown


# ── 停止串 ────────────────────────────────────────────────────────────


class StopFilter:
    """在陆续到来的文字里找停止串；可能是停止串开头的尾巴先扣着不发。

    >>> stop = StopFilter(("月亮",)); stop.feed("看月"), stop.feed("光"), stop.feed("月亮很")
    ('看', '月光', '')
    >>> stop.hit
    True
    """

    def __init__(self, stops: tuple) -> None:
        self.stops = stops
        self.held = ""
        self.hit = False

    def feed(self, piece: str) -> str:
        """可以发出去的文字。"""
        if self.hit:
            return ""
        text = self.held + piece
        found = [position for position in map(text.find, self.stops) if position >= 0]
        if found:
            self.hit, self.held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """生成结束后剩下的文字。"""
        text, self.held = self.held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """text 的结尾有多长恰是 stop 的开头。"""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


# ── 回答：唯一写出回答的地方 ──────────────────────────────────────────


class Reply:
    """一次回答的各种形状：整个的，或一块一块的。"""

    def __init__(self, model: str, include_usage: bool = False) -> None:
        self.head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self.include_usage = include_usage

    def whole(self, poems: list, usage: dict) -> dict:
        """poems: [(文字, finish_reason), …]"""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(poems)
        ]
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": usage}

    def opening(self, index: int) -> dict:
        return self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, text: str) -> dict:
        return self._chunk(index, {"content": text})

    def closing(self, index: int, reason: str) -> dict:
        return self._chunk(index, {}, reason)

    def totals(self, usage: dict) -> dict:
        """流的最后一块：没有文字，只有用量。"""
        return {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _chunk(self, index: int, delta: dict, reason: str | None = None) -> dict:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk = {**self.head, "object": "chat.completion.chunk", "choices": [choice]}
        return {**chunk, "usage": None} if self.include_usage else chunk


def usage(prompt_tokens: int, completion_tokens: int) -> dict:
    """用量；同一题目的几个候选只算一次题目。"""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def model_card(name: str, created: int) -> dict:
    return {"id": name, "object": "model", "created": created, "owned_by": "local"}
