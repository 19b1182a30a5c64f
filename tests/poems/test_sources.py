"""sources.py、fields.py、blocks.py、folder.py：别处的诗集写法，读出来的题目、作者、正文都要对。"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest

from poems import blocks, mend, records, sources
from poems.folder import readable
from support.console import UserError

A = "火车开走以后\n铁轨还在发热\n我把手贴上去\n听见远方在慢慢变冷"
B = "一盏灯站在巷口\n等一个忘记回家的人\n雨落下来，它也不躲"
C = "窗子开着\n屋里没有人\n风把日历翻到了冬天"
FLAT_A, FLAT_B = A.replace("\n", "，") + "。", B.replace("\n", "，") + "。"
TWO = [("旧站台", "某甲", A), ("灯", "某乙", B)]
LINES_A = A.split("\n")


def dumps(*values):
    return "\n".join(json.dumps(value, ensure_ascii=False) for value in values)


def chat(*turns):
    names = ("system", "user", "assistant")
    return [{"role": role, "content": said} for role, said in zip(names, turns)]


def read(tmp_path, name, content):
    """写一个文件，像 data_clean 那样读成 [(题目, 作者, 正文)] 与读法。"""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    [file] = sources.find_files(tmp_path)[0]
    reading = sources.open_file(file, lambda size: None)
    found = []
    for raw in reading.poems:
        assert raw.reason is None, raw
        poem = mend.mend(raw.title, raw.body, raw.author, 1)
        found.append((poem.title, poem.author, "\n\n".join(poem.para)))
    return found, reading


CASES = {
    "csv": (
        "a.csv",
        f"题目,朝代,作者,内容\n旧站台,今,某甲,{FLAT_A}\n灯,今,某乙,{FLAT_B}\n",
        "flat",
    ),
    "csv 引号里换行": (
        "a.csv",
        f'title,author,content\r\n旧站台,某甲,"{A}"\r\n灯,某乙,"{B}"\r\n',
        TWO,
    ),
    "tsv 有 BOM": (
        "a.tsv",
        f"\ufeff标题\t作者\t正文\n旧站台\t某甲\t{FLAT_A}\n灯\t某乙\t{FLAT_B}\n",
        "flat",
    ),
    "csv 后缀 .txt": (
        "a.txt",
        f"title,author,text\n旧站台,某甲,{FLAT_A}\n灯,某乙,{FLAT_B}\n",
        "flat",
    ),
    "csv GBK": (
        "a.csv",
        f"标题,诗人,诗文\n旧站台,某甲,{FLAT_A}\n灯,某乙,{FLAT_B}\n".encode("gbk"),
        "flat",
    ),
    "每行一首": ("a.txt", f"旧站台:{FLAT_A}\n灯：{FLAT_B}\n窗：{FLAT_A[:20]}\n", 3),
    "题目 制表符 正文": ("a.txt", f"旧站台\t{FLAT_A}\n灯\t{FLAT_B}\n窗\t{FLAT_A[:20]}\n", 3),
    "编号的题目": (
        "a.txt",
        f"1. 旧站台\n{A}\n\n2. 灯\n{B}\n",
        [("旧站台", "佚名", A), ("灯", "佚名", B)],
    ),
    "粗体的题目": (
        "a.md",
        f"**旧站台**\n\n{A}\n\n**灯**\n\n{B}\n",
        [("旧站台", "佚名", A), ("灯", "佚名", B)],
    ),
    "一首诗的几节有编号": (
        "a.txt",
        f"旧站台\n\n1. 冬\n{A}\n\n2. 春\n{B}\n",
        [("旧站台", "佚名", f"1. 冬\n{A}\n\n2. 春\n{B}")],
    ),
    "竖线": (
        "a.jsonl",
        dumps({"title": "旧站台", "author": "某甲", "content": A.replace("\n", "|")}),
        [TWO[0]],
    ),
    "斜线": (
        "a.jsonl",
        dumps({"title": "旧站台", "author": "某甲", "content": A.replace("\n", " / ")}),
        [TWO[0]],
    ),
    "\\r\\n 字样": (
        "a.jsonl",
        dumps({"title": "旧站台", "author": "某甲", "content": A.replace("\n", "\\r\\n")}),
        [TWO[0]],
    ),
    "全角空格": ("a.txt", "灯\n" + B.replace("\n", "\u3000\u3000"), [("灯", "佚名", B)]),
    "para 每项一行": (
        "a.json",
        json.dumps([{"title": "旧站台", "author": "某甲", "para": LINES_A}]),
        [TWO[0]],
    ),
    "行写成对象": (
        "a.json",
        json.dumps(
            [{"title": "旧站台", "author": "某甲", "lines": [{"line": x} for x in LINES_A]}]
        ),
        [TWO[0]],
    ),
    "章节名": (
        "a.json",
        json.dumps(
            {
                "title": "集",
                "content": [
                    {
                        "type": "短诗",
                        "content": [
                            {
                                "chapter": "旧站台",
                                "subchapter": None,
                                "author": "某甲",
                                "paragraphs": LINES_A,
                            }
                        ],
                    }
                ],
            }
        ),
        [TWO[0]],
    ),
    "小章节": (
        "a.json",
        json.dumps(
            [{"chapter": "站台", "subchapter": "其一", "author": "某甲", "paragraphs": LINES_A}]
        ),
        [("站台·其一", "某甲", A)],
    ),
    "按作者分组": (
        "a.json",
        json.dumps(
            {"某甲": [{"title": "旧站台", "content": A}], "某乙": [{"title": "灯", "content": B}]}
        ),
        TWO,
    ),
    "作者 → 题目 → 正文": ("a.json", json.dumps({"某甲": {"旧站台": A}, "某乙": {"灯": B}}), TWO),
    "作者与 poems": (
        "a.json",
        json.dumps([{"author": "某甲", "poems": [{"title": "旧站台", "text": A}]}]),
        [TWO[0]],
    ),
    "对话 messages": (
        "a.jsonl",
        dumps({"messages": chat("你是诗人", "请以“旧站台”为题写一首诗", A)}),
        [("旧站台", "佚名", A)],
    ),
    "对话 conversations": (
        "a.json",
        json.dumps(
            [
                {
                    "conversations": [
                        {"from": "human", "value": "写一首题为《灯》的现代诗"},
                        {"from": "gpt", "value": B},
                    ]
                }
            ]
        ),
        [("灯", "佚名", B)],
    ),
    "对话 短题目": ("a.json", json.dumps([chat("你是诗人", "旧站台", A)]), [("旧站台", "佚名", A)]),
    "问答": (
        "a.json",
        json.dumps([{"instruction": "写一首诗，题目是灯", "input": "", "output": B}]),
        [("灯", "佚名", B)],
    ),
    "NaN": (
        "a.json",
        json.dumps([{"title": "旧站台", "author": math.nan, "content": A}]),
        [("旧站台", "佚名", A)],
    ),
    "None 字样": (
        "a.json",
        json.dumps([{"title": "旧站台", "author": "None", "content": A}]),
        [("旧站台", "佚名", A)],
    ),
    "BOM 在记录之间": (
        "a.jsonl",
        dumps({"title": "旧站台", "author": "某甲", "text": A})
        + "\n\ufeff"
        + dumps({"title": "灯", "author": "某乙", "text": B}),
        TWO,
    ),
    "文件头": ("a.txt", f"---\ntitle: 旧站台\nauthor: 某甲\ntags: [站台]\n---\n\n{A}\n", [TWO[0]]),
    "文件头 .md": (
        "a.md",
        f"---\ntitle: \"旧站台\"\nauthor: '某甲'\n---\n# 旧站台\n\n{A}\n",
        [TWO[0]],
    ),
    "Markdown 一首": ("a.md", "# 灯\n\n" + B.replace("\n", "  \n"), [("灯", "佚名", B)]),
    "Markdown 引用与强调": (
        "a.md",
        "# 灯\n\n> **一盏灯**站在巷口\\\n> 等一个忘记回家的人",
        [("灯", "佚名", "一盏灯站在巷口\n等一个忘记回家的人")],
    ),
    "Markdown 几首": (
        "a.md",
        f"# 诗集\n\n## 旧站台\n\n作者：某甲\n\n{A}\n\n## 灯\n\n作者：某乙\n\n{B}\n",
        TWO,
    ),
    "Markdown 按作者": ("a.md", f"# 某甲\n\n## 旧站台\n\n{A}\n\n# 某乙\n\n## 灯\n\n{B}\n", TWO),
    "等号隔开": ("a.txt", f"《旧站台》\n某甲\n{A}\n==========\n《灯》\n某乙\n{B}\n", TWO),
    "短横隔开": ("a.txt", f"旧站台\n作者：某甲\n\n{A}\n---\n灯\n作者：某乙\n\n{B}\n", TWO),
    "《题目》作者": ("a.txt", f"《旧站台》 某甲\n{A}\n\n《灯》 某乙\n{B}\n", TWO),
    "题目：": ("a.txt", f"题目：旧站台\n作者：某甲\n{A}\n\n题目：灯\n作者：某乙\n{B}\n", TWO),
    "空两行": ("a.txt", f"旧站台\n某甲\n\n{A}\n\n\n灯\n某乙\n\n{B}\n", TWO),
    "题目作者同一行": ("a.txt", f"旧站台 / 某甲\n\n{A}\n", [TWO[0]]),
    "作者独占一行": ("a.txt", f"旧站台\n某甲\n\n{A}\n", [TWO[0]]),
    "作者独占一行，没有空行": ("a.txt", f"旧站台\n某甲\n{A}\n", [TWO[0]]),
    "作者在括号里": ("a.txt", f"旧站台（某甲）\n\n{A}\n", [TWO[0]]),
    "正文：": ("a.txt", f"题目：旧站台\n作者：某甲\n正文：\n{A}\n", [TWO[0]]),
    "Markdown 题目下是作者": ("a.md", f"# 旧站台\n某甲\n\n{A}\n\n---\n\n# 灯\n某乙\n\n{B}\n", TWO),
    "文件头里作者写成几项": (
        "a.md",
        f"---\ntitle: 旧站台\nauthors:\n  - 某甲\n---\n\n{A}\n",
        [TWO[0]],
    ),
    "只有正文一列": ("a.csv", f'content\n"{B}"\n', [("一盏灯站在巷口", "佚名", B)]),
    "问答 input 是题目": (
        "a.json",
        json.dumps([{"instruction": "写诗", "input": "旧站台", "output": A}]),
        [("旧站台", "佚名", A)],
    ),
    "作者 → 几首没有题目的": (
        "a.json",
        json.dumps({"某甲": [A], "某乙": [B]}),
        [("火车开走以后", "某甲", A), ("一盏灯站在巷口", "某乙", B)],
    ),
    "一串文字": ("a.json", json.dumps([B]), [("一盏灯站在巷口", "佚名", B)]),
    "CR": ("a.txt", f"灯\r{B}".replace("\n", "\r"), [("灯", "佚名", B)]),
    "混着的换行": ("a.txt", "灯\r\n" + B.replace("\n", "\r", 1), [("灯", "佚名", B)]),
    "NUL": ("a.txt", f"灯\n{B}\0", [("灯", "佚名", B)]),
    "Big5": (
        "a.txt",
        "雨後\n巷口的燈還亮著\n我數著積水裡的星星".encode("big5"),
        [("雨後", "佚名", "巷口的燈還亮著\n我數著積水裡的星星")],
    ),
    "UTF-16 无 BOM": ("a.txt", f"灯\n{B}".encode("utf-16-le"), [("灯", "佚名", B)]),
    "UTF-16-BE 无 BOM": ("a.txt", f"灯\n{B}".encode("utf-16-be"), [("灯", "佚名", B)]),
}


@pytest.mark.parametrize("case", CASES)
def test_layouts(tmp_path, case):
    name, content, wanted = CASES[case]
    found, reading = read(tmp_path, name, content)
    if wanted == "flat":
        wanted = [("旧站台", "某甲", FLAT_A), ("灯", "某乙", FLAT_B)]
    assert (len(found) if isinstance(wanted, int) else found) == wanted
    assert reading.layout and not reading.warning


@pytest.mark.parametrize(
    "text",
    [
        "春天\n***\n花开了\n***\n草绿了",  # 诗里的分隔
        "对话\n他说：你来了\n她说：我来了\n他说：坐吧\n她说：好",
        "书\n《论语》和《孟子》\n《旧站台》里的人\n都走了",
        "生 / 死\n活着的人在说话\n死去的人在听",
        "夜\n下雪\n\n雪落在屋顶上\n无声",  # 一行的第一节不是作者……除非像人名
        "题\n———\n风吹过来",
    ],
)
def test_one_poem_stays_one(tmp_path, text):
    found, _ = read(tmp_path, "a.txt", text)
    [(title, _, _)] = found
    assert title == text.split("\n")[0]


def test_files_that_look_like_many_are_doubted(tmp_path):
    text = "集子\n" + "".join(f"第{n}首\n某人写了这一首\n----\n风吹过来了\n" for n in range(5))
    found, reading = read(tmp_path, "a.txt", text)
    assert len(found) == 1 and "不止一首" in reading.warning


def test_what_is_read_is_told(tmp_path):
    _, reading = read(tmp_path, "a.csv", f"题目,作者,内容\n灯,某乙,{FLAT_B}\n")
    assert reading.layout == "按 CSV 读，题目=题目列，作者=作者列，正文=内容列"
    (tmp_path / "a.csv").unlink()
    _, reading = read(tmp_path, "b.json", json.dumps([{"title": "灯", "author": "甲", "text": B}]))
    assert reading.layout == "按 JSON 读，题目=title，作者=author，正文=text"


def test_a_table_without_header_is_refused_by_name(tmp_path):
    (tmp_path / "a.csv").write_text(f"灯,某乙,{FLAT_B}\n", encoding="utf-8")
    [file] = sources.find_files(tmp_path)[0]
    [raw] = sources.open_file(file, lambda size: None).poems
    assert raw.reason == sources.NO_HEADER


def test_binary_is_no_poem(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"\x80\x02}q\x00.")
    [file] = sources.find_files(tmp_path)[0]
    [raw] = sources.open_file(file, lambda size: None).poems
    assert raw.reason


def test_big5_and_gbk_are_told_apart():
    simple, traditional = "我们在春天的河边等一只鸟", "我們在春天的河邊等一隻鳥"
    assert records.decode(simple.encode("gbk")) == (simple, "gb18030")
    assert records.decode(traditional.encode("big5")) == (traditional, "big5hkscs")
    assert records.decode(traditional.encode("gbk"))[0] == traditional


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="文件名只能是 Unicode")
def test_links_pipes_and_foreign_names(tmp_path):
    real = tmp_path / "real" / "某甲_moujia"
    real.mkdir(parents=True)
    (real / "旧站台.pt").write_text(f"title:旧站台\n\n{A}", encoding="utf-8")
    data = tmp_path / "data"
    data.mkdir()
    os.symlink(real, data / "某甲_moujia")
    os.symlink(data, data / "circle")
    os.symlink(data / "nowhere.txt", data / "dangling.txt")
    os.mkfifo(data / "pipe.txt")
    os.symlink("/dev/zero", data / "zero.txt")
    named = os.fsencode(data) + b"/" + "安然_anran".encode("gbk")
    os.mkdir(named)
    with open(named + b"/1.pt", "wb") as file:
        file.write(B.encode())
    found, skipped = sources.find_files(data)
    assert [file.name for file in found] == ["安然_anran/1.pt", "某甲_moujia/旧站台.pt"]
    assert skipped == ["dangling.txt", "pipe.txt", "zero.txt"]
    poems = [raw for file in found for raw in sources.open_file(file, lambda size: None).poems]
    assert [raw.author for raw in poems] == ["安然", "某甲"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="没有命名管道")
def test_a_pipe_or_a_device_as_the_whole_corpus_is_refused(tmp_path):
    """不等、不读：管道会一直等，设备没有尽头。"""
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(UserError, match="管道或设备"):
            sources.find_files(path)


def test_readable_names():
    assert readable("春.txt") == "春.txt" and readable("a.txt") == "a.txt"


def test_splits_are_empty_where_nothing_is_split():
    for split in (blocks.by_rules, blocks.by_book_marks, blocks.by_labels, blocks.by_headings):
        assert split(A.split("\n")) == [] and split([""]) == []
    assert blocks.by_lines(A.split("\n")) == blocks.by_gaps(A.split("\n")) == []
    assert blocks.front_matter([""]) is None
