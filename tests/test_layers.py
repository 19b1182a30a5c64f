"""房子的规矩：房间的次序、导入只向下、导入不做事、按 Python 3.8 的语法写、东西小得装得进脑子。"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOOR = (
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
)
IDEAS = ("config", "embeding", "gpt", "tokenizer", "checkpoint", "dataset")
# 从下到上；上面的可以用下面的，反过来不行
ROOMS = ("support", "kernels", "poems", "ideas", "writing", "training", "web", "checks", "door")
LEVEL = {room: level for level, room in enumerate(ROOMS)}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for pattern in ("*.py", *(f"{room}/*.py" for room in ROOMS))
    for path in ROOT.glob(pattern)
    if path.name != "__init__.py"
}


def room_of(name):
    """模块 → 房间。"""
    if "." in name:
        return name.split(".")[0]
    return "ideas" if name in IDEAS else "door"


def tree(name):
    return ast.parse(MODULES[name].read_text(encoding="utf-8"), feature_version=(3, 8))


def imported(name):
    """模块里（包括函数里）导入的项目模块。"""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & set(MODULES)


def test_every_module_has_a_room():
    assert {name for name in MODULES if "." not in name} == {*DOOR, *IDEAS}
    assert len(list(ROOT.glob("*.py"))) <= 24


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_downwards(name):
    for other in imported(name):
        assert LEVEL[room_of(other)] <= LEVEL[room_of(name)], f"{name} 导入了 {other}"


def test_imports_have_no_circles():
    """同一个房间里也有上下：沿着导入走，回不到自己。"""
    below = {name: imported(name) - {name} for name in MODULES}
    while below:
        ground = {name for name, others in below.items() if not others & set(below)}
        assert ground, f"互相导入：{sorted(below)}"
        below = {name: others for name, others in below.items() if name not in ground}


@pytest.mark.parametrize("name", sorted(set(MODULES) - set(DOOR) - {"config"}))
def test_libraries_do_not_read_config(name):
    assert room_of(name) == "checks" or "config" not in imported(name)


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


@pytest.mark.parametrize("name", sorted(DOOR))
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


@pytest.mark.parametrize("name", ["infere", "train_gpt", "train_gpt_ddp", "serve", "diagnose"])
def test_importing_the_door_loads_no_torch(name):
    """导入 PyTorch 要几秒，其间的 Ctrl-C 要由 console.run 接住，所以在 main() 里才导入。"""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_readme_names_every_module():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in MODULES if f"{name.split('.')[-1]}.py" not in text] == []
