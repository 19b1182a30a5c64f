"""与 infere.Engine 同样接口的假引擎：文字由题目与种子决定，快慢由测试掌握。"""

from __future__ import annotations

import threading

from support.console import UserError

VERSE = (
    "{q}，",
    "在窗台上坐了一夜\n",
    "灯还亮着，",
    "像一句没有说完的话\n\n",
    "第{s}次，",
    "它飞走了",
)


class FakeEngine:
    """submit 之后每首诗由一个线程写；step（信号量）存在时，每放行一次写一段。"""

    prompt_kinds = ("title", "author", "lines", "acrostic", "first_line", "length")
    path = None  # 从哪个文件来

    def __init__(self, step=None, pause: float = 0.0, verse: tuple = VERSE) -> None:
        self.step, self.pause, self.verse = step, pause, verse
        self.handles, self.asked = [], []

    def rewrite(self, question: str, poem: str, number: int, **options) -> str:
        """第 number 行换成“新的第几行”。"""
        rows = [at for at, line in enumerate(poem.split("\n")) if line.strip()]
        if not 1 <= number <= len(rows):
            raise UserError(f"没有第 {number} 行")
        self.asked.append((question, {**options, "line": number}))
        lines = poem.split("\n")
        lines[rows[number - 1]] = f"新的第{number}行"
        return "\n".join(lines)

    def titles(self, poem: str, n: int) -> list:
        return ["灯", "窗台", "一夜"][:n]

    def close(self) -> None:
        """没有线程要停。"""

    def submit(self, question: str, **options) -> FakeHandle:
        if question == "太长":
            raise ValueError("题目太长：上下文只有 16 个 token")
        handle = FakeHandle(self, question, options)
        self.handles.append(handle)
        self.asked.append((question, options))
        return handle


class FakeHandle:
    """一首正在写的诗。"""

    def __init__(self, engine, question, options) -> None:
        seed = options.get("seed") or 0
        self.pieces = [piece.format(q=question, s=seed) for piece in engine.verse]
        self.limit = options.get("max_new_tokens", 400)
        self.engine, self.broken = engine, question == "坏掉"
        self.prompt_tokens, self.completion_tokens = len(question) + 5, 0
        self.finish_reason = None
        self.cancelled = threading.Event()

    def __iter__(self):
        for piece in self.pieces:
            while self.engine.step and not self.engine.step.acquire(timeout=0.02):
                if self.cancelled.is_set():
                    break
            self.cancelled.wait(self.engine.pause)
            if self.cancelled.is_set():
                self.finish_reason = "cancelled"
                return
            if self.completion_tokens >= self.limit:
                self.finish_reason = "length"
                return
            if self.broken:
                raise RuntimeError("/secret/path 里的引擎坏了")
            self.completion_tokens += 1
            yield piece
        self.finish_reason = "stop"

    def cancel(self) -> None:
        self.cancelled.set()


def poem(question: str, seed: int = 0) -> str:
    """假引擎会写的诗。"""
    return "".join(VERSE).format(q=question, s=seed)
