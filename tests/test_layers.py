"""房子的规矩：房间的次序、导入只向下、导入不做事、按 Python 3.8 的语法写、东西小得装得进脑子。

房间的次序、door 与 ideas 里有哪些模块，读自 README 的房间图。
python -m tests.test_layers 打印大小。
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import artefacts

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULE_LINES, CLASS_LINES, METHODS, FUNCTION_LINES = 450, 250, 20, 50
TOP_FILES = 24
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NAMEDTUPLE = ("_replace", "_asdict", "_fields", "_make")  # 有下划线，却是公开的


def picture():
    """README 里的房间图：从上到下 [(房间, 那一行其余的文字), …]。"""
    block = re.search(r"### 房间\n.*?```\n(.*?)```", README, re.DOTALL).group(1)
    return re.findall(r"^([a-z]+)/? +(.*)$", block, re.MULTILINE)


PICTURE = dict(picture())
DOOR, IDEAS = (re.findall(r"[A-Za-z]\w*", PICTURE[room], re.ASCII) for room in ("door", "ideas"))
# 从下到上；上面的可以用下面的，反过来不行
ROOMS = list(PICTURE)[::-1]
LEVEL = {room: level for level, room in enumerate(ROOMS)}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for pattern in ("*.py", *(f"{room}/*.py" for room in ROOMS))
    for path in ROOT.glob(pattern)
    if path.name != "__init__.py"
}
EACH_MODULE = pytest.mark.parametrize("name", sorted(MODULES))


def room_of(name):
    """模块 → 房间。"""
    if "." in name:
        return name.split(".")[0]
    return "ideas" if name in IDEAS else "door"


@functools.lru_cache(maxsize=None)
def tree(name):
    return ast.parse(MODULES[name].read_text(encoding="utf-8"), feature_version=(3, 8))


def nodes(name, *kinds):
    return [node for node in ast.walk(tree(name)) if isinstance(node, kinds)]


def imported(name):
    """模块里（包括函数里）导入的项目模块。"""
    found = set()
    for node in nodes(name, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & set(MODULES)


# ── 房间与导入 ────────────────────────────────────────────────────────


def test_every_module_has_a_room():
    assert {name for name in MODULES if "." not in name} == {*DOOR, *IDEAS}
    assert len(list(ROOT.glob("*.py"))) <= TOP_FILES
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders - {"tests"} <= set(ROOMS)


@EACH_MODULE
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


# ── 写法 ──────────────────────────────────────────────────────────────


@EACH_MODULE
def test_no_forbidden_constructs(name):
    for node in nodes(name, ast.Import, ast.ImportFrom, ast.ExceptHandler, ast.Call):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), "通配导入"
            assert node.module != "config", "from config import 会冻结旧值"
        if isinstance(node, ast.Import):
            assert all(alias.name != "pickle" for alias in node.names)
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "裸 except"
        if isinstance(node, ast.Call):
            assert_safe_call(node)


def assert_safe_call(node):
    """没有 eval、exec；torch.load 只读普通类型；读写文字都说明编码。"""
    called = getattr(node.func, "attr", getattr(node.func, "id", ""))
    words = {word.arg: word.value for word in node.keywords}
    if isinstance(node.func, ast.Name):
        assert called not in ("eval", "exec")
    elif called == "load" and getattr(node.func.value, "id", "") == "torch":
        assert getattr(words.get("weights_only"), "value", False) is True
    if called in ("read_text", "write_text"):
        assert {"encoding", None} & set(words) or len(node.args) > 1, f"第 {node.lineno} 行没有编码"


@EACH_MODULE
def test_annotations_are_not_evaluated(name):
    future = [node for node in tree(name).body if isinstance(node, ast.ImportFrom)][:1]
    assert [node.module for node in future] == ["__future__"]


@EACH_MODULE
def test_every_function_is_annotated(name):
    missing = []
    for node in nodes(name, *FUNCTIONS):
        given = node.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        bare = [word.arg for word in every if word and word.annotation is None]
        bare = [word for word in bare if word not in ("self", "cls")]
        if bare or node.returns is None:
            missing.append(f"{node.name}:{node.lineno}")
    assert missing == []


@EACH_MODULE
def test_no_private_names_of_others(name):
    """other._private 只能出现在定义它的模块里；库的私有函数（torch._dynamo 之类）不算。"""
    defined = names_defined(name)
    packages = {
        (alias.asname or alias.name).split(".")[0]
        for node in nodes(name, ast.Import)
        for alias in node.names
        if alias.name not in MODULES
    }
    found = [
        f"{ast.dump(node.value)[:60]}.{node.attr}:{node.lineno}"
        for node in nodes(name, ast.Attribute)
        if node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in (*defined, *NAMEDTUPLE)
        and root_of(node) not in {"self", "cls", "super", *packages}
    ]
    assert found == []


@EACH_MODULE
def test_children_leave_private_names_of_parents_alone(name):
    """别的模块里的父类，它的 _名字 子类不用也不改写。"""
    mine, found = nodes(name, ast.ClassDef), []
    for node in mine:
        parents = [parent for parent in parents_of(node) if parent not in mine]
        theirs = {word for parent in parents for word in private_names(parent)}
        found += [f"{node.name}.{word}" for word in sorted(theirs & private_names(node))]
    assert found == []


def private_names(node):
    """类里定义的、经 self 用到的单下划线名字。"""
    words = {inner.name for inner in node.body if isinstance(inner, FUNCTIONS)}
    words |= {
        inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and getattr(inner.value, "id", "") == "self"
    }
    return {word for word in words if word.startswith("_") and not word.startswith("__")}


def root_of(node):
    """a.b._c → 直接拥有 _c 的名字；torch.x._c → torch；super()._c → super。"""
    owner = node.value
    if isinstance(owner, ast.Call):
        owner = owner.func
    if isinstance(owner, ast.Name):
        return owner.id
    while isinstance(owner, ast.Attribute):
        owner = owner.value
    name = getattr(owner, "id", "")
    return "" if name in ("self", "cls") else name


def names_defined(name):
    """模块里定义的名字：函数、类、变量、字段与 self 的属性。"""
    found = {node.name for node in nodes(name, *FUNCTIONS, ast.ClassDef)}
    found |= {node.id for node in nodes(name, ast.Name) if isinstance(node.ctx, ast.Store)}
    return found | {attr for node in nodes(name, ast.ClassDef) for attr in attributes_set(node)}


@EACH_MODULE
def test_attributes_are_born_in_init(name):
    late = [
        f"{node.name}.{attr}"
        for node in nodes(name, ast.ClassDef)
        for attr in sorted(attributes_set(node) - attributes_born(node))
    ]
    assert late == []


def attributes_set(node):
    """类的方法里赋值过的 self 属性。"""
    return {
        inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute)
        and isinstance(inner.ctx, ast.Store)
        and getattr(inner.value, "id", "") == "self"
    }


def attributes_born(node):
    """类里写明的字段、属性（property 的 setter），__init__ 里赋值的属性，连同父类的。"""
    born = set()
    for inner in node.body:
        if isinstance(inner, ast.AnnAssign):
            born.add(inner.target.id)
        elif isinstance(inner, ast.Assign):
            born |= {target.id for target in inner.targets if isinstance(target, ast.Name)}
        elif isinstance(inner, FUNCTIONS):
            born.add(inner.name)
            if inner.name in ("__init__", "__new__"):
                born |= attributes_set(inner)
    for parent in parents_of(node):
        born |= attributes_born(parent)
    return born


def parents_of(node):
    """项目里的父类。"""
    names = [getattr(base, "attr", getattr(base, "id", "")) for base in node.bases]
    return [parent for word in names for parent in CLASSES.get(word, ()) if parent is not node]


CLASSES = {}
for _module in MODULES:
    for _node in nodes(_module, ast.ClassDef):
        CLASSES.setdefault(_node.name, []).append(_node)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"support.artefacts"}))
def test_artefact_names_are_said_once(name):
    """文件名只写在 support/artefacts.py；说明文字里可以提到。"""
    files = {value for key, value in vars(artefacts).items() if key.isupper()}
    found = [node for node in nodes(name, ast.Constant) if node.value in files]
    assert [f"{node.value}:{node.lineno}" for node in found] == []


# ── 大小 ──────────────────────────────────────────────────────────────


def lines_of(node):
    return node.end_lineno - node.lineno + 1


def length(name):
    return len(MODULES[name].read_text(encoding="utf-8").splitlines())


def methods_of(node):
    return sum(isinstance(inner, FUNCTIONS) for inner in node.body)


@EACH_MODULE
def test_modules_are_small(name):
    assert length(name) <= MODULE_LINES


@EACH_MODULE
def test_classes_are_small(name):
    large = [
        f"{node.name}：{lines_of(node)} 行、{methods_of(node)} 个方法"
        for node in nodes(name, ast.ClassDef)
        if lines_of(node) > CLASS_LINES or methods_of(node) > METHODS
    ]
    assert large == []


@EACH_MODULE
def test_functions_are_short(name):
    found = nodes(name, *FUNCTIONS)
    long = [
        f"{node.name}：{lines_of(node)} 行" for node in found if lines_of(node) > FUNCTION_LINES
    ]
    assert long == []


def print_sizes():
    """每个房间的模块数与行数，全屋最大的模块、类、函数。"""
    for room in reversed(ROOMS):
        mine = [name for name in MODULES if room_of(name) == room]
        print(f"{room:<10}{len(mine):>4} 个模块{sum(map(length, mine)):>7,} 行")
    print(f"{'合计':<8}{len(MODULES):>4} 个模块{sum(map(length, MODULES)):>7,} 行\n")
    classes = [(node, name) for name in MODULES for node in nodes(name, ast.ClassDef)]
    functions = [(node, name) for name in MODULES for node in nodes(name, *FUNCTIONS)]
    print(
        "最大的模块", *(f"{n} {length(n)}" for n in sorted(MODULES, key=length)[:-4:-1]), sep="  "
    )
    for title, found, measure in (
        ("最大的类", classes, lines_of),
        ("方法最多", classes, methods_of),
        ("最长的函数", functions, lines_of),
    ):
        largest = sorted(found, key=lambda pair: measure(pair[0]))[:-4:-1]
        print(title, *(f"{n}.{node.name} {measure(node)}" for node, n in largest), sep="  ")


# ── README ────────────────────────────────────────────────────────────


def named_in_readme():
    """README 目录树里的模块，照 MODULES 的写法。"""
    block = re.search(r"### 每个文件一行\n.*?```\n(.*?)```", README, re.DOTALL).group(1)
    found, folder = [], ""
    for line in block.splitlines():
        room = re.match(r"[├└]── (\w+)/", line)
        module = re.match(r"(│   )?[├└]── (\w+)\.py\b", line)
        folder = f"{room.group(1)}." if room else folder
        if module:
            found.append((folder if module.group(1) else "") + module.group(2))
    return found


def test_readme_names_every_module():
    """目录树里每个模块一行，不多不少。"""
    assert sorted(named_in_readme()) == sorted(MODULES)


if __name__ == "__main__":
    print_sizes()
