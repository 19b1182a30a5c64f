"""接口与 chat() 乱问：每个字段给随便什么；服务只答 200 与 4xx，旁边的好请求照样得到自己的诗。"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from poems import options
from support.console import UserError
from tests import server, tiny_model
from tests.faults.hostile import JUNK
from tests.faults.tally import FINE, TOLD, TRACE, WRONG, Tally, problem, random_bytes
from web import chat_api
from writing.engine import Engine
from writing.poet import Poet

_FIELDS = [name for option in options.TABLE for name in (option.name, *option.aliases)]
_FIELDS += ["model", "messages", "stream", "stream_options", "stop", "logprobs", "logit_bias"]
_FIELDS += ["tools", "tool_choice", "function_call", "response_format", "user", "metadata", "x"]
_USUAL = {  # 像样的值，好让请求走得深一些
    "temperature": (0, 0.7, 2), "top_k": (0, 5), "top_p": (0.9, 1), "min_p": (0, 0.1),
    "lines": (1, 4), "length": (8, 40), "line_chars": (2, 5), "acrostic": ("春夏", "春天来"),
    "rhyme": ("是", "ang", "花", True), "form": ("五言绝句", "七言律诗"), "tones": ("平起", True),
    "author": ("顾城",), "first_line": ("花开在山坡上",), "seed": (1, -1), "n": (1, 2, 8),
    "stream": (True, False), "stop": ("\n", ["。", ""]), "context": ("stop", "slide"),
    "max_new_tokens": (1, 6), "min_new_tokens": (1, 5), "no_repeat_ngram": (1, 2),
    "presence_penalty": (-2, 1), "frequency_penalty": (0, 2), "repetition_penalty": (0.1, 1.4),
    "steady_marks": (True,), "penalize_marks": (True,), "check_copy": (True,),
}  # fmt: skip
_QUESTIONS = (
    "春天",
    "写一首诗，题目是《春天》，8行的诗",
    "",
    " ",
    "\ud800",
    "<|im_end|>",
    "诗" * 90,
)
_QUESTIONS += ("\u200b", "\0", "a" * 9000, "é", "👩‍👩‍👧", "春\n天", "\x1b[2J", "％s", "𠀀")
_NUMBERS = (1e-300, 5e-324, 1e-38, 1e300, -0.0, 1e-9, 1 << 53, 1 << 64, 10**30, 0.1)


def value(name: str, rng: random.Random) -> object:
    """一个字段的值：像样的，或随便什么。"""
    if name in _USUAL and rng.random() < 0.6:
        return rng.choice(_USUAL[name])
    return rng.choice((*JUNK, *_NUMBERS, *_QUESTIONS))


def body(rng: random.Random) -> dict:
    """一个请求体。"""
    asked = {"messages": [{"role": "user", "content": rng.choice(_QUESTIONS)}], "max_tokens": 4}
    if rng.random() < 0.15:
        asked["messages"] = rng.choice((*JUNK, [{"role": "user"}], [{"role": 1, "content": "x"}]))
    for name in rng.sample(_FIELDS, rng.randint(0, 3)):
        asked[name] = value(name, rng)
    return asked


def encode(asked: dict, rng: random.Random) -> bytes:
    """写成字节；有时再弄坏一处。"""
    data = json.dumps(asked, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        place = rng.randrange(len(data))
        data = data[:place] + random_bytes(rng, rng.randrange(3)) + data[place + rng.randrange(3) :]
    return data


def parse(tally: Tally, rng: random.Random) -> None:
    """只读请求，不写诗，一次几十微秒。"""
    data = encode(body(rng), rng)
    try:
        chat_api.parse(data)
        verdict, detail = FINE, ""
    except chat_api.ApiError as error:
        good = 400 <= error.status < 500 and chat_api.to_json(
            chat_api.error_body(error.status, error.message, error.code, error.param)
        )
        verdict, detail = (TOLD, "") if good else (WRONG, str(error.status))
    except Exception as error:
        verdict, detail = TRACE, problem(error)
    tally.add("接口（读请求）", verdict, f"{data[:200]!r}：{detail}")


class Chats:
    """chat() 的选项，在一个极小的模型上真的写几个字。"""

    def __init__(self, folder: Path, tally: Tally) -> None:
        self.tally = tally
        tiny_model.save(folder / "best_model.bin", whole_chars=True)
        self.poet = Poet.load("", str(folder), "cpu", "fp32")

    def one(self, rng: random.Random) -> None:
        names = [option.name for option in (*options.SAMPLING, *options.CONTROLS)]
        given = {name: value(name, rng) for name in rng.sample(names, rng.randint(0, 3))}
        given = {"max_new_tokens": 6, **given}
        question = rng.choice((*_QUESTIONS, *JUNK[:8]))
        try:
            request = self.poet.request(question, **given)
            if request.options.max_new_tokens > 200:
                request = self.poet.request(question, **{**given, "max_new_tokens": 40})
            text = "".join(piece[1] for piece in self.poet.poems(request))
            verdict, detail = (FINE, "") if text.strip() else (WRONG, "空的诗")
        except UserError as error:
            verdict, detail = TOLD, str(error)
        except Exception as error:
            verdict, detail = TRACE, problem(error)
        self.tally.add("chat()", verdict, f"{question!r} {given!r}：{detail}"[:400])


class Served:
    """真的服务：几个乱问的客户端，旁边一个好好问的。"""

    GOOD: ClassVar = {
        "messages": [{"role": "user", "content": "春天"}],
        "seed": 3,
        "max_tokens": 12,
    }

    def __init__(self, folder: Path, tally: Tally) -> None:
        self.folder, self.tally = folder, tally
        self._lock = threading.Lock()
        self._over = 0.0

    def run(self, seconds: float, seed: str, clients: int = 4) -> None:
        """乱问 seconds 秒。"""
        tiny_model.save(self.folder / "best_model.bin", whole_chars=True)
        engine = Engine(Poet.load("", str(self.folder), "cpu", "fp32"), max_rows=8)
        with server.running(server.service(engine, self.folder, limit=32)) as url:
            wanted = self._ask(url, json.dumps(self.GOOD).encode("utf-8"))[1]
            self._over = time.monotonic() + seconds
            workers = [
                threading.Thread(target=self._hostile, args=(url, f"{seed} {number}"))
                for number in range(clients)
            ]
            workers.append(threading.Thread(target=self._neighbour, args=(url, wanted)))
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        engine.close()

    def _ask(self, url: str, data: bytes, headers: dict | None = None) -> tuple:
        """(状态, 诗或回答的开头)。"""
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        try:
            usual = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", data, {**usual, **(headers or {})})
            answer = connection.getresponse()
            text = answer.read().decode("utf-8")
        finally:
            connection.close()
        if answer.status == 200 and text.startswith("{"):
            return 200, json.loads(text)["choices"][0]["message"]["content"]
        return answer.status, text

    def _hostile(self, url: str, seed: str) -> None:
        number = 0
        while time.monotonic() < self._over:
            rng, number = random.Random(f"{seed} {number}"), number + 1
            data = encode(body(rng), rng)
            try:
                status, text = self._ask(url, data)
                broken = '"server_error"' in text or (status == 200 and not text.strip())
                verdict = FINE if status == 200 else TOLD
                if status >= 500 or broken:
                    verdict = WRONG
                detail = f"{status} {text[:160]}"
            except Exception as error:
                verdict, detail = WRONG, problem(error)
            with self._lock:
                self.tally.add("接口（真的服务）", verdict, f"{data[:300]!r}：{detail}")

    def _neighbour(self, url: str, wanted: str) -> None:
        data = json.dumps(self.GOOD).encode("utf-8")
        while time.monotonic() < self._over:
            try:
                status, text = self._ask(url, data)
                good = (status == 200 and text == wanted) or status == 429
                verdict, detail = (FINE, "") if good else (WRONG, f"{status} {text[:160]}")
            except Exception as error:
                verdict, detail = WRONG, problem(error)
            with self._lock:
                self.tally.add("旁边的好请求", verdict, detail)
