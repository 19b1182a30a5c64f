"""假的显卡：在 CPU 上真的走一遍 CUDA 的路径。

两个小的 C++ 库让 CPU 版的 PyTorch 多出一个 cuda:0：张量说自己在显卡上，数由 CPU 来算，
显存由一个会记账、会不足的分配器给。所以设备混用、同步次数、算子个数、峰值字节都是真的，
而速度、cuBLAS 与 flash 的舍入、流与 NCCL 不是。

测试的身体（返回能写成 JSON 的 dict 的函数）在子进程里跑：run("tests.fake_cuda.bodies:train", …)。
要有 g++；库按 torch 的版本与源码编一次，放在系统的临时文件夹里。
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SOURCES = ("hooks", "fakecuda")
TORCH = ("2.13",)  # 用到 libtorch 的内部接口，只在试过的版本上用
LIMIT = 1200  # 子进程至多跑这么多秒
_RESULT = "假显卡的结果 "


@functools.lru_cache(maxsize=None)
def problem() -> str | None:
    """用不了的原因；能用时为 None（第一次要编译，约半分钟）。"""
    if not sys.platform.startswith("linux"):
        return "假显卡只在 Linux 上"
    import torch

    if not torch.__version__.startswith(TORCH):
        return f"假显卡只配 PyTorch {'、'.join(TORCH)}，这里是 {torch.__version__}"
    if torch.version.cuda is not None:
        return "假显卡要 CPU 版的 PyTorch"
    if shutil.which("g++") is None:
        return "没有 g++，编不出假显卡"
    try:
        build()
    except subprocess.CalledProcessError as error:
        return f"假显卡没有编成：{error.stderr.decode('utf-8', 'replace')[-300:]}"
    return None


def skip_reason() -> str | None:
    """测试里不跑它的原因。"""
    if os.environ.get("FAKE_CUDA") == "0":
        return "FAKE_CUDA=0"
    return problem()


def build() -> Path:
    """放着两个库的文件夹；没有就先编译。几个进程同时编也不要紧：各编各的，改名算数。"""
    import torch

    texts = [(HERE / f"{name}.cpp").read_bytes() for name in SOURCES]
    key = hashlib.sha256(b"\0".join([torch.__version__.encode(), *texts])).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fake_cuda-{os.getuid()}-{key}"
    if folder.exists():
        return folder
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as made:
        for name in SOURCES:
            subprocess.run(_compile(name, home, made), check=True, capture_output=True)
        ready = Path(tempfile.mkdtemp(dir=folder.parent))
        for name in SOURCES:
            shutil.copy(Path(made) / f"{name}.so", ready)
        try:
            ready.rename(folder)
        except OSError:  # 别的进程先编好了
            shutil.rmtree(ready)
    return folder


def _compile(name, home, folder):
    include, lib = home / "include", home / "lib"
    command = ["g++", "-O1", "-w", "-std=c++20", "-fPIC", "-shared", str(HERE / f"{name}.cpp")]
    command += [f"-I{include}", f"-I{include}/torch/csrc/api/include", f"-L{lib}"]
    return [*command, "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{lib}", "-o", f"{folder}/{name}.so"]


def environment() -> dict:
    """子进程要有的环境变量。"""
    folder = build()
    return {
        "LD_PRELOAD": str(folder / "hooks.so"),
        "FAKE_CUDA_LIBRARY": str(folder / "fakecuda.so"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def run(body: str, limit: float = LIMIT, **options) -> dict:
    """在有假显卡的子进程里调用 body（写成 "模块:函数"），返回它的结果；失败时抛出它的输出。"""
    command = [sys.executable, "-m", "tests.fake_cuda.child", body, json.dumps(options)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment()},
        capture_output=True,
        timeout=limit,
        check=False,
    )
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    found = [line[len(_RESULT) :] for line in lines if line.startswith(_RESULT)]
    if done.returncode or not found:
        raise AssertionError(
            f"{body} 在假显卡上失败（{done.returncode}）：\n"
            + "\n".join(lines[-20:])
            + done.stderr.decode("utf-8", "replace")[-4000:]
        )
    return json.loads(found[-1])


def report(result: dict) -> None:
    """子进程把结果写到标准输出的最后一行。"""
    print(f"\n{_RESULT}{json.dumps(result)}", flush=True)
