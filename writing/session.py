"""一批正在写的诗：Row 是一首的进度，Session 让几首同批往下写。

每首诗有自己的选项、随机数、控制和位置，随时可以加入或离开；同样的种子，单独写和与别的诗同批写，
写出的是同一首。一首自己出了错，只有它结束；共用的前向出了错，整批结束。
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple, Sequence

import numpy as np
import torch

from kernels.picking import Picking
from poems import options
from support.console import UserError
from tokenizer import StreamDecoder
from writing import sample
from writing.controls import Controls
from writing.decoder import Decoder
from writing.pace import Paces
from writing.request import Request
from writing.verse import Verse
from writing.vocabulary import Vocabulary

# ── 一首 ──────────────────────────────────────────────────────────────


class Row:
    """一首诗的进度。"""

    def __init__(
        self,
        vocabulary: Vocabulary,
        request: Request,
        context: int,
        seed: int,
        scored: bool = False,
    ) -> None:
        """context：模型的上下文有多少 token；scored：累计对数概率，供排名用。"""
        self.prompt, self.options = request.prompt, request.options
        self.vocabulary, self.stops = vocabulary, vocabulary.stops
        self.uniforms = sample.Uniforms(seed % (1 << 63))
        self.controls = Controls(vocabulary, request.controls, self.options.temperature)
        self.verse = Verse(vocabulary)
        self.queue = []  # 接下来不必抽的 token
        self.given = len(request.prefix)
        self.offset = len(self.prompt)  # tokens[0] 在缓存里的位置
        self.finish_reason = None  # stop | length | cancelled | failed
        self.error = None
        self.scored, self.score = scored, 0.0
        self.steady = self.options.steady_marks and self.options.temperature >= sample.GREEDY
        self.asked = [token for token in request.seen if self.counts(token)]
        self.settled = 0  # 前多少个 token 不会再改
        self._text, self._shown, self._held = StreamDecoder(vocabulary.tok), 0, ""
        self._begun = False
        self.limit = self.given + self.options.max_new_tokens
        if self.options.context == "stop":
            self.limit = min(self.limit, context - len(self.prompt))
        for token in request.prefix:
            self.accept(token)

    @property
    def tokens(self) -> list:
        """已有的 token，含规定的开头。"""
        return self.verse.tokens

    @property
    def remaining(self) -> int:
        """还能写几个 token。"""
        return self.limit - len(self.tokens)

    @property
    def place(self) -> int:
        """最后一个 token 在缓存里的位置。"""
        return self.offset + len(self.tokens) - 1

    @property
    def written(self) -> int:
        """写了几个 token（规定的开头与结束符不算）。"""
        ended = bool(self.tokens) and self.tokens[-1] in self.stops
        return len(self.tokens) - self.given - ended

    def counts(self, token: int) -> bool:
        """重复惩罚算不算它。"""
        if token in self.vocabulary.special:
            return False
        return self.options.penalize_marks or not self.vocabulary.is_mark(token)

    def minus(self, token: int) -> float:
        """诗里写过的 token 要减去的：出现惩罚加频率惩罚；规定的开头不算。"""
        chosen = self.options
        if not (chosen.presence_penalty or chosen.frequency_penalty):
            return 0.0
        count = self.tokens[self.given :].count(token)
        return chosen.presence_penalty * bool(count) + chosen.frequency_penalty * count

    def restrict(self, logits: torch.Tensor) -> None:
        """抽样前就地改这一行的对数几率 (V,)：禁止的与控制的。"""
        if self.queue:
            return
        banned = sample.repeated_ngrams(self.tokens, self.options.no_repeat_ngram)
        if len(self.tokens) - self.given < self.options.min_new_tokens:
            banned.update(self.stops)
        if banned:
            sample.ban(logits, banned)
        limits = self.controls.before(self.verse, self.remaining, logits)
        if limits.allow is not None:
            allowed = torch.as_tensor(limits.allow, device=logits.device)
            logits.copy_(sample.allow_only(logits, allowed))
        elif limits.ban:
            sample.ban(logits, limits.ban)

    def accept(self, token: int) -> None:
        """接上一个 token，看诗是不是写完了。"""
        self.verse.add(token)
        decision = self.controls.after(self.verse, self.uniforms.next)
        self.settled = decision.settled
        if decision.rewind is not None:  # 退回了行末：先放上改好的字
            self.verse.rewind(decision.rewind)
            self.queue = list(decision.queue)
            self.accept(self.queue.pop(0))
        elif decision.stop or token in self.stops:
            self.finish_reason = "stop"
        elif self.remaining <= 0:
            self.finish_reason = "length"

    def alone(self, work: Callable, *arguments: object) -> None:
        """做这一首自己的事；出了错只结束它。"""
        if self.error is not None:
            return
        try:
            work(*arguments)
        except Exception as error:
            self.error, self.finish_reason = error, "failed"

    def take(self) -> str:
        """还没有给出的、不会再改的完整文字；末尾的空白留到后面有字时再给。

        写这首时出过错就抛出那个错。
        """
        if self.error is not None:
            raise self.error
        settled = self.settled if self.finish_reason is None else len(self.tokens)
        text = "".join(map(self._text.feed, self.tokens[self._shown : settled]))
        self._shown = max(self._shown, settled)
        text = self._held + text.replace("\ufffd", "")  # 凑不成字的字节不给人看
        if not self._begun:
            text = text.lstrip()
        shown = text.rstrip()
        self._held = text[len(shown) :]
        self._begun = self._begun or bool(shown)
        return shown


# ── 重复惩罚 ──────────────────────────────────────────────────────────


class Penalties:
    """各行出现过的 token、惩罚的倍数、减去的数，补齐成矩形，一次改好整批。"""

    def __init__(self, size: int) -> None:
        self.seen = np.zeros((size, 64), dtype=np.int64)
        self.factor = np.ones((size, 64), dtype=np.float32)
        self.minus = np.zeros((size, 64), dtype=np.float32)
        self.known = [{} for _ in range(size)]  # token → 在这一行的第几格

    def clear(self, index: int) -> None:
        """第 index 行换成一首新的。"""
        self.seen[index], self.factor[index], self.minus[index] = 0, 1.0, 0.0
        self.known[index] = {}

    def copy(self, source: int, target: int) -> None:
        """把一行抄到另一行。"""
        for table in (self.seen, self.factor, self.minus):
            table[target] = table[source]
        self.known[target] = dict(self.known[source])

    def remember(self, index: int, token: int, penalty: float, minus: float = 0.0) -> None:
        """记下第 index 行出现过的 token；再次出现时只有 minus 会变。"""
        known = self.known[index]
        if token not in known:
            place = known[token] = len(known)
            if place == self.seen.shape[1]:
                self.seen = np.concatenate((self.seen, np.zeros_like(self.seen)), 1)
                self.factor = np.concatenate((self.factor, np.ones_like(self.factor)), 1)
                self.minus = np.concatenate((self.minus, np.zeros_like(self.minus)), 1)
            self.seen[index, place], self.factor[index, place] = token, penalty
        self.minus[index, known[token]] = minus

    def apply(self, indexes: range, logits: torch.Tensor) -> None:
        """就地改这几行的对数几率 (B, V)。"""
        widest = max(len(self.known[index]) for index in indexes)
        if not widest:
            return
        part = slice(indexes[0], indexes[-1] + 1)
        seen = torch.from_numpy(self.seen[part, :widest]).to(logits.device)
        factor = torch.from_numpy(self.factor[part, :widest]).to(logits.device)
        minus = self.minus[part, :widest]
        less = torch.from_numpy(minus).to(logits.device) if minus.any() else 0.0
        sample.penalize_repeats(logits, seen, factor, less)


class Steady(NamedTuple):
    """标点、换行与收尾的 token (M,)，和它们在各行里的概率 (B, M)。"""

    marks: torch.Tensor
    chances: torch.Tensor


# ── 一批 ──────────────────────────────────────────────────────────────


class Session:
    """几首诗同批往下写；缓存的第 i 行属于 self.rows[i]。"""

    def __init__(
        self,
        decoder: Decoder,
        size: int,
        longest: int | None = None,
        paces: Paces | None = None,
    ) -> None:
        """size：至多几首同时写；longest：每首连同提问至多多少 token，知道时缓存只分配这么多。

        paces：按量出来的线程数走每一步；None = 不管线程。
        """
        self.decoder, self.limit, self.paces = decoder, decoder.config.max_seq_len, paces
        capacity = min(self.limit, longest or self.limit)
        self.cache = decoder.new_cache(size, capacity)
        self.rows = []
        self._penalties = Penalties(size)
        self._scratch = None  # (至多几行, V)

    def start(self, rows: Sequence[Row]) -> Sequence[Row]:
        """同一提问的几首一起加入：一次预填，各自抽第一个 token。返回它们。

        预填出错时抛出，正在写的不受影响。
        """
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
            self._penalties.clear(index)
            for token in row.asked:
                penalty, minus = row.options.repetition_penalty, row.minus(token)
                self._penalties.remember(index, token, penalty, minus)
        self._choose(range(first, first + len(rows)), logits.expand(len(rows), -1).clone())
        self._leave()
        return rows

    def step(self) -> Sequence[Row]:
        """每首诗各走一步；返回走了的诗（没有诗时为空）。"""
        rows = list(self.rows)
        if rows and self.paces is not None:
            self.paces.run(len(rows), self._step)
        elif rows:
            self._step()
        return rows

    def _step(self) -> None:
        rows = list(self.rows)
        for index, row in enumerate(rows):
            if row.place >= self.limit:
                self._slide(index, row)
        tokens = [row.tokens[-1] for row in rows]
        logits = self.decoder.step(self.cache, tokens, [row.place for row in rows])
        self._choose(range(len(rows)), logits)
        self._leave()

    def drop(self, row: Row) -> None:
        """中途放弃一首。"""
        if row.finish_reason is None:
            row.finish_reason = "cancelled"
        self._leave()

    @torch.inference_mode()
    def _choose(self, indexes: range, logits: torch.Tensor) -> None:
        """给这几行（logits (B, V)）各定下一个 token。"""
        rows = [self.rows[index] for index in indexes]
        raw = logits.clone() if any(row.scored for row in rows) else None
        steady = self._mark_chances(rows, logits)
        self._penalties.apply(indexes, logits)
        for row, scores in zip(rows, logits):
            row.alone(row.restrict, scores)
        numbers = [0.0 if row.queue else row.uniforms.next() for row in rows]
        uniform = torch.tensor(numbers, device=self.decoder.device)
        tokens = _pick(rows, logits, steady, uniform, self.decoder.picking).tolist()
        tokens = [row.queue.pop(0) if row.queue else token for row, token in zip(rows, tokens)]
        if raw is not None:
            gained = sample.log_probability(raw, torch.tensor(tokens, device=raw.device))
            for row, value in zip(rows, gained.tolist()):
                row.score += value
        for index, row, token in zip(indexes, rows, tokens):
            row.alone(self._accept, index, row, token)

    def _mark_chances(self, rows: Sequence[Row], logits: torch.Tensor) -> Steady | None:
        """要稳住标点的行：标点此刻的概率，收尾的按余地加减；没有这样的行时为 None。"""
        if not any(row.steady for row in rows):
            return None
        marks, place = rows[0].vocabulary.marks()
        marks = marks.to(logits.device)
        picking = self.decoder.picking
        if picking is None and (self._scratch is None or len(self._scratch) < len(logits)):
            self._scratch = torch.empty_like(logits)
        scratch = None if picking else self._scratch[: len(logits)]
        chances = sample.mark_chances(logits, marks, scratch, picking)
        lean = [math.exp(sample.closing(row.remaining)) for row in rows]
        chances[:, place].mul_(torch.tensor(lean, device=logits.device))
        return Steady(marks, chances)

    def _accept(self, index: int, row: Row, token: int) -> None:
        row.accept(token)
        last = row.tokens[-1]  # 押韵换过字时不是 token
        if row.counts(last):
            penalty, minus = row.options.repetition_penalty, row.minus(last)
            self._penalties.remember(index, last, penalty, minus)

    def _leave(self) -> None:
        """写完的离开，最后一行补上它的位置。"""
        for index in range(len(self.rows) - 1, -1, -1):
            if self.rows[index].finish_reason is None:
                continue
            last = len(self.rows) - 1
            if index != last:
                self.cache.copy_row(last, index, self.rows[last].place + 1)
                self._penalties.copy(last, index)
                self.rows[index] = self.rows[last]
            self.rows.pop()

    def _slide(self, index: int, row: Row) -> None:
        """写满了：保留提问，丢掉诗最早的部分（训练时长诗的续篇也是这个样子）。"""
        room = self.limit - len(row.prompt)
        keep = max(1, room // 2)
        tail = row.tokens[-keep:]
        row.offset = len(row.prompt) + len(tail) - len(row.tokens)
        self.decoder.prefill(self.cache, index, [*row.prompt, *tail[:-1]])


def _pick(
    rows: Sequence[Row],
    logits: torch.Tensor,
    steady: Steady | None,
    uniform: torch.Tensor,
    picking: Picking | None,
) -> torch.Tensor:
    """每行抽一个 token：(B,)；logits 会被改掉。"""
    merged = _merge(rows)
    if steady is None:
        return sample.pick(logits, uniform, **merged)
    chosen = [row.steady for row in rows]
    usual = None if all(chosen) else sample.pick(logits, uniform, **merged)
    found = sample.steady_pick(logits, steady.chances, steady.marks, uniform, picking, **merged)
    if usual is None:
        return found
    return torch.where(torch.tensor(chosen, device=logits.device), found, usual)


def _merge(rows: Sequence[Row]) -> dict:
    """各行挑候选的选项：都一样时是数，否则是列表。"""
    merged = {}
    for name in options.PICKED:
        values = [getattr(row.options, name) for row in rows]
        merged[name] = values[0] if values.count(values[0]) == len(values) else values
    return merged
