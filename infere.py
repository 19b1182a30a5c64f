"""和训练好的模型对话：python infere.py；或在程序里 from infere import chat, chat_stream。

写好的诗还可以改：rewrite() 只换一行，titles() 给它起题目。
导入本模块不载入任何东西（连 PyTorch 也不）；第一次 chat() 才载入 best_model.bin，
没有就用 checkpoint.bin，再没有就用随附的。每个问题单独成诗，不记得上一个。输入 /帮助 看全部命令。
在别的文件夹里导入、那里有自己的 config.py 之类也不要紧；本项目的配置是 infere.config。
"""

from __future__ import annotations

if __name__ == "__main__":
    from support import interpreter

    interpreter.begin()

import importlib.util
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterable, Iterator

_HERE = Path(__file__).resolve().parent


class _Home:
    """在里面 import 的是本项目的模块；使用者有同名的（config、tokenizer……），出去时还给他。

    没有同名的时候什么也不换，导入过的就留在 sys.modules 里。
    """

    def __init__(self) -> None:
        if not (_HERE / "poems").is_dir():
            raise ImportError("infere.py 要和项目的其余文件在一起：pip install -e 项目的文件夹")
        names = {path.stem for path in _HERE.glob("*.py")}
        names |= {path.parent.name for path in _HERE.glob("*/__init__.py")}
        self._shared = {name for name in names if _is_foreign(name)}
        self._ours, self._theirs = {}, {}
        self._lock, self._inside = threading.RLock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                sys.path.insert(0, str(_HERE))
                self._theirs = self._swap(self._ours)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                sys.path.remove(str(_HERE))
                self._ours = self._swap(self._theirs)

    def _swap(self, coming: dict) -> dict:
        """换上 coming，交回换下来的同名模块。"""
        names = [name for name in sys.modules if name.partition(".")[0] in self._shared]
        going = {name: sys.modules.pop(name) for name in names}
        sys.modules.update(coming)
        return going


def _is_foreign(name: str) -> bool:
    """在这里 import name 得到的是别人的。"""
    if name in sys.modules:
        origin = getattr(sys.modules[name], "__file__", None)
    else:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return False
        origin = spec.origin
    ours = (_HERE / f"{name}.py", _HERE / name / "__init__.py")
    return origin is None or Path(origin).resolve() not in ours


_home = _Home()
with _home:
    import config
    from poems import options
    from poems.options import Option
    from support import console
    from support.console import UserError

if TYPE_CHECKING:
    from writing.originality import CopyIndex
    from writing.poet import Poet


def __getattr__(name: str) -> type:
    """Poet、Engine 在 writing/ 里；用到时才导入它（和 PyTorch）。"""
    if name in ("Poet", "Engine"):
        with _home:
            from writing import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'infere' has no attribute {name!r}")


class Poem(str):
    """一首诗；copied 是与训练诗最长的相同片段（originality.Copy），没有查过时为 None。"""

    copied = None


# ── 接口 ──────────────────────────────────────────────────────────────


@options.documented
def chat(
    question: str | None = None,
    *,
    n: int = 1,
    check_copy: bool = False,
    checkpoint: str | None = None,
    **given: object,
) -> str | list:
    """写一首诗；没给的选项用 config.py 里此刻的值。总会写出点什么，不会是空的。

    question: 题目，或“写一首……的诗”；n > 1 时返回列表，最好的在前。
    check_copy=True 时返回 Poem，它的 .copied 说明与训练诗最长的相同片段。
    没有模型、选项不认识或越界、问题太长等抛出 UserError。
    """
    given = _gather(given)
    with _home:
        poet = _poet(checkpoint)
        request, n = _request(poet, question, given, n)
        copies = _copy_index(check_copy)
        texts, rows = [""] * n, [None] * n
        for index, text, row in poet.poems(request, n):
            texts[index] += text
            rows[index] = row
        if n > 1:
            from writing import ranking

            texts = [texts[index] for index in ranking.order(poet, texts, rows)]
    poems = [_with_copy(text, copies) if copies is not None else text for text in texts]
    return poems if n > 1 else poems[0]


@options.documented
def chat_stream(
    question: str | None = None, *, checkpoint: str | None = None, **given: object
) -> Iterator[str]:
    """同 chat()，边写边给：逐段给出完整的字，连起来就是 chat() 的结果。不支持 n 与 check_copy。"""
    given = _gather(given)
    with _home:
        poet = _poet(checkpoint)
        request, _ = _request(poet, question, given, 1)
        pieces = poet.poems(request)
    return (text for text in _written(pieces) if text)


def _written(pieces: Iterator) -> Iterator[str]:
    """边写边给；两段之间，使用者的同名模块归使用者。"""
    while True:
        with _home:
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece.text


@options.documented
def rewrite(
    question: str | None,
    poem: str,
    line: int,
    *,
    n: int = 8,
    checkpoint: str | None = None,
    **given: object,
) -> str:
    """改这一行：诗 poem 的第 line 行（从 1 数，空行不算）换一行，别的一字不动；返回整首诗。

    写 n 种，挑最接得上后面的。question 是它的题目，没有就是 None；选项同 chat()，写它时用过的
    藏头、押韵、格子照旧给，换的一行也守着。没有这一行等抛出 UserError。
    """
    given = _gather(given)
    with _home:
        from writing import rewrite as rewriting

        return rewriting.rewrite(_poet(checkpoint), question, poem, line, n, **given)


def titles(poem: str, *, n: int = 5, checkpoint: str | None = None) -> list:
    """给一首诗起题目：诗里最能抬高它的概率的词句，至多 n 个，最合适的在前。"""
    with _home:
        from writing import titles as naming

        return naming.suggest(_poet(checkpoint), poem, n)


def _gather(given: dict) -> dict:
    """没有给的选项取 config 此刻的值。"""
    lacking = config.missing()
    if lacking:
        raise UserError("配置有误：" + "；".join(lacking))
    options.check_names(given)
    return options.merge(config.sampling(), given)


def _poet(checkpoint: str | None = None) -> Poet:
    from writing.poet import Poet

    given = config.CHECKPOINT if checkpoint is None else str(checkpoint)
    return Poet.load(given, _work_dir(), config.DEVICE, config.DTYPE, config.COMPILE)


def _work_dir() -> str:
    """WORK_DIR；没有改过、当前目录里又没有模型时，是 infere.py 旁边。"""
    from checkpoint import models_in

    if config.WORK_DIR == "." and not models_in(Path(".")) and models_in(_HERE):
        return str(_HERE)
    return config.WORK_DIR


def _request(poet: Poet, question: str | None, given: dict, n: int) -> tuple:
    n = options.check("n", n)
    request = poet.request(question, **given)
    for text in request.warnings:
        warnings.warn(text, stacklevel=3)
    return request, n


def _copy_index(wanted: bool) -> CopyIndex | None:
    if not wanted:
        return None
    from writing import originality

    return originality.load(_work_dir())


def _with_copy(text: str, copies: CopyIndex) -> Poem:
    poem = Poem(text)
    poem.copied = copies.longest_copy(text)
    return poem


# ── 对话 ──────────────────────────────────────────────────────────────

COMMANDS = {option.label: option for option in options.TABLE}
_OFF = ("", "无", "关", "否", "off", "默认")
_ON = ("是", "开", "on")


class Repl:
    """一次对话的状态：选项、问过的问题、刚写的诗。ask() 读一行，say() 写文字。"""

    def __init__(self, ask: Callable = input, say: Callable[[str], None] | None = None) -> None:
        self.ask = ask
        self.say = say or console.say
        self.options = {}
        self.history = []
        self.poem = ""  # 刚写的，答案有几首时是最好的那首

    def run(self) -> None:
        """读到 exit 或输入结束为止；Ctrl-C 只停下正在写的诗。"""
        self.say("Chat with GPT (type 'exit' to quit)\n")
        console.enable_history()
        interrupted = False
        while True:
            try:
                line = self.ask("输入：").strip()
            except EOFError:
                self.say("\n")
                return
            except KeyboardInterrupt:
                if interrupted:
                    self.say("\n")
                    return
                interrupted = True
                self.say("\n（再按一次 Ctrl-C，或输入 exit 退出）\n")
                continue
            interrupted = False
            if line.lower() in ("exit", "quit"):
                return
            try:
                self.handle(line)
            except UserError as error:
                self.say(f"出错了：{error}\n")
            except EOFError:  # /退出
                return
            except KeyboardInterrupt:
                self.say("\n（停下了）\n")

    def handle(self, line: str) -> None:
        """处理一行：命令或问题。"""
        if line.startswith(("/", "／")):
            self.command(line[1:].strip())
        elif line or any(self.options.get(option.name) for option in options.CONTROLS):
            self.history.append(line)
            self.answer(line)

    def command(self, text: str) -> None:
        """执行一条 / 命令。"""
        name, _, value = text.partition(" ")
        name, value = name.strip(), value.strip()
        if name in ("帮助", "help", "?", "？", ""):
            self.say(help_text())
        elif name in ("重来", "retry"):
            if not self.history:
                raise UserError("还没有问过问题")
            self.answer(self.history[-1])
        elif name in ("改", "rewrite"):
            self.rewrite(value)
        elif name in ("题目", "title"):
            self.say(f"题目：{'　'.join(titles(self._written()))}\n")
        elif name in ("选项", "options"):
            self.say(self.settings())
        elif name in ("历史", "history"):
            self.say(
                "".join(f"{i}. {line}\n" for i, line in enumerate(self.history, 1)) or "（空）\n"
            )
        elif name in ("清空", "reset"):
            self.options.clear()
            self.say("选项都恢复成默认。\n")
        elif name in ("退出", "exit"):
            raise EOFError
        else:
            self.set(name, value)

    def set(self, name: str, value: str) -> None:
        """改一个选项；空值恢复默认。"""
        if name in options.BY_NAME:
            name = options.BY_NAME[name].label
        name = name.replace("K", "k").replace("P", "p")
        if name not in COMMANDS:
            raise UserError(f"没有 /{name} 这个命令；输入 /帮助 看全部命令")
        option = COMMANDS[name]
        if value.lower() in _OFF:
            self.options.pop(option.name, None)
            self.say(f"{name}：默认\n")
            return
        self.options[option.name] = _convert(option, value)
        self.say(f"{name}：{value}\n")

    def settings(self) -> str:
        """现在的全部选项。"""
        rows, usual = [], config.sampling()
        for name, option in COMMANDS.items():
            if option.name in self.options:
                shown = _shown(self.options[option.name])
            else:
                shown = f"{_shown(usual.get(option.name, option.neutral))}（默认）"
            rows.append(f"/{name}  {shown}\n")
        return "".join(rows)

    def answer(self, question: str) -> None:
        """写诗；只写一首时边写边给。"""
        given = dict(self.options)
        n, check_copy = given.pop("n", 1), given.pop("check_copy", False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if n == 1:
                pieces = chat_stream(question or None, **given)
            else:
                poems = chat(question or None, n=n, **given)
        for item in caught:
            self.say(f"（注意：{item.message}）\n")
        if n == 1:
            poems = [self._stream(pieces)]
        else:
            for number, poem in enumerate(poems, 1):
                self.say(f"回答 {number}：{poem}\n")
        self.poem = poems[0]
        if check_copy:
            self._report_copies(poems)

    def rewrite(self, value: str) -> None:
        """刚写的诗换一行。"""
        poem, given = self._written(), dict(self.options)
        if not value.isdecimal():
            raise UserError("要改第几行？例如：/改 3（空行不算）")
        given.pop("n", None)
        given.pop("check_copy", None)
        self.poem = rewrite(self.history[-1] or None, poem, int(value), **given)
        self.say(f"回答：{self.poem}\n")

    def _written(self) -> str:
        if not self.poem:
            raise UserError("还没有写过诗")
        return self.poem

    def _stream(self, pieces: Iterable[str]) -> str:
        self.say("回答：")
        written = []
        try:
            for piece in pieces:
                written.append(piece)
                self.say(piece)
        except KeyboardInterrupt:
            self.say("\n（停下了）")
        self.say("\n")
        return "".join(written)

    def _report_copies(self, poems: list) -> None:
        copies = _copy_index(True)
        for poem in poems:
            self.say(f"（{copies.longest_copy(poem).describe()}）\n")


def _convert(option: Option, value: str) -> object:
    """命令后面的文字 → 选项的值。"""
    if option.kind is bool or option.switch:
        if value in _ON:
            return True
        if option.kind is bool:
            raise UserError(f"/{option.label} 后面写 是 或 否")
    if option.name == "rhyme":
        from writing import rhyme

        rhyme.target(value)
    if option.kind is str:
        return options.check(option.name, value)
    try:
        number = option.kind(value)
    except ValueError:
        want = "整数" if option.kind is int else "数"
        raise UserError(f"/{option.label} 后面应当是{want}，收到的是 {value!r}") from None
    return options.check(option.name, number)


def _shown(value: object) -> str:
    if value is None:
        return "无"
    return ("否", "是")[value] if isinstance(value, bool) else str(value)


def help_text() -> str:
    """全部命令的说明。"""
    rows = ["直接输入题目，或“写一首……的诗”。命令（后面不写值就恢复默认）：\n"]
    rows += [f"  /{name} 值    {option.note}\n" for name, option in COMMANDS.items()]
    rows.append("  /改 3    刚写的诗换掉第 3 行      /题目    给刚写的诗起题目\n")
    rows.append("  /重来  /选项  /历史  /清空  /帮助    exit 退出；写的时候 Ctrl-C 停下这一首\n")
    return "".join(rows)


def main() -> None:
    """对话。"""
    config.load(__doc__)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    _poet()  # 没有模型就现在说
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    Repl(input if terminal else console.ask).run()


if __name__ == "__main__":
    console.run(main)
