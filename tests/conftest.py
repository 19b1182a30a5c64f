"""测试共用：让项目根目录可导入，线程数固定，不受外面环境变量影响。"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["POEM_CACHE"] = os.devnull  # 写诗不在后台编译，也不用这台机器上编好的
os.environ.setdefault("OMP_NUM_THREADS", "1")  # 子进程也是：小模型用两个线程，机器一忙就慢百倍


def _heed_signals() -> None:
    """在 nohup 之下、在后台跑测试时这两个信号被忽略，子进程会继承；测试要看的正是它们。"""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    """小模型多线程反而慢；线程数固定，结果才逐位可重现。"""
    _heed_signals()
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def no_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """随附的模型当作没有：测试看的是没有模型时怎样；要它的测试自己放一个。"""
    import checkpoint

    monkeypatch.setattr(checkpoint, "BOX_FILE", ROOT / "nowhere" / "poem.bin")


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """编译好的写诗的核；这台机器编不了就跳过。"""
    from kernels import compiler

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POEM_CACHE", str(tmp_path_factory.mktemp("kernels")))
        if compiler.problem():
            pytest.skip(compiler.problem())
        return compiler.pick("on")
