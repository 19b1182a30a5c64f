"""一次提问：检查全部选项，写成 token。"""

from __future__ import annotations

import random
from dataclasses import dataclass

from poems import chat_format, mend, options, wording
from support.console import UserError
from tokenizer import HFTokenizer
from writing import controls, forms
from writing.vocabulary import Vocabulary


@dataclass
class Request:
    """检查过的一次请求：prompt 是提问的 ids，prefix 是规定好的开头。"""

    prompt: list
    prefix: list
    seen: list  # 重复惩罚从问题里带来的 token
    options: options.Options
    controls: dict  # 控制项 → 值，只含给了的
    warnings: list

    def seed(self) -> int:
        """给了的种子；没有给时随机。"""
        if self.options.seed is not None:
            return self.options.seed
        return random.SystemRandom().getrandbits(62)


def make(
    vocabulary: Vocabulary, limit: int, trained: list | None, question: object, given: dict
) -> Request:
    """检查一次提问；有问题时抛出 UserError。

    limit：上下文有多少 token；trained：模型练过的提示词种类，None = 不知道；
    given：选项名 → 值，None 表示没有给。
    """
    given = {name: value for name, value in given.items() if value is not None}
    options.check_names(given)
    given = {name: _typed(options.check(name, value)) for name, value in given.items()}
    wanted = {item.name: given.pop(item.name, None) for item in options.CONTROLS}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    question = _typed(options.check_text("问题", question)) if question is not None else ""
    _check_controls(question, wanted)
    wanted, tok = forms.complete(wanted), vocabulary.tok
    asked = {name: wanted[name] for name in options.PROMPTED if wanted.get(name)}
    text, _ = wording.request(question or None, **asked)
    request = Request(
        _encode_prompt(tok, text, limit),
        _prefix(tok, wanted),
        tok.encode(question),
        options.Options(**given),
        wanted,
        _warnings(wording.request_kinds(question or None, **asked), trained),
    )
    _check_room(vocabulary, request, limit)
    return request


def _typed(value: object) -> object:
    """文字里贴进来的零宽字符之类去掉：清洗过的语料里没有它们，模型没有见过。"""
    return mend.typed(value) if isinstance(value, str) else value


def _check_controls(question: str, wanted: dict) -> None:
    """问题与控制项之间的矛盾。"""
    if not question and not any(wanted.values()):
        raise UserError("问题是空的。请写一个题目，例如：一只鸟在想方向")
    if "\n" in wanted.get("first_line", ""):
        raise UserError("first_line 只能是一行")
    for kind in controls.KINDS:
        kind.check(wanted)


def _encode_prompt(tok: HFTokenizer, text: str, limit: int) -> list:
    ids = chat_format.render(tok, text) if len(text) <= 64 * limit else None
    if ids is None or len(ids) >= limit:
        size = f"{len(ids)} 个 token" if ids else f"{len(text)} 字"
        raise UserError(f"问题太长：{size}，而这个模型的上下文只有 {limit} 个 token。请缩短问题")
    return ids


def _prefix(tok: HFTokenizer, wanted: dict) -> list:
    first = wanted.get("first_line")
    if not first:
        return []
    return tok.encode(first if wanted.get("lines") == 1 else first + "\n")


def _check_room(vocabulary: Vocabulary, request: Request, limit: int) -> None:
    used = len(request.prompt) + len(request.prefix)
    if used >= limit:
        raise UserError(f"问题和首行共 {used} 个 token，这个模型的上下文只有 {limit} 个。请缩短")
    need = controls.room(vocabulary, request.controls)
    room = request.options.max_new_tokens
    if request.options.context == "stop":
        room = min(room, limit - used)
    if need > room:
        raise UserError(
            f"这么多行至少要 {need} 个 token，只有 {room} 个可用。"
            f"请减少行数，或把 max_new_tokens 设到 {need} 以上"
        )


def _warnings(kinds: list, trained: list | None) -> list:
    untrained = [kind for kind in kinds if kind not in (trained or kinds)]
    if not untrained:
        return []
    names = "、".join(wording.KIND_NAMES[kind] for kind in untrained)
    return [
        f"这个模型没有练过按{names}写诗，结果可能不理想；用 train_dataset_all.py 的数据训练就会了"
    ]
