"""说明里写的都是真的：链接、文件、脚本、配置、选项、命令都有；数字旁边有命令；中英两份一样。"""

from __future__ import annotations

import ast
import re
import unicodedata
from pathlib import Path

import pytest

import config
import infere
import quickstart
from poems import options

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
}
EACH = pytest.mark.parametrize("name", TEXTS)
README, ENGLISH = TEXTS["README.md"], TEXTS["README_en.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
# 别人的名字：环境变量、torchrun 与 docker 的参数
THEIRS = {
    "CUDA",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
}
FILES = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.rglob("*.*"))
    if not {".venv", "build", ".git"} & set(path.parts)
]
SOURCE = "\n".join(
    (ROOT / name).read_text(encoding="utf-8") for name in FILES if name.endswith(".py")
)


def prose(text):
    """代码块以外的文字。"""
    return FENCE.sub("", text)


def spans(text):
    """行内代码。"""
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands(text):
    """代码块里的命令，去掉注释，续行接上。"""
    found = []
    for language, code in FENCE.findall(text):
        if language in ("bash", "bat"):
            lines = code.replace("\\\n", " ").splitlines()
            found += [re.sub(r"\s+#.*|^#.*", "", line).strip() for line in lines]
    return [" ".join(line.split()) for line in found if line]


def everything_typed(text):
    """命令与行内代码：使用者照抄的一切。"""
    return [*commands(text), *spans(text)]


# ── 链接与文件 ────────────────────────────────────────────────────────


def slugs(text):
    """GitHub 给标题的锚。"""
    for title in re.findall(r"^#+ (.+)$", prose(text), re.M):
        kept = [c for c in title.lower() if unicodedata.category(c)[0] in "LMN" or c in "_- "]
        yield "".join(kept).replace(" ", "-")


def links(text):
    plain = re.sub(r"`[^`\n]*`", "", prose(text))
    return re.findall(r"\]\(([^)\s]+)\)", plain) + re.findall(r'<img src="([^"]+)"', plain)


@EACH
def test_links_lead_somewhere(name):
    for link in links(TEXTS[name]):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in slugs(TEXTS[target.relative_to(ROOT).as_posix()]), link


@EACH
def test_files_named_exist(name):
    """脚本、房间里的文件、文档：有斜线的或 .py 结尾的。"""
    for text in everything_typed(TEXTS[name]):
        for path in re.findall(r"(?<![\w/.*])((?:[\w-]+/)*[\w-]+\.(?:py|ipynb|md|toml))\b", text):
            if not path.startswith(("export_", "RawPoem")):
                made = f'"{path}"' in SOURCE  # 脚本写出来的
                assert made or any(f"/{path}" in f"/{each}" for each in FILES), path
        for module in re.findall(r"python -m (tests[\w.]*|support[\w.]*)", text):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


# ── 配置与选项 ────────────────────────────────────────────────────────


@EACH
def test_settings_on_command_lines_exist(name):
    known = {*config.names(), "NAME", *THEIRS}  # --NAME=value 是在说写法
    known |= {name for name in ("POEMS",) if hasattr(quickstart, name)}  # quickstart.py 自己的
    known |= {"ONLY", "TIMES"}  # python -m tests.faults 的
    for text in everything_typed(TEXTS[name]):
        for word in re.findall(r"--([A-Z][A-Z_]+)\b", text):
            assert word in known, f"--{word}"


@EACH
def test_upper_case_names_exist(name):
    """`TOP_K`、`SAVE_EVERY=…`：配置，或代码里真有的名字。"""
    for span in spans(TEXTS[name]):
        found = re.fullmatch(r"([A-Z][A-Z]*_[A-Z_]+)(=\S+)?", span)
        if found and found.group(1) not in (*config.names(), *THEIRS):
            assert re.search(rf"\b{found.group(1)}\b", SOURCE), span


def calls(text):
    """python 代码块与行内代码里的 chat()、chat_stream()。"""
    sources = [code for language, code in FENCE.findall(text) if language == "python"]
    sources += [span for span in spans(text) if re.fullmatch(r"chat(_stream)?\(.*\)", span)]
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "chat",
                "chat_stream",
            ):
                yield node


@EACH
def test_options_of_chat_exist(name):
    known = {"n", "check_copy", "checkpoint", *options.BY_NAME}
    for node in calls(TEXTS[name]):
        assert {word.arg for word in node.keywords} <= known, ast.dump(node)


def test_commands_of_the_repl_exist():
    known = re.findall(r"/(\w+)", infere.help_text())
    for name in ("README.md", "README_en.md"):
        for word in re.findall(r"`/([\u4e00-\u9fff]\w*)", TEXTS[name]):
            assert word in known, word


def test_settings_shown_are_the_defaults():
    """配置说明一节里写的值，就是 config.py 的。"""
    for text in (README, ENGLISH):
        (code,) = [code for _, code in FENCE.findall(text) if "GPT_BLOCKS = " in code]
        for node in ast.parse(code).body:
            assert ast.literal_eval(node.value) == getattr(config, node.targets[0].id)


# ── 数字旁边有命令 ────────────────────────────────────────────────────

UNIT = r"倍|比特|万行|万个 token|毫秒|times|bits per|,000 lines|million tokens|token/s|GB/s"
FIGURE = re.compile(rf"\d\s*(?:{UNIT})|\*\*\d+\.\d+\*\*|\d\.\d+ ?%|\d → \d")
MADE_BY = re.compile(r"(python|torchrun)\S* \S+|docs/LOG\.md")


@pytest.mark.parametrize("text", [README, ENGLISH], ids=["README.md", "README_en.md"])
def test_every_figure_has_the_command_that_makes_it(text):
    """量出来的数，同一段或紧挨着的一段里有做出它的命令，或者指向实验记录。"""
    blocks = ["", *re.split(r"\n{2,}", text), ""]
    for before, block, after in zip(blocks, blocks[1:], blocks[2:]):
        if FIGURE.search(block) and not block.startswith("```"):
            assert MADE_BY.search("\n".join((before, block, after))), block[:80]


# ── 两份 README ───────────────────────────────────────────────────────


def shape(text):
    """标题的级别、代码块（去掉注释）、表的大小、图与外部的链接，按次序。"""
    headings = [len(marks) for marks in re.findall(r"^(#+) ", prose(text), re.M)]
    tables = [
        (len(block.strip().splitlines()), block.strip().splitlines()[0].count("|"))
        for block in re.findall(r"(?:^\|.*\n)+", prose(text), re.M)
    ]
    outside = [link for link in links(text) if link.startswith("http") or link.endswith(".png")]
    return {"标题": headings, "表": tables, "图与链接": outside}


def test_both_readmes_have_the_same_parts():
    assert shape(ENGLISH) == shape(README)


def test_both_readmes_have_the_same_commands():
    assert commands(ENGLISH) == commands(README)


def test_both_readmes_have_the_same_code():
    def trees(text):
        found = [code for language, code in FENCE.findall(text) if language == "python"]
        return [ast.dump(ast.parse(code)) for code in found]

    assert trees(ENGLISH) == trees(README)


def test_both_readmes_name_the_same_things():
    """行内代码里的脚本、配置、选项：一份里有的另一份也有。"""

    def names(text):
        words = re.findall(r"[A-Za-z_][\w./-]*", " ".join(spans(text)))
        return {word for word in words if "_" in word or word.endswith((".py", ".bin", ".md"))}

    assert names(ENGLISH) ^ names(README) == set()


def test_first_screen():
    """开头就有一首诗、图与两条命令，接着是“我想…”的表。"""
    start = README[: README.index("\n## ")]
    assert start.index("<br>") < start.index("docs/page.png") < start.index("python quickstart.py")
    assert start.index("python -m tests") < start.index("| 我想… | 命令 |")
    assert all((ROOT / name).exists() for name in ("poem.ipynb", "Dockerfile", "quickstart.py"))
