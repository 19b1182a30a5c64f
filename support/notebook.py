"""在笔记本（Jupyter、Colab）里：运行一个脚本，输出边来边显示；原地重画的图。"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

from support.child import Output
from support.console import UserError

ROOT = Path(__file__).resolve().parent.parent


def run(
    script: str, *options: str, watch: Callable[[], object] | None = None, every: float = 3.0
) -> None:
    """运行项目里的一个脚本，等它做完；隔 every 秒叫一次 watch。

    笔记本的停止按钮就是 Ctrl-C：脚本自己收场（训练会存盘），然后抛 KeyboardInterrupt。
    脚本没有成功时抛 UserError。
    """
    process = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / script), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        **_apart(),
    )
    stopped = False
    output = Output(process.stdout)
    while True:
        try:
            _show(output, watch, every)
            break
        except KeyboardInterrupt:
            stopped = True
            process.send_signal(_interrupt())
    code = process.wait()
    if watch is not None:
        watch()
    if stopped:
        raise KeyboardInterrupt
    if code:
        raise UserError(f"{script} 没有成功（退出码 {code}），原因见上。")


def _apart() -> dict[str, Any]:
    """自成一组：停止按钮的信号只由我们转达一次，脚本不会收到两次。"""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _interrupt() -> int:
    """Windows 上送得到另一组的只有 Ctrl-Break。"""
    return getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT)


def _show(output: Output, watch: Callable[[], object] | None, every: float) -> None:
    """来了的字都打印出来，直到读完。"""
    shown = time.monotonic()
    while True:
        piece = output.get(every)
        if piece is None:
            return
        print(piece, end="", flush=True)
        if watch is not None and time.monotonic() - shown >= every:
            watch()
            shown = time.monotonic()


class Picture:
    """笔记本里的一张图，每次叫它都重画、原地换掉；draw(path) 画好了返回 True。"""

    def __init__(self, path: Path, draw: Callable[[Path], bool]) -> None:
        self.path = Path(path)
        self.draw = draw
        self._place: Any = None

    def __call__(self) -> None:
        if not self.draw(self.path):
            return
        try:
            from IPython import display
        except ImportError:
            return
        image = display.Image(data=self.path.read_bytes())
        if self._place is None:
            self._place = display.display(image, display_id=True)
        else:
            self._place.update(image)
