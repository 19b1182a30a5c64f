"""对话格式：只有这里知道一首诗怎样写成 token，也只有这里知道别的工具怎样拼出同样的格式。

一首诗写成
    <|im_start|>user\\n{提示词}\\n<|im_end|>\\n<|im_start|>assistant\\n{正文}<|im_end|>
特殊符号以编号放入，从不经过文字；正文和最后的 <|im_end|> 才是训练目标（mask=1）。
提问是（系统, 提示词）两段，SYSTEM 为空时没有系统一段；改了它，训练、提问、导出的模板一同改变。
"""

from __future__ import annotations

from typing import Any, List, NamedTuple, Tuple

from support.console import UserError

SYSTEM = ""  # 系统一段的文字
MIN_BODY = 8  # 一篇文档至少给正文留出这么多 token
OVERLAP = 8  # 续篇重述前一篇末尾几行，约占正文空间的 1/OVERLAP，至多两倍

Document = Tuple[List[int], List[int]]  # (ids, mask)，两者等长


class Turn(NamedTuple):
    """一段话：<|im_start|>{role}\\n{text}{tail}<|im_end|>{gap}。"""

    role: str
    text: str
    tail: str = "\n"
    gap: str = "\n"

    def inside(self) -> str:
        """两个特殊符号之间的文字，一次编码。"""
        return f"{self.role}\n{self.text}{self.tail}"

    def written(self, start: str, end: str) -> str:
        """连同特殊符号写成文字。"""
        return f"{start}{self.inside()}{end}{self.gap}"


ANSWER = Turn("assistant", "", tail="", gap="")  # 正文另外编码，接在 inside() 后面


def asking(user: str) -> list[Turn]:
    """提问的各段，最后一段是提示词；SYSTEM 不为空时前面有系统一段。"""
    before = [Turn("system", SYSTEM)] if SYSTEM else []
    return [*before, Turn("user", user)]


def body(poem: dict[str, Any]) -> str:
    """诗的正文：各节之间空一行。"""
    return "\n\n".join(poem["para"]).strip()


def question_text(prompt: str) -> str:
    """提示词一段的文字，单独编码一次。"""
    return asking(prompt)[-1].inside()


# ── 编号 ──────────────────────────────────────────────────────────────


class Span(NamedTuple):
    """一篇文档里的正文：[context, first) 是重述，[first, last) 是训练的。"""

    context: int
    first: int
    last: int


class ChatFormat:
    """把编码好的提示词与正文拼成文档；每个分词器建一个，重复使用。

    tok 需要 encode、token_bytes、vocab_size、start_id、end_id。
    """

    def __init__(self, tok: Any) -> None:
        self.tok = tok
        self.start, self.end = tok.start_id, tok.end_id
        *before, user = asking("")
        self._before = [token for turn in before for token in self._turn(turn)]
        self._after = [
            self.end,
            *tok.encode(user.gap),
            self.start,
            *tok.encode(ANSWER.inside()),
        ]
        self._pieces: dict[int, tuple[bool, bool]] = {}  # token → (以换行结尾, 从字的开头开始)

    def _turn(self, turn: Turn) -> list[int]:
        return [self.start, *self.tok.encode(turn.inside()), self.end, *self.tok.encode(turn.gap)]

    def prefix(self, question: list[int]) -> list[int]:
        """编码好的提示词 → 直到 assistant\\n 为止的 ids，回答从它后面开始。"""
        return [*self._before, self.start, *question, *self._after]

    def document(self, question: list[int], answer: list[int]) -> Document:
        """编码好的提示词与正文 → 整首诗的 (ids, mask)，不管多长。"""
        return self._document(self.prefix(question), answer, Span(0, 0, len(answer)))

    def length(self, question: list[int], answer: list[int]) -> int:
        """整首诗的 token 数。"""
        return len(self._before) + 1 + len(question) + len(self._after) + len(answer) + 1

    def fit(self, prompt: str, max_len: int, room: int) -> list[int]:
        """提示词 → prefix，尽量给正文留下 room 个 token：太长的提示词从末尾删字。

        连格式本身都放不下时抛出 UserError。
        """
        shortest = len(self.prefix(self.tok.encode(question_text(""))))
        if shortest + MIN_BODY > max_len:
            raise UserError(
                f"上下文太短：光是对话格式就要 {shortest} 个 token，全长只有 {max_len}\n"
                "请调大 MAX_SEQ_LEN 或分词器的 VOCAB_SIZE"
            )
        limit = max(max_len - room, shortest)
        prefix = self.prefix(self.tok.encode(question_text(prompt)))
        while len(prefix) > limit:
            keep = int(len(prompt) * limit / len(prefix))
            prompt = prompt[: min(keep, len(prompt) - 1)].rstrip()
            prefix = self.prefix(self.tok.encode(question_text(prompt)))
        return prefix

    def documents(
        self, prompt: str, question: list[int], answer: list[int], max_len: int
    ) -> list[Document]:
        """编码好的提示词 question 与正文 answer → [(ids, mask)]，每篇不超过 max_len 个 token。

        放得下就是一篇；放不下就拆成几篇：每篇重复提示词，续篇先重述前一篇的末尾几行（mask=0），
        只有最后一篇以 <|im_end|> 结尾；正文的每个 token 恰好训练一次。
        """
        prefix = self.prefix(question)
        if self.length(question, answer) > max_len:
            room = min(len(answer) + 1, max_len // 2)
            if len(prefix) + room > max_len:
                prefix = self.fit(prompt, max_len, room)
        spans = self._spans(answer, max_len - len(prefix))
        return [self._document(prefix, answer, span) for span in spans]

    def _document(self, prefix: list[int], answer: list[int], span: Span) -> Document:
        closing = [self.end] if span.last == len(answer) else []
        ids = [*prefix, *answer[span.context : span.last], *closing]
        untrained = len(prefix) + span.first - span.context
        return ids, [0] * untrained + [1] * (len(ids) - untrained)

    def _spans(self, answer: list[int], capacity: int) -> list[Span]:
        """把正文切开：每段连同 <|im_end|> 不超过 capacity。"""
        total, spans, context, first = len(answer), [], 0, 0
        while total + 1 - context > capacity:
            last = self._cut(answer, first, min(context + capacity, total - 1))
            spans.append(Span(context, first, last))
            context = self._context(answer, first, last, capacity // OVERLAP)
            first = last
        return [*spans, Span(context, first, total)]

    def _cut(self, answer: list[int], first: int, limit: int) -> int:
        """(first, limit] 里最好的断点：靠后一半里最后一个行尾，否则一个字的边界。"""
        for cut in range(limit, first + (limit - first) // 2, -1):
            if self._ends_line(answer[cut - 1]):
                return cut
        for cut in range(limit, max(first, limit - 4), -1):
            if self._starts_char(answer[cut]):
                return cut
        return limit

    def _context(self, answer: list[int], first: int, last: int, most: int) -> int:
        """续篇从哪里开始重述：末尾 most 个 token 里第一个行首；一行比这长就重述这一行，
        长过两倍时从一个字的开头开始。都不早于 first。
        """
        earliest = max(first, last - most)
        before = range(earliest - 1, max(first, last - 2 * most) - 1, -1)
        for place in [*range(earliest, last), *before]:
            if place and self._ends_line(answer[place - 1]):
                return place
        for place in range(earliest, last):
            if self._starts_char(answer[place]):
                return place
        return last

    def _ends_line(self, token: int) -> bool:
        return self._piece(token)[0]

    def _starts_char(self, token: int) -> bool:
        return self._piece(token)[1]

    def _piece(self, token: int) -> tuple[bool, bool]:
        if token not in self._pieces:
            data = self.tok.token_bytes(token)
            starts = not data or data[0] & 0xC0 != 0x80
            self._pieces[token] = (data.endswith(b"\n"), starts)
        return self._pieces[token]


def render(tok: Any, prompt: str, max_len: int | None = None) -> list[int]:
    """提问的 ids，直到 assistant\\n 为止；给了 max_len 时，提示词至多占一半，过长的从末尾删字。"""
    chat = ChatFormat(tok)
    if max_len is not None:
        return chat.fit(prompt, max_len, max_len // 2)
    return chat.prefix(tok.encode(question_text(prompt)))


def documents(tok: Any, prompt: str, body: str, max_len: int) -> list[Document]:
    """一首诗 → [(ids, mask)]；长诗拆成几篇，规则见 ChatFormat.documents。"""
    question, answer = tok.encode(question_text(prompt)), tok.encode(body)
    return ChatFormat(tok).documents(prompt, question, answer, max_len)


# ── 给别的工具的模板 ──────────────────────────────────────────────────


def asked(user: str, start: str, end: str) -> str:
    """提问写成文字，直到 assistant\\n 为止；start、end 是两个特殊符号的写法。"""
    before = "".join(turn.written(start, end) for turn in asking(user))
    return before + start + ANSWER.inside()


def jinja_template(start: str, end: str) -> str:
    """transformers、llama.cpp 的模板；模型没有对话记忆，所以从最后一个问题开始排。"""
    *before, user = asking("")
    opening = "".join(turn.written(start, end) for turn in before)
    rows = [
        "{%- set last = namespace(user=0) -%}",
        "{%- for message in messages -%}",
        "{%- if message['role'] == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}",
        "{%- endfor -%}",
        f"{{{{- {_quoted(opening)} -}}}}" if opening else "",
        "{%- for message in messages[last.user:] -%}",
        f"{{{{- {_quoted(start)} + message['role'] + '\\n' -}}}}",
        "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}",
        "{%- for part in message['content'] -%}",
        "{{- ('' if loop.first else '\\n') + part['text'] -}}",
        "{%- endfor -%}{%- endif -%}",
        f"{{{{- {_quoted(ANSWER.tail + end + ANSWER.gap)} if message['role'] == "
        f"{_quoted(ANSWER.role)} else {_quoted(user.tail + end + user.gap)} -}}}}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}",
        f"{{{{- {_quoted(start + ANSWER.inside())} -}}}}",
        "{%- endif -%}",
    ]
    return "".join(rows)


def _quoted(text: str) -> str:
    """Jinja 里的字符串。"""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def ollama_template(start: str, end: str) -> str:
    """Ollama 的 TEMPLATE：只排最后一个问题，与 jinja_template 一致。"""
    last = "{{- range $i, $m := .Messages }}{{- if eq (len (slice $.Messages $i)) 1 }}"
    return last + asked("{{ $m.Content }}", start, end) + "{{ end }}{{- end }}"
