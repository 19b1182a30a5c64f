"""serve.py：监听的地址、密钥、端口。"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import serve
from support.console import UserError
from tests import server

ROOT = Path(__file__).resolve().parent.parent


def test_open_address_needs_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.5", "poem.example"):
        with pytest.raises(UserError, match="API_KEY"):
            serve.check_address(host, "")
        serve.check_address(host, "key")
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        serve.check_address(host, "")


def test_busy_port_is_explained():
    with serve.listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(UserError, match="--PORT="):
            serve.listen("127.0.0.1", port)


def test_another_model_of_the_folder_is_loaded_by_its_name(tmp_path, monkeypatch):
    from tests import tiny_model

    for name, seed in (("best_model.bin", 0), ("second.bin", 1)):
        tiny_model.save(tmp_path / name, seed=seed)
    monkeypatch.chdir(tmp_path.parent)
    settings = {"CHECKPOINT": "", "WORK_DIR": tmp_path.name, "DEVICE": "cpu"}
    settings.update(DTYPE="fp32", COMPILE="off")
    settings["MAX_CONCURRENT"] = 4
    usual, other = (serve.load_engine(settings, name) for name in ("", "second.bin"))
    assert (usual.path.name, other.path.name) == ("best_model.bin", "second.bin")
    assert usual.rewrite("春", "春天\n花开\n雨落", 2, n=1, seed=1) != other.rewrite(
        "春", "春天\n花开\n雨落", 2, n=1, seed=1
    )


@pytest.mark.skipif(os.name != "posix", reason="Windows 没有这些信号")
def test_stopped_while_it_loads():
    """1 号进程没有默认的处理，所以装了自己的：退出码是 143，不是被信号打死的 -15。"""
    pytest.importorskip("uvicorn", reason="没有安装 uvicorn")
    code = (
        "import sys, time, serve\nsys.argv = ['serve.py']\n"
        "def load(*_):\n    print('载入', flush=True)\n    time.sleep(60)\n"
        "serve.load_first = load\nserve.main()"
    )
    command = [sys.executable, "-X", "utf8", "-c", code]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stdout.readline() == "载入\n"
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "")


@pytest.mark.skipif(os.name != "posix", reason="Windows 没有这些信号")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_end_in_peace(name, tmp_path):
    httpx = pytest.importorskip("httpx", reason="没有安装 httpx")
    pytest.importorskip("uvicorn", reason="没有安装 uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    command = [sys.executable, str(ROOT / "serve.py"), f"--PORT={port}", f"--WORK_DIR={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def is_up():
        try:
            return httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5).status_code == 200
        except httpx.TransportError:
            return process.poll() is not None

    assert server.wait_until(is_up, 60)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    said = err.decode("utf-8").splitlines()  # 至多一句：用的是随附的模型
    assert process.returncode == 0 and all("随附" in line for line in said)
    assert out.decode("utf-8").splitlines()[-1] == "已停止。"
