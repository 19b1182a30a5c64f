"""写诗的机器：Poet 是载入的模型，Session 让几首诗在一批里同时往下写，Engine 再给它一个线程。

每首诗有自己的选项、随机数、约束和位置，随时可以加入或离开；同样的种子，单独写和
与别的诗同批写，写出的是同一首。
"""

from __future__ import annotations

import queue
import random
import threading
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

import checkpoint
from kernels.products import half_problem
from poems import chat_format
from poems import wording as prompts
from support import hardware
from support.console import UserError
from tokenizer import StreamDecoder
from writing import controls, sample
from writing.decoder import Decoder
from writing.sample import Options

MAX_LINES = 60
MAX_CHARS = 2000

# ── 选项与请求 ────────────────────────────────────────────────────────

_RANGES = {  # 名字: (类型, 下限, 上限, 下限本身是否允许)
    "temperature": (float, 0, 10, True),
    "top_k": (int, 0, 1 << 24, True),
    "top_p": (float, 0, 1, False),
    "min_p": (float, 0, 1, True),
    "repetition_penalty": (float, 0.1, 10, True),
    "no_repeat_ngram": (int, 0, 1 << 16, True),
    "max_new_tokens": (int, 1, 1 << 20, True),
    "min_new_tokens": (int, 0, 1 << 20, True),
    "seed": (int, 0, (1 << 63) - 1, True),
    "lines": (int, 1, MAX_LINES, True),
    "length": (int, 4, MAX_CHARS, True),
    "n": (int, 1, 64, True),
}


OPTION_NAMES = tuple(field.name for field in fields(Options))
CONTROL_NAMES = ("author", "lines", "length", "first_line", "acrostic", "rhyme")


def check_value(name: str, value):
    """数值选项在范围内就原样返回，否则抛出写明范围的 UserError。"""
    kind, low, high, closed = _RANGES[name]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or (kind is int and value != int(value)):
        raise UserError(f"{name}={value!r} 应当是{'整数' if kind is int else '数'}")
    if not ((value >= low if closed else value > low) and value <= high):
        bracket = "≥" if closed else ">"
        raise UserError(f"{name}={value} 超出范围：应当 {bracket} {low} 且 ≤ {high}")
    return kind(value)


def make_options(given: dict) -> Options:
    """名字 → 值（None 表示默认）；不认识的名字或越界时抛出 UserError。"""
    values = {name: value for name, value in given.items() if value is not None}
    for name, value in values.items():
        if name not in OPTION_NAMES:
            known = " ".join((*OPTION_NAMES, *CONTROL_NAMES))
            raise UserError(f"没有名为 {name} 的选项；可用：{known}")
        if name in _RANGES:
            values[name] = check_value(name, value)
    if values.get("context", "stop") not in ("stop", "slide"):
        raise UserError(f"context={values['context']!r} 应当是 stop 或 slide")
    return Options(**values)


def check_text(name: str, text) -> str:
    """问题、首行之类的文字：必须是字符串，不含控制字符。"""
    if not isinstance(text, str):
        raise UserError(f"{name}应当是文字，收到的是 {type(text).__name__}")
    wrong = [char for char in text if (char < " " and char not in "\t\n\r") or char == "\x7f"]
    if wrong:
        raise UserError(f"{name}里有控制字符 U+{ord(wrong[0]):04X}，请去掉再试")
    return text.strip()


@dataclass
class Request:
    """检查过的一次请求：prompt 是提问的 ids，prefix 是规定好的开头。"""

    prompt: list
    prefix: list
    seen: list  # 重复惩罚从问题里带来的 token
    options: Options
    controls: dict  # Control 的参数；空 = 没有约束
    warnings: list


# ── 模型 ──────────────────────────────────────────────────────────────

_loaded = {}
_load_lock = threading.Lock()


class Poet:
    """载入的模型与分词器，可以反复、并发地用。"""

    def __init__(self, model, tok, prompt_kinds=None, path=None, half=False) -> None:
        """half：CPU 上矩阵用 fp16 存（见 decode.Decoder）。"""
        self.model, self.tok, self.path = model, tok, path
        self.prompt_kinds = list(prompt_kinds) if prompt_kinds is not None else None
        self.config = model.config
        self.decoder = Decoder(model, half=half)
        self.vocabulary = controls.Vocabulary(tok)

    @classmethod
    def load(
        cls, given: str = "", work_dir: str = ".", device: str = "auto", dtype: str = "auto"
    ) -> Poet:
        """检查点文件 → Poet；同一个文件（路径、时间、大小都没变）只载入一次。

        dtype 为 auto 或 fp16 时 CPU 上矩阵存成 fp16（激活与累加仍是 fp32），快近一倍，
        几率只差千分之几；fp32 时逐位等于训练用的模型。显卡上都用 fp32 计算。
        """
        path = Path(checkpoint.find(work_dir, given)).resolve()
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size, device, dtype)
        with _load_lock:
            if key not in _loaded:
                state = checkpoint.load(path)
                chosen = hardware.pick_device(device)
                model, tok = checkpoint.rebuild(state, chosen)
                half = dtype in ("auto", "fp16") and half_problem(chosen) is None
                for old in [other for other in _loaded if other[0] == key[0]]:
                    del _loaded[old]
                _loaded[key] = cls(model, tok, state["prompt_kinds"], path, half)
            return _loaded[key]

    def request(
        self,
        question=None,
        *,
        author=None,
        lines=None,
        length=None,
        first_line=None,
        acrostic=None,
        rhyme=None,
        **options,
    ) -> Request:
        """检查一次提问的全部选项，写成 token；有问题时抛出 UserError。"""
        chosen = make_options(options)
        texts = {"question": question, "author": author}
        texts.update(first_line=first_line, acrostic=acrostic)
        named = zip(texts, ("问题", "作者", "首行", "藏头"))
        texts = {
            key: check_text(name, texts[key]) if texts[key] is not None else None
            for key, name in named
        }
        lines = check_value("lines", lines) if lines is not None else None
        length = check_value("length", length) if length is not None else None
        wanted = {**texts, "lines": lines, "length": length}
        _check_controls(wanted, rhyme)
        text, _ = prompts.request(**{key: value or None for key, value in wanted.items()})
        ids = self._encode_prompt(text)
        prefix = self._prefix(texts["first_line"], lines)
        request = Request(
            ids,
            prefix,
            self.tok.encode(texts["question"] or ""),
            chosen,
            _constraints(wanted, rhyme),
            self._warnings(wanted),
        )
        self._check_room(request)
        return request

    def _encode_prompt(self, text):
        limit = self.config.max_seq_len
        ids = chat_format.render(self.tok, text) if len(text) <= 64 * limit else None
        if ids is None or len(ids) >= limit:
            size = f"{len(ids)} 个 token" if ids else f"{len(text)} 字"
            raise UserError(
                f"问题太长：{size}，而这个模型的上下文只有 {limit} 个 token。请缩短问题"
            )
        return ids

    def _prefix(self, first_line, lines):
        if not first_line:
            return []
        return self.tok.encode(first_line + ("" if lines == 1 else "\n"))

    def _check_room(self, request):
        limit, used = self.config.max_seq_len, len(request.prompt) + len(request.prefix)
        if used >= limit:
            raise UserError(
                f"问题和首行共 {used} 个 token，这个模型的上下文只有 {limit} 个。请缩短"
            )
        heads = request.controls.get("heads") or ()
        count = len(heads) or request.controls.get("lines") or 0
        need = controls.MIN_LINE * count
        room = request.options.max_new_tokens
        if request.options.context == "stop":
            room = min(room, limit - used)
        if need > room:
            raise UserError(
                f"{count} 行至少要 {need} 个 token，只有 {room} 个可用。"
                f"请减少行数，或把 max_new_tokens 设到 {need} 以上"
            )

    def _warnings(self, wanted):
        kinds = prompts.request_kinds(**{key: value or None for key, value in wanted.items()})
        untrained = [kind for kind in kinds if kind not in (self.prompt_kinds or kinds)]
        if not untrained:
            return []
        names = "、".join(prompts.KIND_NAMES[kind] for kind in untrained)
        return [
            f"这个模型没有练过按{names}写诗，结果可能不理想；"
            "用 train_dataset_all.py 的数据训练就会了"
        ]

    def poems(self, request: Request, n: int = 1, scored: bool = True):
        """写 n 首，逐步给出 (第几首, 文字, Row)；同一提问的几首共用一次预填。

        scored：n > 1 时累计对数概率（Row.score），供排名用。
        """
        if request.options.seed is None:
            seed = random.SystemRandom().getrandbits(62)
        else:
            seed = request.options.seed
        session = Session(self, n, len(request.prompt) + len(request.prefix), request.options)
        rows = [Row(self, request, seed + index, scored=scored and n > 1) for index in range(n)]
        changed = session.start(rows)
        while changed:
            for row in changed:
                text = row.take()
                if text:
                    yield rows.index(row), text, row
            changed = session.step()
        for index, row in enumerate(rows):
            yield index, "", row


def _check_controls(wanted, rhyme):
    """控制项之间的矛盾。"""
    heads, first = wanted["acrostic"], wanted["first_line"]
    if not any(wanted.values()) and not rhyme:
        raise UserError("问题是空的。请写一个题目，例如：一只鸟在想方向")
    if heads is not None:
        if not 1 <= len(heads) <= MAX_LINES or any(char.isspace() for char in heads):
            raise UserError(f"acrostic={heads!r} 应当是 1 到 {MAX_LINES} 个字，不含空白")
        if wanted["lines"] not in (None, len(heads)):
            raise UserError(f"藏头有 {len(heads)} 个字，就是 {len(heads)} 行，与 lines 不符")
    if first is not None and "\n" in first:
        raise UserError("first_line 只能是一行")
    if heads and first and first[0] != heads[0]:
        raise UserError(f"首行以“{first[0]}”开头，与藏头的第一个字“{heads[0]}”不符")


def _constraints(wanted, rhyme):
    found = {"lines": wanted["lines"], "length": wanted["length"]}
    found.update(heads=wanted["acrostic"] or "", rhyme=rhyme)
    if rhyme:
        controls.rhymes.target(rhyme)
    return found if any(found.values()) else {}


# ── 一首正在写的诗 ────────────────────────────────────────────────────


class Row:
    """一首诗的进度。"""

    def __init__(self, poet: Poet, request: Request, seed: int, scored: bool = False) -> None:
        self.prompt, self.options = request.prompt, request.options
        self.uniforms = sample.Uniforms(seed % (1 << 63))
        self.tokens = []  # 已有的 token，含规定的开头
        self.queue = []  # 接下来不必抽的 token
        self.given = len(request.prefix)
        self.stops = (poet.tok.end_id, poet.tok.pad_id)
        self.vocabulary = poet.vocabulary
        control = request.controls
        self.control = controls.Control(poet.vocabulary, **control) if control else None
        self.offset = len(self.prompt)  # tokens[0] 在缓存里的位置
        self.finish_reason = None
        self.scored, self.score = scored, 0.0
        self.asked = [token for token in request.seen if self.counts(token)]
        self.seen = set()
        self._text, self._shown, self._held = StreamDecoder(poet.tok), 0, ""
        self._begun = False
        limit = self.given + self.options.max_new_tokens
        if self.options.context == "stop":
            limit = min(limit, poet.config.max_seq_len - len(self.prompt))
        self.limit = limit
        for token in request.prefix:
            self.accept(token)

    @property
    def remaining(self) -> int:
        """还能写几个 token。"""
        return self.limit - len(self.tokens)

    @property
    def place(self) -> int:
        """最后一个 token 在缓存里的位置。"""
        return self.offset + len(self.tokens) - 1

    def counts(self, token):
        """重复惩罚算不算它。"""
        special = token in self.vocabulary.tok.special_ids.values()
        return not special and (self.options.penalize_marks or not self.vocabulary.is_mark(token))

    def banned(self) -> set:
        """这一步不许出现的 token。"""
        found = sample.repeated_ngrams(self.tokens, self.options.no_repeat_ngram)
        if len(self.tokens) - self.given < self.options.min_new_tokens:
            found.update(self.stops)
        return found

    def accept(self, token: int) -> None:
        """接上一个 token，看诗是不是写完了。"""
        self.tokens.append(token)
        verdict = self.control.accept(token, self) if self.control is not None else None
        if verdict == "rewound":  # 退回了行末：先放上改好的字
            self.accept(self.queue.pop(0))
        elif verdict == "stop" or token in self.stops:
            self.finish_reason = "stop"
        elif self.remaining <= 0:
            self.finish_reason = "length"

    def take(self) -> str:
        """还没有给出的、不会再改的完整文字；末尾的空白留到后面有字时再给。"""
        settled = len(self.tokens)
        if self.control is not None and self.finish_reason is None:
            settled = self.control.settled
        text = "".join(map(self._text.feed, self.tokens[self._shown : settled]))
        self._shown = max(self._shown, settled)
        text = self._held + text.replace("\ufffd", "")  # 凑不成字的字节不给人看
        if not self._begun:
            text = text.lstrip()
        shown = text.rstrip()
        self._held = text[len(shown) :]
        self._begun = self._begun or bool(shown)
        return shown

    @property
    def written(self) -> int:
        """写了几个 token（规定的开头与结束符不算）。"""
        ended = bool(self.tokens) and self.tokens[-1] in self.stops
        return len(self.tokens) - self.given - ended


# ── 一批 ──────────────────────────────────────────────────────────────


class Session:
    """几首诗同批往下写；缓存的第 i 行属于 self.rows[i]。"""

    def __init__(self, poet: Poet, size: int, prefilled: int = 0, options=None) -> None:
        """size: 至多几首同时写；知道提问多长、要写多少时，缓存只分配需要的。"""
        self.poet, self.decoder = poet, poet.decoder
        self.limit = capacity = poet.config.max_seq_len
        if options is not None:
            capacity = min(capacity, prefilled + options.max_new_tokens)
        self.cache = self.decoder.new_cache(size, capacity)
        self.rows = []
        self._seen = np.zeros((size, 64), dtype=np.int64)
        self._factor = np.ones((size, 64), dtype=np.float32)
        self._count = [0] * size
        self._uniform = {}

    def start(self, rows: list) -> list:
        """同一提问的几首一起加入：一次预填，各自抽第一个 token。返回它们。"""
        if rows[0].finish_reason is not None:  # 规定的开头就是整首诗
            return rows
        first = len(self.rows)
        ids = [*rows[0].prompt, *rows[0].tokens]
        logits = self.decoder.prefill(self.cache, first, ids)
        if not bool(torch.isfinite(logits).all()):
            raise UserError("模型的输出不是有限的数：训练可能已经发散。请换一个检查点")
        for index, row in enumerate(rows, first):
            if index > first:
                self.cache.copy_row(first, index, len(ids))
            self.rows.append(row)
            self._count[index] = 0
            self._seen[index], self._factor[index] = 0, 1.0
            for token in row.asked:
                self._remember(index, token, row)
        self._choose(range(first, first + len(rows)), logits.expand(len(rows), -1).clone())
        self._leave()
        return rows

    def step(self) -> list:
        """每首诗各走一步；返回走了的诗（没有诗时为空）。"""
        rows = list(self.rows)
        if not rows:
            return rows
        for index, row in enumerate(rows):
            if row.place >= self.limit:
                self._slide(index, row)
        tokens = [row.tokens[-1] for row in rows]
        logits = self.decoder.step(self.cache, tokens, [row.place for row in rows])
        self._choose(range(len(rows)), logits)
        self._leave()
        return rows

    def drop(self, row: Row) -> None:
        """中途放弃一首。"""
        if row.finish_reason is None:
            row.finish_reason = "cancelled"
        self._leave()

    @torch.inference_mode()
    def _choose(self, indexes, logits):
        """给这几行（logits (B, V)）各定下一个 token。"""
        rows = [self.rows[index] for index in indexes]
        raw = logits.clone() if any(row.scored for row in rows) else None
        self._penalize(indexes, logits)
        for row, scores in zip(rows, logits):
            if row.queue:
                continue
            banned = row.banned()
            if banned:
                sample.ban(scores, banned)
            if row.control is not None:
                scores.copy_(row.control.shape(scores, row))
        chosen = sample.pick(logits, self._uniforms(rows), **_merge(rows))
        tokens = chosen.tolist()
        for place, row in enumerate(rows):
            if row.queue:
                tokens[place] = row.queue.pop(0)
        if raw is not None:
            gained = sample.log_probability(raw, torch.tensor(tokens, device=raw.device))
            for row, value in zip(rows, gained.tolist()):
                row.score += value
        for index, row, token in zip(indexes, rows, tokens):
            row.accept(token)
            if row.counts(row.tokens[-1]):
                self._remember(index, row.tokens[-1], row)

    def _uniforms(self, rows):
        numbers = [0.0 if row.queue else row.uniforms.next() for row in rows]
        return torch.tensor(numbers, device=self.decoder.device)

    def _penalize(self, indexes, logits):
        counts = [self._count[index] for index in indexes]
        widest = max(counts)
        if not widest:
            return
        part = slice(indexes[0], indexes[-1] + 1)
        seen = torch.from_numpy(self._seen[part, :widest]).to(logits.device)
        factor = torch.from_numpy(self._factor[part, :widest]).to(logits.device)
        sample.penalize_repeats(logits, seen, factor)

    def _remember(self, index, token, row):
        """记下一行出现过的 token。"""
        if token in row.seen:
            return
        count = self._count[index]
        if count == self._seen.shape[1]:
            self._seen = np.concatenate((self._seen, np.zeros_like(self._seen)), 1)
            self._factor = np.concatenate((self._factor, np.ones_like(self._factor)), 1)
        row.seen.add(token)
        self._seen[index, count] = token
        self._factor[index, count] = row.options.repetition_penalty
        self._count[index] = count + 1

    def _leave(self):
        """写完的离开，最后一行补上它的位置。"""
        for index in range(len(self.rows) - 1, -1, -1):
            if self.rows[index].finish_reason is None:
                continue
            last = len(self.rows) - 1
            if index != last:
                self.cache.copy_row(last, index, self.rows[last].place + 1)
                self._seen[index], self._factor[index] = self._seen[last], self._factor[last]
                self._count[index] = self._count[last]
                self.rows[index] = self.rows[last]
            self.rows.pop()

    def _slide(self, index, row):
        """写满了：保留提问，丢掉诗最早的部分（训练时长诗的续篇也是这个样子）。"""
        room = self.limit - len(row.prompt)
        keep = max(1, room // 2)
        tail = row.tokens[-keep:]
        row.offset = len(row.prompt) + len(tail) - len(row.tokens)
        self.decoder.prefill(self.cache, index, [*row.prompt, *tail[:-1]])


def _merge(rows):
    """各行的抽样选项：都一样时是数，否则是列表。"""
    names = ("temperature", "top_k", "top_p", "min_p")
    merged = {}
    for name in names:
        values = [getattr(row.options, name) for row in rows]
        merged[name] = values[0] if values.count(values[0]) == len(values) else values
    return merged


# ── 给服务用：自己的线程，随时提交 ────────────────────────────────────


class Handle:
    """提交出去的一首诗：可迭代，给出完整的字。"""

    def __init__(self, engine: Engine, request: Request, seed: int) -> None:
        self._engine, self._request, self._seed = engine, request, seed
        self._pieces = queue.Queue()
        self._row = None
        self.cancelled = False
        self.finish_reason = None  # stop | length | cancelled
        self.prompt_tokens = len(request.prompt)
        self.completion_tokens = 0
        self.warnings = request.warnings

    def __iter__(self):
        while True:
            piece = self._pieces.get()
            if piece is None:
                self._pieces.put(None)  # 再迭代也马上结束
                return
            if isinstance(piece, Exception):
                self._pieces.put(None)
                raise piece
            yield piece

    def cancel(self) -> None:
        """不要了；已经写完的不变。"""
        self.cancelled = True
        self._engine.wake()

    def _finish(self, reason, error=None):
        self.finish_reason = self.finish_reason or reason
        self._pieces.put(error)


class Engine:
    """连续批处理：一个工作线程，至多 max_rows 首同时写，其余排队；线程安全。"""

    def __init__(self, poet: Poet, max_rows: int = 8) -> None:
        self.poet, self.max_rows = poet, max_rows
        self.prompt_kinds = poet.prompt_kinds
        self._waiting, self._active = [], []
        self._changed = threading.Condition()
        self._thread, self._closed = None, False

    def submit(self, question=None, **options) -> Handle:
        """检查请求并排队；选项同 chat()，有问题时立刻抛出 UserError。"""
        request = self.poet.request(question, **options)
        seed = request.options.seed
        if seed is None:
            seed = random.SystemRandom().getrandbits(62)
        handle = Handle(self, request, seed)
        with self._changed:
            if self._closed:
                raise UserError("服务正在关闭")
            self._waiting.append(handle)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="poet", daemon=True)
                self._thread.start()
            self._changed.notify()
        return handle

    def wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """取消全部请求，等线程结束。"""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self):
        session = None
        while True:
            with self._changed:
                while not (self._waiting or self._active or self._closed):
                    self._changed.wait()
                if self._closed:
                    break
                arrived = self._admit()
            try:
                session = session or Session(self.poet, self.max_rows)
                self._advance(session, arrived)
            except Exception as error:  # 交给等着的人，线程继续服务后来的请求
                for handle in {*self._active, *arrived}:
                    handle._finish("cancelled", error)
                self._active, session = [], None
        for handle in [*self._waiting, *self._active]:
            handle._finish("cancelled")

    def _admit(self):
        """轮到的请求；一轮只放进一首，免得预填拖住正在写的。"""
        for handle in [handle for handle in self._waiting if handle.cancelled]:
            self._waiting.remove(handle)
            handle._finish("cancelled")
        room = len(self._active) < self.max_rows
        return [self._waiting.pop(0)] if room and self._waiting else []

    def _advance(self, session, arrived):
        for handle in self._active:
            if handle.cancelled:
                session.drop(handle._row)
        session.step()
        for handle in arrived:
            handle._row = Row(self.poet, handle._request, handle._seed)
            session.start([handle._row])
            self._active.append(handle)
        for handle in list(self._active):
            self._deliver(handle)

    def _deliver(self, handle):
        row = handle._row
        text = row.take() if row.finish_reason != "cancelled" else ""
        handle.completion_tokens = row.written
        if text:
            handle._pieces.put(text)
        if row.finish_reason is not None:
            self._active.remove(handle)
            handle._finish(row.finish_reason)
