"""对人说话：出错方式、进度条、时长、终端里的宽度。"""

from __future__ import annotations

import sys
import unicodedata


class UserError(Exception):
    """使用者能够自己解决的错误：消息写明错在哪里、保住了什么、怎样修好。"""


def run(main) -> None:
    """脚本入口：把 UserError 变成一条消息（退出码 1），Ctrl-C 退出码 130。"""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = main()
    except UserError as error:
        print(f"出错了：{error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\n已中断。", file=sys.stderr)
        code = 130
    sys.exit(code or 0)


def progress(total, desc: str, unit: str = "首", **options):
    """带剩余时间的进度条（tqdm）；输出不是终端时每 10 秒才刷新一次，控制台缺字时用 ASCII。"""
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    encoding = (getattr(sys.stderr, "encoding", None) or "ascii").lower().replace("-", "")
    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
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
