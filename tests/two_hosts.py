"""两台机器的真实演习：python tests/two_hosts.py（要 root 和 iproute2，约三分钟）。

用两个网络命名空间当两台机器，各有各的磁盘目录，中间一根 veth 网线：
一起训练 → 拔掉 B 的网线 → A 独自接着训练 → 插回去、B 重新加入 → 一起练完。
最后的权重与单进程的同一次训练比较；无论成败都拆掉命名空间、结束进程。
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import checkpoint
import dataset
from support import artefacts, files
from tests import ddp_worker
from tokenizer import BPETokenizer, HFTokenizer

ROOT = Path(__file__).resolve().parent.parent
ADDRESSES = {"a": "10.77.31.1", "b": "10.77.31.2"}
VALUES = {
    "MAX_SEQ_LEN": 64,
    "GPT_DIM": 32,
    "GPT_HEAD": 2,
    "GPT_FF": 64,
    "GPT_BLOCKS": 2,
    "TRAIN_ITER": 4 * 100,
    "ACCUM_STEPS": 4,
    "BATCH_SIZE": 4,
    "EVAL_EVERY": 100000,
    "SAVE_EVERY": 40,
    "SAMPLE_EVERY": 100000,
    "DEVICE": "cpu",
    "DTYPE": "fp32",
    "COMPILE": "off",
    "DIST_TIMEOUT": 0.15,  # 九秒没有消息就算失去联系
}


class Hosts:
    """两个命名空间和连着它们的网线；离开时全部拆掉。"""

    def __init__(self) -> None:
        mark = f"poem{os.getpid() % 100000}"
        self.spaces = {name: f"{mark}{name}" for name in ADDRESSES}

    def __enter__(self) -> Hosts:
        a, b = self.spaces.values()
        for name in (a, b):
            _ip("netns", "add", name)
        _ip("link", "add", a, "netns", a, "type", "veth", "peer", "name", b, "netns", b)
        for host, name in self.spaces.items():
            _ip("-n", name, "addr", "add", f"{ADDRESSES[host]}/24", "dev", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", name, "up")
        return self

    def __exit__(self, *_) -> None:
        for host, name in self.spaces.items():
            self.kill(host)
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                _ip("netns", "del", name)

    def cable(self, host: str, state: str) -> None:
        """插上（up）或拔掉（down）一台机器的网线。"""
        _ip("-n", self.spaces[host], "link", "set", self.spaces[host], state)

    def kill(self, host: str) -> None:
        """结束一台机器上的全部进程。"""
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            for pid in _ip("netns", "pids", self.spaces[host]).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    def start(self, host: str, folder: Path) -> subprocess.Popen:
        """在一台机器上启动 torchrun；输出写进 folder/host.log。"""
        conf = "last_call_timeout=5,read_timeout=10"
        conf += ",is_host=1" if host == "a" else ",is_host=0"
        command = ["ip", "netns", "exec", self.spaces[host], sys.executable]
        command += ["-m", "torch.distributed.run", "--nnodes=1:2", "--nproc_per_node=1"]
        command += ["--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=poem"]
        command += [f"--rdzv-endpoint={ADDRESSES['a']}:29400", f"--rdzv-conf={conf}"]
        command += [f"--local-addr={ADDRESSES[host]}"]
        command += [str(ROOT / "tests" / "ddp_worker.py"), str(folder)]
        environment = {
            **os.environ,
            "GLOO_SOCKET_IFNAME": self.spaces[host],
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # 否则后来的机器等不到主地址
            "OMP_NUM_THREADS": "1",
            "PYTHONUTF8": "1",
            "PYTHONUNBUFFERED": "1",
            "DDP_WORK_DIR": str(folder / host),
        }
        with open(folder / f"{host}.log", "a", encoding="utf-8") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], check=True, capture_output=True, encoding="utf-8")
    return done.stdout


def why_not() -> str | None:
    """不能做这次演习的原因。"""
    if not sys.platform.startswith("linux"):
        return "网络命名空间只有 Linux 有"
    if shutil.which("ip") is None:
        return "没有 iproute2（ip 命令）"
    if os.geteuid() != 0:
        return "不是 root"
    try:
        with Hosts():
            return None
    except subprocess.CalledProcessError as error:
        return f"建不了网络命名空间：{error.stderr.strip()}"


def prepare(folder: Path) -> None:
    """两台机器和单进程各一份数据集。"""
    poems = files.read_json(ROOT / "sample_poems.json")[:80]
    path = folder / "all_poems.json"
    path.write_text(json.dumps(poems, ensure_ascii=False), encoding="utf-8")
    bpe = BPETokenizer()
    bpe.train(["\n\n".join(poem["para"]) for poem in poems], 320)
    tok = HFTokenizer.from_json(bpe.to_json())
    for name in ("a", "b", "single"):
        dataset.build(path, tok, folder / name / "dataset.bin", max_seq_len=64, val_share=0.1)
    values = {**VALUES, "WORK_DIR": str(folder)}
    case = {"name": "run", "values": values, "pause": 1.0, "must_finish": True}
    (folder / "cases.json").write_text(json.dumps([case]), encoding="utf-8")


def updates(folder: Path) -> int:
    """A 的记录写到第几次更新。"""
    try:
        with open(folder / "train_log.csv", encoding="utf-8", newline="") as file:
            return max((int(row["update"]) for row in csv.DictReader(file)), default=0)
    except (OSError, ValueError, TypeError):
        return 0


def wait_until(what: str, ready, seconds: float) -> None:
    """等到 ready() 为真；说出等了多久，超时抛 RuntimeError。"""
    began = time.monotonic()
    while not ready():
        if time.monotonic() - began > seconds:
            raise RuntimeError(f"等了 {seconds:.0f} 秒：{what} 没有发生")
        time.sleep(0.2)
    print(f"{what}（{time.monotonic() - began:.1f} 秒）", flush=True)


def worlds(log: Path) -> list:
    """日志里历次开始训练时的进程数。"""
    text = log.read_text(encoding="utf-8")
    return [
        int(line.split("×")[1].split("，")[0]) for line in text.splitlines() if "设备：" in line
    ]


def rehearse(hosts: Hosts, folder: Path) -> None:
    """演习的经过。"""
    log = folder / "a.log"
    first, second = hosts.start("a", folder), hosts.start("b", folder)
    wait_until("两台一起训练了几次更新", lambda: updates(folder / "a") >= 6, 120)
    hosts.cable("b", "down")
    before = updates(folder / "a")
    wait_until("拔线：A 说失去联系", lambda: "失去联系" in log.read_text(encoding="utf-8"), 60)
    wait_until("A 独自接着训练", lambda: updates(folder / "a") >= before + 6, 120)
    with contextlib.suppress(subprocess.TimeoutExpired):
        second.wait(timeout=20)
    hosts.kill("b")  # 网线拔掉的那台也重启了
    hosts.cable("b", "up")
    second = hosts.start("b", folder)
    wait_until("插回去：B 重新加入", lambda: worlds(log)[-2:] == [1, 2], 120)
    wait_until("两台都练完", lambda: first.poll() is not None and second.poll() is not None, 300)
    if first.returncode or second.returncode:
        raise RuntimeError(f"退出码 {first.returncode}、{second.returncode}")


def drift(folder: Path) -> float:
    """与单进程的同一次训练相比，各张量相对差的最大值。"""
    values = {**VALUES, "WORK_DIR": str(folder / "single")}
    torch.set_num_threads(1)
    silence = io.StringIO()
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        ddp_worker.train({"values": values})
    one, two = (
        checkpoint.load(folder / name / artefacts.CHECKPOINT)["weights"] for name in ("single", "a")
    )
    return max(((two[name] - one[name]).norm() / one[name].norm()).item() for name in one)


def main() -> int:
    reason = why_not()
    if reason:
        print(f"跳过：{reason}")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="two_hosts_"))
    prepare(folder)
    try:
        with Hosts() as hosts:
            rehearse(hosts, folder)
    except RuntimeError as error:
        for host in ADDRESSES:
            print(
                f"── {host}.log ──\n{(folder / f'{host}.log').read_text(encoding='utf-8')[-3000:]}"
            )
        print(f"失败：{error}（日志在 {folder}）")
        return 1
    print(f"A 历次开始时的进程数：{worlds(folder / 'a.log')}")
    print(f"B 的目录里没有检查点：{not (folder / 'b' / artefacts.CHECKPOINT).exists()}")
    worst = drift(folder)
    print(f"最后的权重与单进程相差至多 {worst:.1e}")
    shutil.rmtree(folder)
    return 0 if worst < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
