"""改一行、起题目的接口：请求怎样读、回答怎样写。与 chat_api 一样只处理数据。"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from poems import options
from web import chat_api

MAX_POEM = 20000  # 诗最多多少字；再长的请求不必交给分词器


@dataclass
class Naming:
    """给一首诗起题目。"""

    poem: str
    n: int = 5
    model: str = chat_api.MODEL_ID

    def apply(self, engine: Any) -> list:
        return engine.titles(self.poem, self.n)


@dataclass
class Rewriting(Naming):
    """一首诗换一行。"""

    n: int = 8
    line: int = 0
    question: str = ""
    options: dict = field(default_factory=dict)

    def apply(self, engine: Any) -> str:
        return engine.rewrite(self.question, self.poem, self.line, n=self.n, **self.options)

    def answer(self, poem: str) -> dict:
        """整首诗，与换上的那一行。"""
        lines = [line.strip() for line in poem.split("\n") if line.strip()]
        return {"poem": poem, "line": self.line, "text": lines[self.line - 1]}


def naming(raw: bytes) -> Naming:
    """请求体 → Naming；不合规矩时 ApiError 说清是哪个字段。"""
    return _filled(Naming, chat_api.read_json(raw))


def rewriting(raw: bytes, defaults: dict) -> Rewriting:
    """请求体 → Rewriting；没有给的选项用 defaults。"""
    body = chat_api.read_json(raw)
    found = _filled(Rewriting, body)
    found.question = chat_api.text_in(body, "title", chat_api.MAX_QUESTION)
    line = body.get("line")
    if isinstance(line, bool) or not isinstance(line, int):
        raise chat_api.wrong("line", "应当是整数：第几行，从 1 数，空行不算")
    found.line = line
    found.options = options.merge(defaults, chat_api.options_in(body))
    return found


def _filled(kind: type, body: dict) -> Any:
    poem = body.get("poem")
    if not isinstance(poem, str) or not poem.strip():
        raise chat_api.wrong("poem", "应当是一首诗的文字")
    if len(poem) > MAX_POEM:
        raise chat_api.wrong("poem", f"最多 {MAX_POEM} 字")
    found = kind(poem)
    found.n = chat_api.number_in(body, "n", options.BY_NAME["n"]) or found.n
    found.model = chat_api.text_in(body, "model", 0) or chat_api.MODEL_ID
    return found
