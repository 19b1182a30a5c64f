"""给 serve.py 加压：32 个客户端各问 20 次，一首不丢、一首不错、内存不涨，最后打印延迟表。

    python -m tests.load_serve [--clients 32] [--requests 20] [--tokens 64] [--名字=值 …]

在空闲的回环端口上起一个 serve.py（--名字=值 交给它；不给 --CHECKPOINT 时用随机权重的小模型），
问完就停。
一半流式、一半非流式；每首诗要与事先单独写的同一题目、同一种子的那首逐字相同。
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from support import console
from support.console import UserError

ROOT = Path(__file__).resolve().parent.parent
DISTINCT = 20  # 多少个不同的（题目, 种子）


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    given, passed = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # 被叫停时也收拾好子进程
    with tempfile.TemporaryDirectory() as folder:
        if not any(word.upper().startswith("--CHECKPOINT") for word in passed):
            passed += [f"--CHECKPOINT={_tiny_checkpoint(folder)}", f"--WORK_DIR={folder}"]
        with Server(passed) as server:
            report = press(server, given.clients, given.requests, given.tokens)
    print_table(report)
    print(json.dumps(report, ensure_ascii=False))
    if report["lost"] or report["mixed_up"]:
        raise UserError("有丢失或不符的回答")


class Server:
    """子进程里的 serve.py。"""

    def __init__(self, arguments: list) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        command = [sys.executable, str(ROOT / "serve.py"), *arguments]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([*command, "--HOST=127.0.0.1", f"--PORT={port}"])

    def __enter__(self):
        import httpx

        while self.process.poll() is None:
            try:
                if httpx.get(self.url + "/v1/models", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.2)
        raise UserError("serve.py 没有起来，原因见上")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)

    def memory_mb(self) -> float | None:
        """服务进程的常驻内存；只有 Linux 知道。"""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return None
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


def press(server, clients: int, requests: int, tokens: int) -> dict:
    """先逐首写好标准答案，再一齐问；给出统计。"""
    import httpx

    questions = [(f"第{number}盏灯下的题目", 1000 + number) for number in range(DISTINCT)]
    with httpx.Client(base_url=server.url, timeout=600) as client:
        wanted = [ask(client, *question, tokens, stream=True)[0] for question in questions]
    before, memory, results = server.memory_mb(), [], []
    barrier = threading.Barrier(clients)

    def one_client(number):
        barrier.wait()
        with httpx.Client(base_url=server.url, timeout=600) as client:
            for turn in range(requests):
                which = (number * 7 + turn) % DISTINCT
                stream = (number + turn) % 2 == 0
                try:
                    text, first, total, written = ask(client, *questions[which], tokens, stream)
                    results.append((text == wanted[which], stream, first, total, written))
                except (httpx.HTTPError, KeyError, ValueError) as error:
                    print(f"丢了一首：{error!r}", file=sys.stderr)
                if turn in (0, requests - 1):
                    memory.append(server.memory_mb())

    threads = [threading.Thread(target=one_client, args=(k,)) for k in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    return summarize(results, clients * requests, seconds, before, memory, server.memory_mb())


def ask(client, question: str, seed: int, tokens: int, stream: bool) -> tuple:
    """问一次：(文字, 第一段文字的秒数或 None, 总秒数, token 数)。"""
    body = {"messages": [{"role": "user", "content": question}], "seed": seed}
    body.update(max_tokens=tokens, stream=stream)
    start = time.perf_counter()
    if not stream:
        response = client.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        answer = response.json()
        text, written = answer["choices"][0]["message"]["content"], answer["usage"]
        return text, None, time.perf_counter() - start, written["completion_tokens"]
    body["stream_options"] = {"include_usage": True}
    text, first, written = "", None, None
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                first = first or time.perf_counter() - start
                text += chunk["choices"][0]["delta"]["content"]
            written = chunk.get("usage") or written
    return text, first, time.perf_counter() - start, written["completion_tokens"]


def summarize(results, expected, seconds, before, memory, after) -> dict:
    """全部回答 → 统计（秒、MB）。"""
    known = [value for value in memory if value is not None]
    firsts = [first for _, _, first, _, _ in results if first is not None]
    return {
        "requests": expected,
        "lost": expected - len(results),
        "mixed_up": sum(not right for right, *_ in results),
        "seconds": round(seconds, 2),
        "requests_per_s": round(len(results) / seconds, 2),
        "tokens_per_s": round(sum(row[4] for row in results) / seconds, 1),
        "first_text": percentiles(firsts),
        "whole_stream": percentiles([row[3] for row in results if row[1]]),
        "whole_plain": percentiles([row[3] for row in results if not row[1]]),
        "memory_mb": {"before": before, "peak": max(known, default=None), "after": after},
    }


def percentiles(values: list) -> dict:
    """p50、p90、p99 与最大值（秒）。"""
    ordered = sorted(values) or [float("nan")]
    picked = {
        f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 90, 99)
    }
    return {name: round(value, 3) for name, value in {**picked, "max": ordered[-1]}.items()}


def print_table(report: dict) -> None:
    print(f"\n{report['requests']} 次请求，丢 {report['lost']}，不符 {report['mixed_up']}；")
    print(f"{report['requests_per_s']} 次/秒，{report['tokens_per_s']} token/秒")
    print("（秒）            p50     p90     p99     最大")
    rows = (("first_text", "第一段文字"), ("whole_stream", "流式写完"), ("whole_plain", "整首返回"))
    for name, label in rows:
        cells = "".join(f"{report[name][key]:8.3f}" for key in ("p50", "p90", "p99", "max"))
        print(f"{label:　<6}{cells}")
    print(f"常驻内存 MB：{report['memory_mb']}")


def _tiny_checkpoint(folder):
    from tests import tiny_model

    path = Path(folder) / "tiny.bin"
    tiny_model.save(path)
    return path


if __name__ == "__main__":
    console.run(main)
