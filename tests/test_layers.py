"""代码的规矩：导入只向下、没有通配导入与裸 except、导入脚本不做事、按 Python 3.8 的语法写。"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {path.stem: path for path in ROOT.glob("*.py")}
LAYERS = (
    {"config", "common"},
    {
        "embeding",
        "tokenizer",
        "sample",
        "records",
        "decode",
        "optim",
        "batching",
        "chat_api",
        "warmstart",
    },
    {"gpt", "prompt", "dedup", "rhyme", "ranks", "runlog", "bootstrap", "scoring", "sources"},
    {"int8", "memory", "mend", "dataset", "live", "controls"},
    {"checkpoint", "originality"},
    {"engine"},
    {"trainer"},
)
SCRIPTS = {
    "data_clean",
    "hug_face_tokenizer",
    "train_BPEtokennizer",
    "train_dataset_one",
    "train_dataset_all",
    "train_gpt",
    "train_gpt_ddp",
    "infere",
    "evaluate",
    "quantize",
    "export",
    "serve",
    "diagnose",
    "benchmark",
    "quickstart",
}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LEVEL.update({name: len(LAYERS) for name in SCRIPTS})


def tree(name):
    return ast.parse(MODULES[name].read_text(encoding="utf-8"), feature_version=(3, 8))


def imported(name):
    """模块里（包括函数里）导入的项目模块。"""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found & set(MODULES)


def test_every_module_has_a_layer():
    assert set(MODULES) == set(LEVEL)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_downwards(name):
    for other in imported(name):
        lower = LEVEL[other] < LEVEL[name]
        assert lower or (name in SCRIPTS and other in SCRIPTS), f"{name} 导入了 {other}"


@pytest.mark.parametrize("name", sorted(set(MODULES) - SCRIPTS - {"config"}))
def test_libraries_do_not_read_config(name):
    assert "config" not in imported(name)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_forbidden_constructs(name):
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), "通配导入"
            assert node.module != "config", "from config import 会冻结旧值"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "裸 except"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert_safe_call(node)


def assert_safe_call(node):
    if node.func.attr == "load" and getattr(node.func.value, "id", "") == "torch":
        chosen = {word.arg: word.value for word in node.keywords}
        assert getattr(chosen.get("weights_only"), "value", False) is True


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_scripts_have_a_guarded_main(name):
    body = tree(name).body
    assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body)
    for node in body:
        if isinstance(node, ast.If):
            assert "__name__" in ast.dump(node.test) or "TYPE_CHECKING" in ast.dump(node.test)
        assert not isinstance(node, (ast.For, ast.While)), "导入时不该做事"


def test_importing_everything_prints_nothing_and_writes_nothing(tmp_path):
    """一个全新的进程里导入全部模块：没有输出，没有文件，也不理会命令行。"""
    names = sorted(MODULES)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['x', '--NOPE=1']\n"
    code += "\n".join(f"import {name}" for name in names)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert done.stdout == b"" and list(tmp_path.iterdir()) == []


def test_importing_infere_loads_no_torch():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import infere\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_readme_names_every_module():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in MODULES if f"{name}.py" not in text] == []
