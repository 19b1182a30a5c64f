"""和训练好的模型对话：python infere.py；或在程序里 from infere import chat, chat_stream。

导入本模块不载入任何东西（连 PyTorch 也不）；第一次 chat() 才载入 best_model.bin，
没有它就用 checkpoint.bin。每个问题单独成诗，不记得上一个。对话里输入 /帮助 看全部命令。
"""

from __future__ import annotations

import sys
import warnings

import config
from support import console
from support.console import UserError


def __getattr__(name):
    """Poet、Engine 在 engine.py 里；用到时才导入它（和 PyTorch）。"""
    if name in ("Poet", "Engine"):
        from writing import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'infere' has no attribute {name!r}")


class Poem(str):
    """一首诗；copied 是与训练诗最长的相同片段（originality.Copy），没有查过时为 None。"""

    copied = None


# ── 接口 ──────────────────────────────────────────────────────────────


def chat(
    question=None,
    *,
    temperature=None,
    top_k=None,
    top_p=None,
    min_p=None,
    repetition_penalty=None,
    no_repeat_ngram=None,
    seed=None,
    max_new_tokens=None,
    min_new_tokens=None,
    context=None,
    author=None,
    lines=None,
    length=None,
    first_line=None,
    acrostic=None,
    rhyme=None,
    n=1,
    check_copy=False,
    checkpoint=None,
):
    """写一首诗；没给的选项用 config.py 里此刻的值。

    question: 题目，或“写一首……的诗”。temperature 0 = 每步取最大；seed 同则诗同。
    author 作者风格；lines 行数；length 大约字数；first_line 第一行；
    acrostic 藏头（每行的第一个字）；rhyme 押韵（True、一个字或韵部名）。
    n > 1 时返回列表，最好的在前。
    check_copy=True 时返回 Poem，它的 .copied 说明与训练诗最长的相同片段。
    没有模型、选项越界、问题太长等抛出 UserError。
    """
    given = dict(locals())
    for name in ("question", "n", "check_copy", "checkpoint"):
        del given[name]
    options = _gather(given)
    poet = _poet(checkpoint)
    request, n = _request(poet, question, options, n)
    copies = _copy_index(check_copy)
    texts, rows = [""] * n, [None] * n
    for index, text, row in poet.poems(request, n):
        texts[index] += text
        rows[index] = row
    if n > 1:
        order = sorted(range(n), key=lambda index: -_quality(texts[index], rows[index]))
        texts = [texts[index] for index in order]
    poems = [_with_copy(text, copies) if copies is not None else text for text in texts]
    return poems if n > 1 else poems[0]


def chat_stream(question=None, *, checkpoint=None, **options):
    """同 chat()，边写边给：逐段给出完整的字，连起来就是 chat() 的结果。不支持 n 与 check_copy。"""
    options = _gather(options)
    poet = _poet(checkpoint)
    request, _ = _request(poet, question, options, 1)
    return (text for _, text, _ in poet.poems(request) if text)


def _gather(given):
    """没有给的选项取 config 此刻的值。"""
    options = dict(given)
    for name, value in config.sampling().items():
        if options.get(name) is None:
            options[name] = value
    return options


def _poet(checkpoint=None):
    from writing import engine

    given = config.CHECKPOINT if checkpoint is None else str(checkpoint)
    return engine.Poet.load(given, config.WORK_DIR, config.DEVICE, config.DTYPE)


def _request(poet, question, options, n):
    from writing import engine

    n = engine.check_value("n", n)
    request = poet.request(question, **options)
    for text in request.warnings:
        warnings.warn(text, stacklevel=3)
    return request, n


def _quality(text, row):
    """候选的好坏：平均每个 token 的对数概率，重复的行扣分。"""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    repeated = 1 - len(set(lines)) / len(lines) if lines else 1.0
    return row.score / max(1, len(row.tokens) - row.given) - 3.0 * repeated


def _copy_index(wanted):
    if not wanted:
        return None
    from writing import originality

    return originality.load(config.WORK_DIR)


def _with_copy(text, copies):
    poem = Poem(text)
    poem.copied = copies.longest_copy(text)
    return poem


# ── 对话 ──────────────────────────────────────────────────────────────

# 命令: (选项, 类型, 说明)
COMMANDS = {
    "温度": ("temperature", float, "越高越奔放，0 = 每次都一样"),
    "前k": ("top_k", int, "只从最可能的 k 个里选，0 = 不限"),
    "前p": ("top_p", float, "只从累计概率 p 以内选，1 = 不限"),
    "最小p": ("min_p", float, "不选比最大概率低太多的，0 = 不限"),
    "重复惩罚": ("repetition_penalty", float, "1 = 不惩罚"),
    "种子": ("seed", int, "同一个种子写同一首诗"),
    "长度": ("max_new_tokens", int, "最多写多少 token"),
    "作者": ("author", str, "仿照谁的风格"),
    "行数": ("lines", int, "写几行"),
    "字数": ("length", int, "大约多少字"),
    "首行": ("first_line", str, "第一行"),
    "藏头": ("acrostic", str, "每行的第一个字"),
    "押韵": ("rhyme", str, "一个字、韵部名，或 是"),
    "几首": ("n", int, "一次写几首，最好的在前"),
    "查抄": ("check_copy", str, "是 = 写完查一查和训练诗像不像"),
}
_OFF = ("", "无", "关", "否", "off", "默认")
_ON = ("是", "开", "on")


class Repl:
    """一次对话的状态：选项与问过的问题。ask() 读一行，say() 写文字。"""

    def __init__(self, ask=input, say=None) -> None:
        self.ask = ask
        self.say = say or _say
        self.options = {}
        self.history = []

    def run(self) -> None:
        """读到 exit 或输入结束为止；Ctrl-C 只停下正在写的诗。"""
        self.say("Chat with GPT (type 'exit' to quit)\n")
        _enable_history()
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
        elif line or any(self.options.get(name) for name in _CONTROLS):
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
        by_option = {option: key for key, (option, _, _) in COMMANDS.items()}
        name = by_option.get(name, name.replace("K", "k").replace("P", "p"))
        if name not in COMMANDS:
            raise UserError(f"没有 /{name} 这个命令；输入 /帮助 看全部命令")
        option, kind, _ = COMMANDS[name]
        if value.lower() in _OFF:
            self.options.pop(option, None)
            self.say(f"{name}：默认\n")
            return
        self.options[option] = _convert(name, option, kind, value)
        self.say(f"{name}：{value}\n")

    def settings(self) -> str:
        """现在的全部选项。"""
        rows = []
        for name, (option, _, _) in COMMANDS.items():
            shown = self.options.get(option)
            if shown is None:
                shown = f"{getattr(config, option.upper(), '无')}（默认）"
            rows.append(f"/{name}  {shown}\n")
        return "".join(rows)

    def answer(self, question: str) -> None:
        """写诗；只写一首时边写边给。"""
        options = dict(self.options)
        n, check_copy = options.pop("n", 1), options.pop("check_copy", False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if n == 1:
                pieces = chat_stream(question or None, **options)
            else:
                poems = chat(question or None, n=n, **options)
        for item in caught:
            self.say(f"（注意：{item.message}）\n")
        if n == 1:
            poems = [self._stream(pieces)]
        else:
            for number, poem in enumerate(poems, 1):
                self.say(f"回答 {number}：{poem}\n")
        if check_copy:
            self._report_copies(poems)

    def _stream(self, pieces):
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

    def _report_copies(self, poems):
        copies = _copy_index(True)
        for poem in poems:
            self.say(f"（{copies.longest_copy(poem).describe()}）\n")


_CONTROLS = ("author", "lines", "length", "first_line", "acrostic", "rhyme")


def _convert(name, option, kind, value):
    if option in ("rhyme", "check_copy") and value in _ON:
        return True
    if option == "check_copy":
        raise UserError("/查抄 后面写 是 或 否")
    if option == "rhyme":
        from writing import rhyme

        rhyme.target(value)
    if kind is str:
        return value
    try:
        number = kind(value)
    except ValueError:
        want = "整数" if kind is int else "数"
        raise UserError(f"/{name} 后面应当是{want}，收到的是 {value!r}") from None
    from writing import engine

    return engine.check_value(option, number)


def help_text() -> str:
    """全部命令的说明。"""
    rows = ["直接输入题目，或“写一首……的诗”。命令（后面不写值就恢复默认）：\n"]
    rows += [f"  /{name} 值    {note}\n" for name, (_, _, note) in COMMANDS.items()]
    rows.append("  /重来  /选项  /历史  /清空  /帮助    exit 退出；写的时候 Ctrl-C 停下这一首\n")
    return "".join(rows)


def _say(text):
    """写到屏幕并立刻显示；控制台显示不了的字换成 ?。"""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _ask(prompt):
    _say(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _enable_history():
    """终端里能用上下键翻历史；没有 readline（Windows 自带的够用）就算了。"""
    if sys.stdin is not None and sys.stdin.isatty():
        try:
            import readline  # noqa: F401
        except ImportError:
            return


def main() -> None:
    """对话。"""
    config.load(__doc__)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    _poet()  # 没有模型就现在说
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    Repl(input if terminal else _ask).run()


if __name__ == "__main__":
    console.run(main)
