"""Dockerfile 的步骤在一个干净的文件夹里照做一遍：.dockerignore 留下的、入口、健康检查、SIGTERM。

镜像本身没有在这里建过。
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support import artefacts
from tests import tiny_model
from tests.server import wait_until

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
STEPS = [line.split(None, 1) for line in TEXT.splitlines() if line and line[0] != "#"]


def step(name):
    """一种指令的内容；一份 Dockerfile 里只有一处。"""
    (found,) = [rest for word, rest in STEPS if word == name]
    return found


def pattern(text):
    """.dockerignore 的一行 → 正则：* 不过斜线，**/ 过。"""
    parts = [re.escape(part).replace(r"\*", "[^/]*") for part in text.split("**/")]
    return re.compile("(?:.*/)?".join(parts))


def left(root):
    """.dockerignore 留下的文件：后写的行优先，文件夹被排除的，里面的也是。"""
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [
        (pattern(line.lstrip("!")), line[0] == "!") for line in lines if line and line[0] != "#"
    ]
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        names = [part.as_posix() for part in (name, *name.parents)][:-1]
        verdicts = [kept for rule, kept in rules if any(rule.fullmatch(each) for each in names)]
        if path.is_file() and not (verdicts and not verdicts[-1]):
            yield name


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """WORKDIR 里会有的样子。"""
    app = tmp_path_factory.mktemp("image") / "app"
    for name in left(ROOT):
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, app / name)
    return app


def test_only_code_goes_into_the_image(tmp_path):
    code = ("a.py", "web/page.html")
    other = ("best_model.bin", "poetry/data/a.pt", "exp/dataset.bin", ".git/config", ".venv/x.py")
    for name in (*code, *other, "web/__pycache__/app.pyc", "tests/test_a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(ROOT / ".dockerignore", tmp_path)
    assert [name.as_posix() for name in left(tmp_path)] == [*code]


def test_image_has_every_room(image):
    names = {path.name for path in image.iterdir()}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert rooms < names and {"serve.py", "requirements.txt", "sample_poems.json"} < names
    assert {path.name for path in ROOT.glob("*.py")} < names


def test_runs_as_a_plain_user_with_the_versions_of_the_requirements():
    words = [word for word, _ in STEPS]
    assert step("USER") not in ("root", "0") and words.index("USER") < words.index("ENTRYPOINT")
    wanted = "".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("requirements.txt", "requirements-extra.txt")
    )
    installed = [
        item for word, rest in STEPS if word == "RUN" for item in re.findall('"(.*?)"', rest)
    ]
    assert {re.match(r"\w+", item).group() for item in installed} == {
        "torch", "starlette", "uvicorn", "pypinyin"
    }  # fmt: skip
    assert all(re.search(rf"^{re.escape(item)}\b", wanted, re.M) for item in installed)


@pytest.mark.skipif(os.name != "posix", reason="Windows 没有 SIGTERM")
def test_serves_is_healthy_and_stops(image, tmp_path):
    pytest.importorskip("uvicorn", reason="没有安装 uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    names = {"python": sys.executable, "--WORK_DIR=/model": f"--WORK_DIR={tmp_path}"}
    entry = [names.get(word, word) for word in json.loads(step("ENTRYPOINT"))]
    check = json.loads(step("HEALTHCHECK").split("CMD", 1)[1])
    assert check[0] == "python" and step("EXPOSE") == "8000"
    check = [sys.executable, *(word.replace(":8000/", f":{port}/") for word in check[1:])]
    environment = {**os.environ, **dict(pair.split("=") for pair in step("ENV").split())}
    before = sorted(image.rglob("*"))
    process = subprocess.Popen(
        [*entry, "--API_KEY=k", f"--PORT={port}"],
        cwd=image, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

    def health():
        return subprocess.run(check, stderr=subprocess.DEVNULL, check=False).returncode

    def is_listening():
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0 or process.poll() is not None

    try:
        assert wait_until(is_listening, 120)
        assert (image / artefacts.BOX).exists() or health() != 0  # 还没有模型
        tiny_model.save(tmp_path / "best_model.bin")
        assert wait_until(lambda: health() == 0, 120)
        process.terminate()
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    said = err.decode("utf-8").splitlines()  # 还没有模型时被探过一次，只说一遍
    assert process.returncode == 0 and all("模型" in line or "train_gpt" in line for line in said)
    assert out.decode("utf-8").splitlines()[-1] == "已停止。"
    assert sorted(image.rglob("*")) == before  # 代码的文件夹不用能写


def test_a_key_is_asked_for(image, tmp_path):
    """容器要对外监听，没有密钥就不启动，并说怎样给。"""
    entry = [sys.executable, *json.loads(step("ENTRYPOINT"))[1:3]]
    done = subprocess.run(entry, cwd=image, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and "--API_KEY=" in done.stderr
