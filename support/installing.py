"""运行 pip：屏幕上只有一行进度，它说的话全在记录里。只用标准库，因为这时可能什么都还没有装。"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Sequence

from support import console, streams
from support.child import Output

_QUIET_SECONDS = 60  # 没有人在看时，隔这么久说一次

# pip 的一行 → 给人看的一句；{} 是括号里的
_STAGES = (
    (r"Collecting ([\w.-]+)", "查找 {}"),
    (r"\s*(?:Downloading|Using cached) (?:\S*/)?([^-/\s]+-[^-+%\s]+)\S* ?(\(.*\))?", "下载 {} {}"),
    (r"\s*Building wheel for ([\w.-]+)", "编译 {}，可能要很久"),
    (r"Installing collected packages: (.*)", "解开文件"),
)


class Progress:
    """由 pip 的输出看出它在做什么。"""

    def __init__(self) -> None:
        self.doing = "开始"
        self.share = ""
        self.installed = 0
        self.errors: list[str] = []

    def read(self, line: str) -> bool:
        """读一行；只是进度数字的那种（记录里用不着）返回 False。"""
        amount = re.match(r"Progress (\d+) of (\d+)", line)
        if amount:
            self.share = f"{int(amount.group(1)) / max(1, int(amount.group(2))):.0%}"
            return False
        if line.startswith("ERROR:"):
            self.errors.append(line)
        if line.startswith("Successfully installed"):
            self.installed = len(line.split()) - 2
        for pattern, said in _STAGES:
            found = re.match(pattern, line)
            if found:
                self.doing = said.format(*(word or "" for word in found.groups())).strip()
                self.share = ""
        return True


class Line:
    """终端里原地换的一行；没有人在看时隔一会儿才写一行。"""

    def __init__(self) -> None:
        self.watched = streams.is_terminal(sys.stdout)
        self.began = time.monotonic()
        self._shown = self.began

    def seconds(self) -> str:
        return console.duration(time.monotonic() - self.began)

    def show(self, text: str) -> None:
        text = f"{text}，已用 {self.seconds()}"
        now = time.monotonic()
        if self.watched:
            columns = shutil.get_terminal_size().columns - 1
            while console.width(text) > columns:
                text = text[:-1]
            print(f"\r{console.pad(text, columns)}", end="", flush=True)
        elif now - self._shown >= _QUIET_SECONDS:
            self._shown = now
            print(text, flush=True)

    def close(self) -> None:
        """擦掉。"""
        if self.watched:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1), end="\r", flush=True)


def pip(python: Path, arguments: Sequence[str], log: Path) -> bool:
    """pip install，装好了没有；不成时说出 pip 的理由。全部输出接在 log 后面。"""
    # -X utf8 让旧 pip 在 GBK 系统上也能读带中文注释的依赖文件
    start = [str(python), "-u", "-X", "utf8", "-m", "pip"]
    command = [*start, "install", "--disable-pip-version-check", *_bar(start), *arguments]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PIP_NO_COLOR": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    progress, line = Progress(), Line()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        try:
            _follow(Output(process.stdout), progress, line, file.write)
        finally:
            line.close()
            code = process.wait()
            file.write(f"退出码 {code}，{line.seconds()}\n\n")
    if code:
        for text in progress.errors[-3:]:
            print(text, flush=True)
        return False
    if progress.installed:
        print(f"装好了 {progress.installed} 个包，{line.seconds()}。", flush=True)
    return True


def _bar(start: Sequence[str]) -> list[str]:
    """pip 24.1 起能把下载的进度写成数字。"""
    answer = subprocess.run([*start, "--version"], stdout=subprocess.PIPE, check=False).stdout
    found = re.match(rb"pip (\d+)\.(\d+)", answer)
    new = found is not None and (int(found.group(1)), int(found.group(2))) >= (24, 1)
    return ["--progress-bar", "raw" if new else "off"]


def _follow(output: Output, progress: Progress, line: Line, write: Callable[[str], object]) -> None:
    """逐行读到完。"""
    rest = ""
    while True:
        piece = output.get(0.5)
        *whole, rest = (rest + (piece or "")).split("\n")
        if piece is None and rest:
            whole.append(rest)
        for text in whole:
            if progress.read(text.rstrip("\r")):
                write(text + "\n")
        if piece is None:
            return
        line.show(f"安装依赖：{progress.doing} {progress.share}".rstrip())
