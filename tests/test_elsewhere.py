"""在别的文件夹里 from infere import chat：那里有同名的模块也不要紧，各用各的；装成包也行。"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from support import bootstrap
from tests import tiny_model

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("config", "dataset", "tokenizer", "checkpoint", "gpt")
PACKAGES = ("poems", "support", "writing", "web")
FIRST = f"sys.path.insert(0, {str(ROOT)!r})\n"
LAST = f"sys.path.append({str(ROOT)!r})\n"
SITE = "import sysconfig; here = sysconfig.get_path('purelib')"
THEIRS = "import config, tokenizer, poems, support.console\n"
WRITE = """
import infere
from infere import chat, chat_stream
infere.config.DEVICE = "cpu"
given = {"seed": 3, "max_new_tokens": 20}
poem = chat("春天", **given)
assert poem and "".join(chat_stream("春天", **given)) == poem
assert len(chat("春天", n=2, **given)) == 2
"""
STILL_THEIRS = """
import config, dataset, tokenizer, poems.verse, support.console
found = (config, dataset, tokenizer, poems, poems.verse, support.console)
assert [module.MINE for module in found] == [1] * 6
import writing
assert writing.MINE == 1 and not hasattr(config, "sampling")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """使用者的文件夹：同名的模块，一个训练好的模型。"""
    made = tmp_path_factory.mktemp("mine")
    for name in NAMES:
        (made / f"{name}.py").write_text("MINE = 1\n", encoding="utf-8")
    for name in PACKAGES:
        (made / name).mkdir()
        for inner in ("__init__", "console", "verse"):
            (made / name / f"{inner}.py").write_text("MINE = 1\n", encoding="utf-8")
    tiny_model.save(made / "best_model.bin")
    return made


def run(code, folder, python=sys.executable, **environment):
    done = subprocess.run(
        [str(python), "-c", f"import sys\n{code}\nprint('好')"],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "好\n"


@pytest.mark.parametrize("path", [FIRST, LAST], ids=["在前", "在后"])
def test_names_that_clash(folder, path):
    run(path + WRITE + (STILL_THEIRS if path == LAST else ""), folder)


@pytest.mark.parametrize("path", [FIRST, LAST], ids=["在前", "在后"])
def test_foreign_modules_already_imported(folder, path):
    """先导入了自己的，再导入本项目；自己的仍是自己的，写诗之后也是。"""
    own = "assert config.MINE == poems.MINE == support.console.MINE == 1\n"
    own += "assert sys.modules['config'] is config and sys.modules['poems'] is poems\n"
    run(THEIRS + path + WRITE + own + "import tokenizer\nassert tokenizer.MINE == 1", folder)


def test_own_common_does_not_matter(folder):
    (folder / "common.py").write_text("raise RuntimeError\n", encoding="utf-8")
    run(LAST + WRITE, folder)


def test_modules_made_by_hand(folder):
    """sys.modules 里放进来的、没有文件的 config。"""
    code = "import types\nsys.modules['config'] = mine = types.ModuleType('config')\n"
    run(f"{code}{FIRST}{WRITE}\nassert sys.modules['config'] is mine", folder)


def test_own_import_between_two_pieces(folder):
    """诗写到一半，使用者的 import 得到的也是自己的。"""
    code = "\npieces = chat_stream('春天', **given)\nnext(pieces)\nimport tokenizer\n"
    run(f"{LAST}{WRITE}{code}assert tokenizer.MINE == 1\n''.join(pieces)", folder)


def test_without_clashes_our_config_is_the_usual_one(tmp_path):
    """没有同名的时候，import config 就是本项目的，像从前一样。"""
    tiny_model.save(tmp_path / "best_model.bin")
    run(f"{LAST}{WRITE}\nimport config\nassert config is infere.config", tmp_path)


def test_installed_as_a_package(folder, tmp_path):
    """pip install -e . 之后：只多出 infere 一个名字，别的名字不占。"""
    pytest.importorskip("setuptools", minversion="64", reason="没有安装 setuptools 64 或更新的")
    source, home = tmp_path / "source", tmp_path / "venv"
    source.mkdir()  # 构建会留下 egg-info，不写在项目里
    for item in ROOT.iterdir():
        if item.suffix in (".py", ".toml") or item.name == "README.md":
            shutil.copy(item, source)
        elif (item / "__init__.py").exists() and item.name != "tests":
            shutil.copytree(item, source / item.name)
    venv.create(home)
    python = bootstrap.venv_python(home)
    site = Path(subprocess.check_output([python, "-c", f"{SITE}; print(here)"], text=True).strip())
    everything = subprocess.check_output([sys.executable, "-c", f"{SITE}; print(here)"], text=True)
    (site / "also.pth").write_text(everything, encoding="utf-8")
    command = [sys.executable, "-m", "pip", f"--python={python}", "install", "-q", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--disable-pip-version-check", "-e", "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run(WRITE + STILL_THEIRS, folder, python)
    alone = tmp_path / "alone"
    alone.mkdir()
    names = f"{NAMES + PACKAGES}"
    run(f"import importlib.util as u\nassert not any(map(u.find_spec, {names}))", alone, python)
    tiny_model.save(alone / "best_model.bin")
    run(WRITE, alone, python)


def test_a_copy_without_the_rest_says_so(tmp_path):
    """pip install . 没有写 -e：只装进了这一个文件。"""
    shutil.copy(ROOT / "infere.py", tmp_path)
    command = [sys.executable, "-X", "utf8", "-c", "import infere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 1 and "pip install -e" in done.stderr
