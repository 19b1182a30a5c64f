"""控制台不是 UTF-8（GBK、C 语言环境）：每个脚本的说明、出错与平常的话都说得完，不出回溯。"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import console

ROOT = Path(__file__).resolve().parent.parent
# 脚本 → 一个平常的错误：什么也没有的 WORK_DIR 之外，还要写的
ERRORS = {
    "benchmark": (),
    "data_clean": ("--RAW_DATA=没有",),
    "diagnose": ("tokenizer",),
    "evaluate": (),
    "export": (),
    "hug_face_tokenizer": (),
    "infere": ("--CHECKPOINT=没有🌙.bin",),
    "quantize": (),
    "quickstart": ("--POEMS=没有🌙",),
    "serve": ("--HOST=0.0.0.0",),
    "train_BPEtokennizer": (),
    "train_dataset_all": (),
    "train_dataset_one": (),
    "train_gpt": (),
    "train_gpt_ddp": ("--DEVICE=cpu",),
}
POEMS = [  # 有 GBK 写不出的字，也有要丢弃的
    {
        "title": f"月亮🌙{number}",
        "para": [f"{char}山{char}水\n今夜无人入眠🌊，{char}"],
        "author": "ẞ某",
    }
    for number, char in enumerate("春夏秋冬风花雪月")
] + [{"title": "短🌙", "para": ["短"], "author": "某"}]
CHAIN = (
    ("data_clean",),
    ("hug_face_tokenizer", "--VOCAB_SIZE=280"),
    ("train_BPEtokennizer", "--VOCAB_SIZE=280"),
    ("train_dataset_one", "--VAL_SHARE=0.3"),
    ("train_dataset_all", "--VAL_SHARE=0.3"),
    ("diagnose", "tokenizer"),
)
EACH_ENCODING = pytest.mark.parametrize("encoding", ["gbk", "ascii"])


@pytest.fixture
def said(monkeypatch):
    """said(编码, 脚本, 词…) → (退出码, 控制台上的全部文字)：在本进程里照真的入口运行一个脚本。"""
    before = signal.getsignal(signal.SIGINT)

    def run(encoding, name, *words):
        shown = io.BytesIO()
        stream = io.TextIOWrapper(shown, encoding=encoding, errors="strict", line_buffering=True)
        for which in ("stdout", "stderr"):
            monkeypatch.setattr(sys, which, stream)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        with pytest.raises(SystemExit) as ended:
            console.run(importlib.import_module(name).main)
        stream.flush()
        return ended.value.code, shown.getvalue().decode(encoding)

    yield run
    signal.signal(signal.SIGINT, before)


def test_every_script_is_tried():
    scripts = {path.stem for path in ROOT.glob("*.py") if "console.run(" in path.read_text("utf-8")}
    assert scripts == set(ERRORS)


@EACH_ENCODING
@pytest.mark.parametrize("name", ERRORS)
def test_help_and_errors(name, encoding, said, tmp_path):
    code, text = said(encoding, name, "--help")
    assert code == 0 and text.count("\n") > 2
    code, text = said(encoding, name, "--春天🌙=1")
    assert code in (1, 2) and text.strip()
    where = () if name == "quickstart" else (f"--WORK_DIR={tmp_path}",)
    code, text = said(encoding, name, *ERRORS[name], *where)
    assert code == 1 and text.strip()


@EACH_ENCODING
def test_ordinary_words(encoding, said, tmp_path):
    raw = tmp_path / "诗.json"
    raw.write_text(json.dumps(POEMS, ensure_ascii=False), encoding="utf-8")
    for name, *words in CHAIN:
        code, text = said(encoding, name, *words, f"--WORK_DIR={tmp_path}", f"--RAW_DATA={raw}")
        assert code == 0 and "?" in text, name


CONSOLES = {
    "gbk": {"PYTHONIOENCODING": "gbk"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("console_name", CONSOLES)
def test_a_real_process(console_name, tmp_path):
    """真的进程：连文件名的编码也照控制台的。"""
    folder = tmp_path / "我的诗"
    folder.mkdir()
    (folder / "诗🌙.json").write_text(json.dumps(POEMS, ensure_ascii=False), encoding="utf-8")
    command = [sys.executable, str(ROOT / "data_clean.py"), f"--WORK_DIR={folder}"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [*command, f"--RAW_DATA={folder / '诗🌙.json'}"],
        env={**kept, **CONSOLES[console_name]},
        cwd=tmp_path,
        capture_output=True,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    poems = json.loads((folder / "all_poems.json").read_text(encoding="utf-8"))
    assert [poem["title"] for poem in poems] == [poem["title"] for poem in POEMS[:-1]]
