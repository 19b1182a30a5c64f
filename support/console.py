"""对人说话：出错方式、进度条、时长、终端里的宽度。"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import unicodedata
from typing import TYPE_CHECKING, Any, Callable

from support import streams

if TYPE_CHECKING:
    from types import FrameType

    from tqdm import tqdm


_INTERRUPTED = "\n已中断。\n"


class UserError(Exception):
    """使用者能够自己解决的错误：消息写明错在哪里、保住了什么、怎样修好。"""


def quiet_imports() -> None:
    """导入的几秒里按 Ctrl-C 也只是一句话：那时什么都还没有做。脚本最前面叫它。"""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # 没有人叫它不要理会
        signal.signal(signal.SIGINT, _leave_at_once)


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(
            2, _INTERRUPTED.encode(getattr(sys.stderr, "encoding", None) or "utf-8", "replace")
        )
    os._exit(130)


def run(main: Callable[[], int | None], must_finish: bool = False) -> None:
    """脚本入口：出错是一条消息（退出码 1），Ctrl-C 是 130，输出的另一头关了是 141。

    must_finish：输出断了也把事情做完（训练）。
    """
    streams.prepare()
    if signal.getsignal(signal.SIGINT) is _leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    heeded = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if must_finish:
        streams.keep_on_without_output()
    try:
        code = _outcome(main)
    except KeyboardInterrupt:
        _on_interrupt(signal.SIG_IGN)  # 按住不放、连按：先把话说完
        code = _failed(_INTERRUPTED.rstrip(), 130)
    if heeded:  # 此后的 Ctrl-C 只是走得快些，不再有回溯
        _on_interrupt(lambda *_: os._exit(code))
    sys.exit(code)


def _on_interrupt(handler: Any) -> None:
    with contextlib.suppress(ValueError):  # 不在主线程时不能装
        signal.signal(signal.SIGINT, handler)


def _outcome(main: Callable[[], int | None]) -> int:
    try:
        try:
            return main() or 0
        finally:
            sys.stdout.flush()  # 写不出去就在这里知道，不留到进程结束时
    except UserError as error:
        return _failed(f"出错了：{error}", 1)
    except BrokenPipeError:
        streams.discard(sys.stdout)
        return 141
    except OSError as error:
        return _failed(f"出错了：{explain(error)}", 1)


def _failed(text: str, code: int) -> int:
    """说出原因；说不出去也照样给退出码。"""
    streams.keep_on_without_output()
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    return code


# 系统错误的名字 → 一句话；{file} 是出事的文件
_TROUBLES = {
    "ENOSPC": "磁盘满了，写不下{file}。请腾出空间，或换一个磁盘：--WORK_DIR=…",
    "EDQUOT": "磁盘配额用完了，写不下{file}。请腾出空间，或换一个磁盘：--WORK_DIR=…",
    "EFBIG": "{file}超过了允许的文件大小。请看 ulimit -f，或换一个文件系统",
    "EROFS": "磁盘是只读的，写不了{file}。请换一个能写的目录：--WORK_DIR=…",
    "EACCES": "没有权限读写{file}。请检查它与所在目录的权限，或换一个目录：--WORK_DIR=…",
    "EPERM": "系统不许读写{file}。请检查它与所在目录的权限，或换一个目录：--WORK_DIR=…",
    "ENOENT": "找不到{file}。它可能刚被移走或删除了",
    "EISDIR": "{file}是文件夹，这里要的是文件",
    "ENOTDIR": "{file}的上一级不是文件夹",
    "ENAMETOOLONG": "文件名太长：{file}",
    "ELOOP": "{file}是绕回自己的链接",
    "EMFILE": "同时打开的文件太多，打不开{file}。请放宽 ulimit -n",
    "EIO": "读写{file}时磁盘出错，请检查硬件与连接",
}


def explain(error: OSError) -> str:
    """系统错误 → 一句说明白的话：哪个文件、出了什么事、怎样办。"""
    name = error.filename2 or error.filename
    file = f" {os.fsdecode(name)[:200]} " if isinstance(name, (str, bytes)) else "文件"
    text = _TROUBLES.get(errno.errorcode.get(error.errno or 0, ""))
    if text is None:
        where = f"（{file.strip()}）" if name else ""
        return f"系统出错{where}：{error.strerror or error}"
    return text.format(file=file).replace(" 。", "。").strip()


def progress(total: float | None, desc: str, unit: str = "首", **options: Any) -> tqdm:
    """带剩余时间的进度条（tqdm）；没有人在看时每 10 秒才刷新一次，控制台缺字时用 ASCII。"""
    from tqdm import tqdm

    quiet = not (streams.is_terminal(sys.stderr) or streams.is_notebook(sys.stderr))
    encoding = (getattr(sys.stderr, "encoding", None) or "ascii").lower().replace("-", "")
    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
        disable=sys.stderr is None,
        ascii=not encoding.startswith("utf"),
        mininterval=10 if quiet else 0.2,
        dynamic_ncols=True,
        **options,
    )


def duration(seconds: float) -> str:
    """秒数 → 人读的时长。"""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds} 秒"
    if seconds < 3600:
        return f"{seconds // 60} 分 {seconds % 60} 秒"
    return f"{seconds // 3600} 小时 {seconds % 3600 // 60} 分"


def width(text: str) -> int:
    """在终端里占几格：汉字与全角标点两格。"""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def pad(text: str, size: int) -> str:
    """右边补空格到 size 格。"""
    return text + " " * (size - width(text))


# ── 对话 ──────────────────────────────────────────────────────────────


def say(text: str) -> None:
    """写到屏幕并立刻显示；控制台显示不了的字换成 ?。"""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def ask(prompt: str) -> str:
    """问一句，读一行；输入结束时抛出 EOFError。"""
    say(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def enable_history() -> None:
    """终端里能用上下键翻历史；没有 readline（Windows 自带的够用）就算了。"""
    if sys.stdin is not None and sys.stdin.isatty():
        try:
            import readline  # noqa: F401
        except ImportError:
            return
