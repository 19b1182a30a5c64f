"""poem.ipynb：一格一格地运行到底（极小的模型）；有 nbclient 就在真的内核里再走一遍。"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import notebook
from support.console import UserError

ROOT = Path(__file__).resolve().parent.parent
BOOK = json.loads((ROOT / "poem.ipynb").read_text(encoding="utf-8"))
TINY = {
    "VOCAB_SIZE": 300,
    "MAX_SEQ_LEN": 256,
    "GPT_DIM": 16,
    "GPT_HEAD": 2,
    "GPT_FF": 32,
    "GPT_BLOCKS": 1,
    "PROMPTS_PER_POEM": 1,
    "TRAIN_ITER": 4,
    "BATCH_SIZE": 2,
    "ACCUM_STEPS": 1,
    "MAX_NEW_TOKENS": 40,
    "DEVICE": "cpu",
    "COMPILE": "off",
}


def cells(folder: Path) -> list:
    """代码格；写着参数的那一格后面换上极小的一套。"""
    found = []
    for cell in BOOK["cells"]:
        if cell["cell_type"] == "code":
            found.append("".join(cell["source"]))
        if "parameters" in cell["metadata"].get("tags", ()):
            found.append(f"OPTIONS = {TINY}\nWORK = Path({str(folder)!r})")
    return found


def check(folder: Path, text: str) -> None:
    """走到了底：清洗收进了自己的诗，训练画了曲线，写出了诗，说出了模型在哪里。"""
    poems = json.loads((folder / "all_poems.json").read_text(encoding="utf-8"))
    assert "窗" in {poem["title"] for poem in poems} and len(poems) > 200
    assert "训练完成：4 次更新" in text and "100%" in text
    assert (folder / "live.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder / "best_model.bin") in text


def test_cells_are_short_and_clean():
    assert BOOK["nbformat"] == 4 and len({cell["id"] for cell in BOOK["cells"]}) == len(
        BOOK["cells"]
    )
    for cell in BOOK["cells"]:
        assert not cell.get("outputs") and len(cell["source"]) <= 35
    assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in BOOK["cells"]) == 1


def test_every_cell_runs_as_plain_python(tmp_path):
    pytest.importorskip("matplotlib", reason="没有安装 matplotlib")
    driver = tmp_path / "driver.py"
    driver.write_text(
        f"found = {{'__name__': '__main__'}}\nfor text in {cells(tmp_path / '产物')!r}:\n"
        "    exec(compile(text, 'cell', 'exec'), found)\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-X", "utf8", str(driver)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    check(tmp_path / "产物", done.stdout)


def execute(texts: list, cwd: Path) -> tuple[list, list]:
    """在真的内核里运行：(每格的输出文字, 全部输出)。"""
    reason = "没有安装 nbclient 与 ipykernel"
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    import nbformat

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in texts])
    manager = kernel_manager()
    client = nbclient.NotebookClient(
        book, km=manager, timeout=300, resources={"metadata": {"path": str(cwd)}}
    )
    client.execute()
    outputs = [output for cell in book.cells for output in cell.outputs]
    texts = ["".join(each.get("text", "") for each in cell.outputs) for cell in book.cells]
    return texts, outputs


def kernel_manager() -> object:
    """正在用的这个解释器的内核，不管机器上登记了哪些。"""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    manager = AsyncKernelManager()
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager._kernel_spec = KernelSpec(argv=command, display_name="测试", language="python")
    return manager


def test_every_cell_runs_in_a_kernel(tmp_path):
    pytest.importorskip("matplotlib", reason="没有安装 matplotlib")
    texts, outputs = execute(cells(tmp_path / "work"), ROOT)
    check(tmp_path / "work", "".join(texts))
    shown = [output["data"] for output in outputs if "data" in output]
    assert any("image/png" in data for data in shown)
    assert any("text/html" in data for data in shown)  # 下载的链接


def test_scripts_run_inside_the_kernel(tmp_path):
    """%run 在内核里训练，进度条与错误都在格子里；下一个 %run 不受上一个的命令行影响。"""
    words = " ".join(f"--{name}={value}" for name, value in TINY.items())
    run = f"%run {{}}.py --WORK_DIR={tmp_path} {words}"
    raw = f" --RAW_DATA={ROOT / 'sample_poems.json'}"
    texts, _ = execute(
        [
            run.format("data_clean") + raw,
            run.format("hug_face_tokenizer"),
            run.format("train_dataset_one"),
            run.format("train_gpt"),
            run.format("train_gpt") + " --TRAIN_ITER=6",
            "import config; print(config.SEED, config.given() > {'GPT_DIM'})",
            "from infere import chat; print(len(chat('春天', seed=1)) > 0)",
            "%run diagnose.py tokenizer --SEED=7",
            "print(config.SEED, sorted(config.given()), config.GPT_DIM)",
            f"!{sys.executable} train_gpt.py --WORK_DIR={tmp_path} {words}",
        ],
        ROOT,
    )
    assert "100%" in texts[3] and "训练完成：4 次更新" in texts[3]
    assert "续训" in texts[4] and "6/6" in texts[4]
    assert texts[5] == "42 True\n" and texts[6] == "True\n"
    assert texts[8] == "7 ['SEED'] 256\n"
    assert "已经完成" in texts[9]


# ── support/notebook.py ───────────────────────────────────────────────


@pytest.fixture
def script(tmp_path, monkeypatch):
    """写一个脚本，交回它的名字。"""
    monkeypatch.setattr(notebook, "ROOT", tmp_path)

    def make(body):
        (tmp_path / "script.py").write_text(body, encoding="utf-8")
        return "script.py"

    return make


def test_output_is_relayed_whole(script, capsys):
    body = (
        "import sys\nprint('春天' * 9999, sys.argv[1:])\nprint('进度\\r', end='', file=sys.stderr)"
    )
    notebook.run(script(body), "--A=一")
    assert capsys.readouterr().out == "春天" * 9999 + " ['--A=一']\n进度\r"


def test_failure_is_named(script):
    with pytest.raises(UserError, match=r"script\.py 没有成功（退出码 3）"):
        notebook.run(script("raise SystemExit(3)"))


def test_watch_is_called_while_it_runs_and_at_the_end(script, tmp_path):
    seen = []

    def watch():
        seen.append(time.monotonic())
        if len(seen) == 3:
            (tmp_path / "go").touch()

    body = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)"
    notebook.run(script(body), watch=watch, every=0.02)
    assert len(seen) >= 4


@pytest.mark.skipif(sys.platform == "win32", reason="停止按钮在 Windows 上是 Ctrl-Break")
def test_stop_button_reaches_the_script_once(script, capsys):
    body = (
        "import signal, time\nseen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: seen.append(1))\nprint('开始', flush=True)\n"
        "while not seen: time.sleep(0.01)\ntime.sleep(0.2)\nprint('收到', len(seen), '次')"
    )
    pressed = []

    def press():
        if not pressed and "开始" in capsys.readouterr().out:
            pressed.append(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        notebook.run(script(body), watch=press, every=0.05)
    assert "收到 1 次" in capsys.readouterr().out


def test_picture_without_ipython_only_draws(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    drawn = []
    picture = notebook.Picture(tmp_path / "a.png", lambda path: bool(drawn.append(path)) or True)
    picture()
    assert drawn == [tmp_path / "a.png"]
