"""data_clean.py（连同 sources.py、mend.py）：各种脏数据进来，干净、可解释、可重现的诗出去。"""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import data_clean
from poems import copies, fields, mend
from support import files
from support.console import UserError

ROOT = Path(__file__).resolve().parent.parent
CHARS = [chr(code) for code in range(0x4E00, 0x4E00 + 600)]


def verse(seed: int, lines: int = 4, length: int = 9) -> str:
    """互不相同的假诗。"""
    rng = random.Random(seed)
    return "\n".join("".join(rng.choice(CHARS) for _ in range(length)) for _ in range(lines))


def poem(seed: int, **fields) -> dict:
    return {"title": f"诗{seed}甲", "para": [verse(seed)], "author": "某人", **fields}


def write(path: Path, content) -> Path:
    """写一个文件：字节、文字，或要转成 JSON 的值。"""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def clean(raw: Path, work: Path, min_chars: int = 10, near_copy: float = 0.8) -> list:
    """清洗并读回结果。"""
    work.mkdir(exist_ok=True)
    data_clean.clean(str(raw), str(work), min_chars, near_copy)
    return json.loads((work / "all_poems.json").read_text(encoding="utf-8"))


def report(work: Path) -> dict:
    return json.loads((work / "clean_report.json").read_text(encoding="utf-8"))


def counts(work: Path, section: str = "dropped") -> dict:
    return {row["reason"]: row["count"] for row in report(work)[section]}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


# ── 各种来源 ──────────────────────────────────────────────────────────


def test_pt_tree(raw: Path, work: Path) -> None:
    write(
        raw / "安琪_anqi" / "甜卡车.pt",
        f"title:甜卡车（一）\ndate:2009\n\n{verse(1)}\n\n{verse(2)}",
    )
    write(raw / "13_13" / "无头.pt", verse(3))
    write(raw / "单独.pt", f"title:单独\ndate:\n\n{verse(4)}\n")
    assert clean(raw, work) == [
        {"title": "无头", "para": [verse(3)], "author": "13"},
        {"title": "单独", "para": [verse(4)], "author": "佚名"},
        {"title": "甜卡车（一）", "para": [verse(1), verse(2)], "author": "安琪"},
    ]


def test_one_authors_folder_as_raw_data(tmp_path: Path, work: Path) -> None:
    folder = tmp_path / "安琪_anqi"
    write(folder / "甲.pt", f"title:甲\ndate:\n\n{verse(1)}")
    assert [item["author"] for item in clean(folder, work)] == ["安琪"]


def test_readme_layout(raw: Path, work: Path) -> None:
    value = {"title": "春天", "para": [verse(1), verse(2)], "author": "某人"}
    write(raw / "a.json", [value])
    assert clean(raw, work) == [value]
    assert counts(work) == {} and counts(work, "mended") == {}


@pytest.mark.parametrize("key", ["paragraphs", "content", "lines", "内容"])
def test_lists_of_lines_are_one_stanza(raw: Path, work: Path, key: str) -> None:
    lines = verse(1).split("\n")
    write(
        raw / "a.json", [{"rhythmic": "浣溪沙", "author": "某人", key: [*lines, "", *lines[::-1]]}]
    )
    expected = ["\n".join(lines), "\n".join(lines[::-1])]  # 空串是段与段之间的空行
    assert clean(raw, work) == [{"title": "浣溪沙", "para": expected, "author": "某人"}]


def test_content_as_one_string(raw: Path, work: Path) -> None:
    write(
        raw / "a.json",
        [{"title": "春", "content": f"{verse(1)}\n\n\n\n{verse(2)}", "author": "某"}],
    )
    assert clean(raw, work)[0]["para"] == [verse(1), verse(2)]


def test_json_lines_txt_and_mixed_folder(raw: Path, work: Path) -> None:
    write(raw / "b.jsonl", "\n".join(json.dumps(poem(n)) for n in (1, 2)) + "\n")
    write(raw / "c" / "春天.txt", f"\n春天\n作者：阿角\n\n{verse(3)}\n")
    write(raw / "安琪_anqi" / "夏.txt", f"标题：夏天\n{verse(4)}")
    write(raw / "d_folder" / "秋.txt", f"秋天\n{verse(5)}")
    write(raw / "e.txt", json.dumps([poem(6)]))  # 后缀不对的 JSON
    write(raw / "picture.png", b"\x89PNG")
    write(raw / ".hidden" / "x.txt", verse(7))
    write(raw / "model.pt", b"PK\x03\x04\0\0\0\0" * 10)
    found = {(item["title"], item["author"]) for item in clean(raw, work)}
    assert found == {
        *{("诗1甲", "某人"), ("诗2甲", "某人"), ("诗6甲", "某人")},
        *{("春天", "阿角"), ("夏天", "安琪"), ("秋天", "佚名")},
    }
    assert counts(work) == {fields.NOT_A_POEM: 1}
    assert counts(work, "skipped_files") == {".png": 1}


def test_wrapped_and_nested_json(raw: Path, work: Path) -> None:
    write(raw / "a.json", {"poems": [poem(1)], "count": 1})
    write(
        raw / "b.json",
        [{"author": "诗人乙", "content": [{"title": "内", "paragraphs": [verse(2)]}]}],
    )
    assert [(item["title"], item["author"]) for item in clean(raw, work)] == [
        ("诗1甲", "某人"),
        ("内", "诗人乙"),
    ]


def test_other_lists_in_a_record_do_not_hide_the_poem(raw: Path, work: Path) -> None:
    value = {"title": "春", "author": "某", "paragraphs": [verse(1)], "notes": [{"text": verse(2)}]}
    write(raw / "a.json", [value])
    assert [item["para"] for item in clean(raw, work)] == [[verse(1)]]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="文件名只能是 Unicode")
def test_undecodable_file_names(raw: Path, work: Path) -> None:
    for n, name in enumerate((b"\xff\n\t.json", b"\xfe.png")):
        with open(os.path.join(os.fsencode(raw), name), "wb") as file:
            file.write(json.dumps([poem(n), poem(n)]).encode())
    assert len(clean(raw, work)) == 1
    assert counts(work) == {copies.EXACT_COPY: 1}


def test_raw_data_may_be_one_file_also_without_suffix(tmp_path: Path, work: Path) -> None:
    path = write(tmp_path / "corpus", "\n".join(json.dumps(poem(n)) for n in range(3)))
    assert len(clean(path, work)) == 3


# ── 编码 ──────────────────────────────────────────────────────────────


def test_gbk_bom_and_utf16_are_read_right_and_reported(raw: Path, work: Path) -> None:
    body = "一只鸟在想方向\n飞过春天的河流"
    write(raw / "1.txt", f"甲\n{body}一".encode("gbk"))
    write(raw / "2.json", json.dumps([poem(2)], ensure_ascii=False).encode("gb18030"))
    write(raw / "3.txt", f"丙\r\n{verse(3)}".encode("utf-8-sig"))
    write(raw / "4.txt", f"丁\n{verse(4)}".encode("utf-16"))
    write(raw / "某_m" / "5.pt", f"title:戊\ndate:\n\n{verse(5)}".encode("utf-8-sig"))
    result = clean(raw, work)
    assert [item["title"] for item in result] == ["甲", "诗2甲", "丙", "丁", "戊"]
    assert result[0]["para"] == [body + "一"]
    assert result[2]["para"] == [verse(3)]
    assert counts(work, "encodings") == {"GBK/GB18030": 2, "带 BOM 的 UTF-8": 2, "UTF-16": 1}


# ── 改动 ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("dirty", "tidy", "kind"),
    [
        ("春天来了\r\n花开\r\r\n草绿", "春天来了\n花开\n\n草绿", mend.NEWLINES),
        ("春天\u2028花开", "春天\n花开", mend.NEWLINES),
        ("春\u200b天\ufeff来\x00了\x7f", "春天来了", mend.INVISIBLE),
        ("\u3000\u3000春天来了  \n\t花开\u3000", "春天来了\n花开", mend.BLANKS),
        ("春天\u00a0花开\t草绿", "春天 花开 草绿", mend.BLANKS),
        ("春天\n\n\n\n花开", "春天\n\n花开", mend.BLANK_LINES),
        ("<p>春天&nbsp;来了</p><p>花开<b>了</b></p>", "春天 来了\n花开了", mend.HTML),
        ("<p>春天<br/>来了</p>\n<p>花开</p>", "春天\n来了\n\n花开", mend.HTML),
        ("春天&amp;nbsp;来了&#8212;&quot;好&quot;", '春天 来了—"好"', mend.HTML),
        ("<script>alert(1)</script>春天<!-- 注 -->来了", "春天来了", mend.HTML),
        ("春天来了/n花开了，/n草绿", "春天来了\n花开了，\n草绿", mend.SLASH_N),
        ("春天来了\\n\\n花开了/n", "春天来了\n\n花开了", mend.SLASH_N),
        ("春天来了\nhttp://a.cn/b?c=1\n花开", "春天来了\n花开", mend.FURNITURE),
        ("春天来了\n来源：www.a.com", "春天来了", mend.FURNITURE),
        ("作者：安琪\n春天来了\n文/安琪（福建）", "春天来了", mend.FURNITURE),
        ("题目：春\n春天来了", "春天来了", mend.FURNITURE),
    ],
)
def test_mends(dirty: str, tidy: str, kind: str) -> None:
    result = mend.mend("春", dirty, "安琪", min_chars=1)
    assert "\n\n".join(result.para) == tidy
    assert kind in result.mends
    again = mend.mend("春", tidy, "安琪", min_chars=1)
    assert "\n\n".join(again.para) == tidy
    assert again.mends == []


@pytest.mark.parametrize(
    "text",
    [
        "春天，来了！“花开”——草绿……（完）《诗》",
        "然后她说/m/\n然后她说/n/\n就是不动",
        "x/nx，a\\nb 春天",
        "爱情 <3 你 & 我 <一只鸟> 春天",
        "题目：舞动春天\n作者：小区居民",
        "春　天　来　了\nＡＢＣ１２３",
        "请看 http://a.cn 春天",
        "雪\n\n雨\n\n风\n风",
    ],
)
def test_what_must_stay_stays(text: str) -> None:
    result = mend.mend("春", text, "安琪", min_chars=1)
    assert "\n\n".join(result.para) == text
    assert result.mends == []


def test_titles_and_authors_are_mended(raw: Path, work: Path) -> None:
    write(
        raw / "a.json",
        [
            poem(1, title=" <b>春\u200b天</b>\n来了 ", author="\u3000安琪 "),
            poem(2, title=None, author=None),
            {"para": ["一只鸟在想方向，它想了很久\n" + verse(3)]},
            poem(4, title=1998, author=["甲", "乙"]),
            poem(5, title="", para=[f"作者：阿角\n{verse(5)}"], author=""),
        ],
    )
    found = [(item["title"], item["author"]) for item in clean(raw, work)]
    first = verse(2).split("\n")[0]
    assert found == [
        ("春天 来了", "安琪"),
        (first, "佚名"),
        ("一只鸟在想方向", "佚名"),
        ("1998", "甲、乙"),
        (verse(5).split("\n")[0], "阿角"),
    ]
    assert counts(work, "mended")[mend.NO_TITLE] == 3
    assert counts(work, "mended")[mend.NO_AUTHOR] == 2
    assert counts(work, "mended")[mend.FOUND_AUTHOR] == 1


# ── 丢弃 ──────────────────────────────────────────────────────────────


def test_odd_records_are_dropped_or_mended_with_reasons(raw: Path, work: Path) -> None:
    write(
        raw / "a.json",
        [
            *[None, 3, "一首诗", [], True],  # 不是记录
            *[{"title": "无"}, {}],  # 没有正文字段
            *[poem(1, para=None), poem(2, para=[]), poem(3, para=""), poem(4, para=["", " \n "])],
            *[poem(5, para=12), poem(6, para={"a": 1}), poem(7, para=[1, None])],
            poem(8, para=verse(8)),  # 一段文字
            poem(9, para=[verse(9), None, 7, verse(10)]),
            poem(11, para=[verse(11).split("\n"), verse(12)]),
        ],
    )
    assert [item["para"] for item in clean(raw, work)] == [
        [verse(8)],
        [verse(9), verse(10)],
        [verse(11), verse(12)],
    ]
    assert counts(work) == {fields.NOT_A_POEM: 7, fields.EMPTY: 4, fields.BAD_BODY: 3}
    assert counts(work, "mended") == {fields.STRING_BODY: 1, fields.ODD_ITEMS: 1}
    assert report(work)["poems_read"] == 17


def test_faults(raw: Path, work: Path) -> None:
    write(
        raw / "a.json",
        [
            poem(1, para=[verse(1) + "\ufffd"]),
            poem(2, para=[verse(2) + "\ue059"]),
            poem(3, title="春\ufffd"),
            poem(4, para=[verse(4) + "锟斤拷"]),
            poem(5, para=["春天来了"]),
            poem(6, para=["春 天 来 了 花 开 草\n绿"]),  # 空白不计字数
            poem(7, para=["I wandered lonely as a cloud 像一朵云"]),
            poem(8, para=["0101010101 0101010101"]),
            poem(9, para=["，。！？——……，。！？"]),
            poem(10, para=["我爱 OK 但更爱春天的河流 bye"]),
        ],
    )
    write(raw / "b.json", b'[{"title": "\\ud83d", "para": ["' + verse(11, 1).encode() + b'"]}]')
    assert [item["title"] for item in clean(raw, work)] == ["诗10甲"]
    assert counts(work) == {mend.GARBLED: 5, mend.TOO_SHORT: 2, mend.NOT_CHINESE: 3}


def test_min_chars_is_an_argument(raw: Path, work: Path) -> None:
    write(raw / "a.json", [poem(1, para=["春天来了"]), poem(2)])
    assert len(clean(raw, work, min_chars=4)) == 2
    assert len(clean(raw, work, min_chars=5)) == 1


def test_copies(raw: Path, work: Path) -> None:
    long, other, book = verse(1, 20), verse(2, 20), verse(3, 40)
    write(
        raw / "a.json",
        [
            {"title": "原", "para": [long], "author": "佚名"},
            {"title": "标点不同", "para": [long.replace("\n", "，\n\n")], "author": "佚名"},
            {"title": "有作者", "para": [long.replace("\n", "；\n\n")], "author": "安琪"},
            {"title": "改了字", "para": [other.replace(other[5], "囧")], "author": "甲"},
            {"title": "较长", "para": [other + "\n完了完了"], "author": "甲"},
            {"title": "长诗（节选）", "para": [book[:60]], "author": "乙"},
            {"title": "长诗", "para": [book], "author": "乙"},
            {"title": "长诗（一）", "para": [verse(4, 20)], "author": "乙"},
            {"title": "无关", "para": [verse(5, 20)], "author": "乙"},
        ],
    )
    kept = [item["title"] for item in clean(raw, work)]
    assert kept == ["有作者", "较长", "长诗", "长诗（一）", "无关"]
    assert counts(work) == {copies.EXACT_COPY: 2, copies.NEAR_COPY: 2}
    examples = {row["reason"]: row["examples"] for row in report(work)["dropped"]}
    assert examples[copies.EXACT_COPY][0]["same_as"] == "安琪《有作者》"


def test_near_copy_threshold_is_an_argument(raw: Path, work: Path) -> None:
    text = verse(1, 20)
    write(raw / "a.json", [poem(1, para=[text]), poem(2, para=[text[:100] + verse(2, 10)])])
    assert len(clean(raw, work, near_copy=0.8)) == 2
    assert len(clean(raw, work, near_copy=0.3)) == 1


def test_a_family_of_copies_leaves_one(raw: Path, work: Path) -> None:
    text = verse(1, 15)
    family = [text[:n] + "囧" + text[n + 1 :] for n in range(0, 100, 2)]
    write(raw / "a.json", [poem(n, para=[member]) for n, member in enumerate(family)])
    assert len(clean(raw, work)) == 1
    assert sum(counts(work).values()) == len(family) - 1


# ── 输出 ──────────────────────────────────────────────────────────────


def test_output_is_one_record_a_line_and_deterministic(raw: Path, tmp_path: Path) -> None:
    names = [f"{name}_x/{n}.pt" for n, name in enumerate("丙甲乙")] + ["z.json", "a.jsonl"]
    content = {
        name: json.dumps([poem(90)]) if "json" in name else f"title:题\ndate:\n\n{verse(n)}"
        for n, name in enumerate(names)
    }
    outputs = []
    for turn, order in enumerate((names, names[::-1])):
        folder, target = tmp_path / f"raw{turn}", tmp_path / f"work{turn}"
        for name in order:
            write(folder / name, content[name])
        clean(folder, target)
        outputs.append((target / "all_poems.json").read_bytes())
    assert outputs[0] == outputs[1]
    lines = outputs[0].decode().split("\n")
    assert lines[0] == "[" and lines[-2:] == ["]", ""]
    for line in lines[1:-2]:
        assert list(json.loads(line.rstrip(","))) == ["title", "para", "author"]
    assert len(lines) - 3 == 4  # a.jsonl 与 z.json 里是同一首


def test_report_and_table(raw: Path, work: Path, capsys) -> None:
    write(raw / "a.json", [poem(1), *[poem(n, para=["短"]) for n in range(2, 6)]])
    clean(raw, work)
    table = capsys.readouterr().out
    assert mend.TOO_SHORT in table and "4" in table and "《诗2甲》" in table
    data = report(work)
    assert (data["files"], data["poems_read"], data["poems_kept"]) == (1, 5, 1)
    assert data["chars_kept"] == len(verse(1))
    row = data["dropped"][0]
    assert [example["title"] for example in row["examples"]] == ["诗2甲", "诗3甲"]
    assert row["examples"][0]["where"] == "a.json 第 2 条"


# ── 没有 RAW_DATA、手写的 all_poems.json ──────────────────────────────


def test_own_all_poems_is_the_input_and_is_kept(work: Path) -> None:
    original = json.dumps([poem(1, para=["\u3000" + verse(1)]), poem(2, para=["短"])]).encode()
    write(work / "all_poems.json", original)
    once = clean(work / "none", work)
    assert [item["para"] for item in once] == [[verse(1)]]
    assert (work / "all_poems.raw.json").read_bytes() == original
    first = (work / "all_poems.json").read_bytes()
    assert len(clean(work / "none", work)) == 1  # 再来一次：仍从原件清洗
    assert (work / "all_poems.json").read_bytes() == first
    assert (work / "all_poems.raw.json").read_bytes() == original
    assert len(clean(work / "none", work, min_chars=1)) == 2  # 换了设置也不丢诗
    assert sorted(path.name for path in work.glob("all_poems*")) == [
        "all_poems.json",
        "all_poems.raw.json",
    ]


def test_edited_output_becomes_the_input_and_older_original_stays(work: Path) -> None:
    write(work / "all_poems.json", [poem(1), poem(2)])
    clean(work / "none", work)
    original = (work / "all_poems.raw.json").read_bytes()
    edited = write(work / "all_poems.json", [poem(3)]).read_bytes()
    assert [item["title"] for item in clean(work / "none", work)] == ["诗3甲"]
    assert (work / "all_poems.raw.json").read_bytes() == edited
    assert original in [path.read_bytes() for path in work.glob("all_poems.raw.old*.json")]


def test_hand_made_file_is_kept_beside_the_new_one(raw: Path, work: Path, capsys) -> None:
    mine = write(work / "all_poems.json", [poem(7)]).read_bytes()
    write(raw / "a.json", [poem(1)])
    clean(raw, work)
    aside = list(work.glob("all_poems.old*.json"))
    assert [path.read_bytes() for path in aside] == [mine]
    assert aside[0].name in capsys.readouterr().out
    write(raw / "a.json", [poem(1), poem(2)])
    assert len(clean(raw, work)) == 2  # 我们自己写的可以覆盖
    assert list(work.glob("all_poems.old*.json")) == aside


def test_raw_data_that_is_the_output_itself(work: Path, monkeypatch) -> None:
    write(work / "all_poems.json", [poem(1)])
    monkeypatch.chdir(work)
    data_clean.clean("all_poems.json", ".", 10, 0.8)
    assert (work / "all_poems.raw.json").exists()


def test_work_dir_inside_raw_data_is_not_read_back(raw: Path) -> None:
    write(raw / "a.json", [poem(1)])
    assert len(clean(raw, raw)) == 1
    assert len(clean(raw, raw)) == 1
    assert report(raw)["files"] == 1


def test_empty_raw_folder_falls_back(raw: Path, work: Path) -> None:
    write(raw / "readme.md", "什么也没有")
    with pytest.raises(UserError, match="sheepzh/poetry"):
        clean(raw, work)
    write(work / "all_poems.json", [poem(1)])
    assert len(clean(raw, work)) == 1


# ── 出错 ──────────────────────────────────────────────────────────────


def test_nothing_to_read(work: Path) -> None:
    with pytest.raises(UserError) as caught:
        clean(work / "none", work)
    for part in ("none", "sheepzh/poetry", "poetry/data", "python quickstart.py"):
        assert part in str(caught.value)
    assert list(work.iterdir()) == []


def test_full_disk_at_the_last_moment_leaves_the_poems(work: Path, monkeypatch) -> None:
    """换上新的那一步出错：all_poems.json 还在原处，一个字节没有动。"""
    path = work / "all_poems.json"
    path.write_text(
        json.dumps(
            [{"title": "窗", "para": ["火车开走以后\n铁轨还在发热，我把手贴上去"], "author": "甲"}]
        ),
        encoding="utf-8",
    )
    before, real = path.read_bytes(), files.replace

    def full(source: Path, target: Path) -> None:
        if target == path:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(OSError, match="No space"):
        data_clean.clean("nowhere", str(work), 2, 0.8)
    assert path.read_bytes() == before


def test_mostly_alike_poems_are_spoken_of(raw: Path, work: Path, capsys) -> None:
    lines = [f"题{n}:第{n}盏灯亮在巷口，有人把雨收进口袋。风走过时没有说话。" for n in range(30)]
    (raw / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    data_clean.clean(str(raw), str(work), 2, 0.8)
    assert "--NEAR_COPY=1" in capsys.readouterr().out
    assert data_clean.clean(str(raw), str(work), 2, 1.0).kept == 30
    assert "--NEAR_COPY=1" not in capsys.readouterr().out


def test_broken_json_loses_nothing(work: Path) -> None:
    broken = '[\n  {\n    "title": "x",\n    "para": ["x"],\n    "author": "x"\n  },\n  }\n]\n'
    write(work / "all_poems.json", broken)
    with pytest.raises(UserError) as caught:
        clean(work / "none", work)
    message = str(caught.value)
    for part in ("all_poems.json", "第 7 行第 3 列", ">>>}", "删去", "没有改动任何文件"):
        assert part in message
    assert [path.name for path in work.iterdir()] == ["all_poems.json"]
    assert (work / "all_poems.json").read_text(encoding="utf-8") == broken


def test_no_usable_poem_is_an_error_and_changes_nothing(raw: Path, work: Path) -> None:
    mine = write(work / "all_poems.json", [poem(1)]).read_bytes()
    write(raw / "a.json", [poem(1, para=["短"]), {"title": "无"}])
    with pytest.raises(UserError, match=f"{mend.TOO_SHORT} 1 首"):
        clean(raw, work)
    assert [path.name for path in work.iterdir()] == ["all_poems.json"]
    assert (work / "all_poems.json").read_bytes() == mine


def test_script_end_to_end(raw: Path, work: Path) -> None:
    write(raw / "a.json", [poem(n, para=[verse(n, 3 + n)]) for n in range(8)])
    command = [sys.executable, str(ROOT / "data_clean.py"), f"--WORK_DIR={work}"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    options = {"capture_output": True, "encoding": "utf-8", "env": environment, "cwd": str(work)}
    good = subprocess.run([*command, f"--RAW_DATA={raw}", "--MIN_CHARS=30"], check=False, **options)
    assert good.returncode == 0, good.stderr
    assert "留下 7 首" in good.stdout and "hug_face_tokenizer.py" in good.stdout
    assert (work / "all_poems.json").exists()
    bad = subprocess.run(
        [
            sys.executable,
            str(ROOT / "data_clean.py"),
            f"--WORK_DIR={raw / 'new'}",
            "--RAW_DATA=none",
        ],
        check=False,
        **options,
    )
    assert bad.returncode == 1
    assert "Traceback" not in bad.stderr and "sheepzh/poetry" in bad.stderr


# ── 坏文件、读法 ──────────────────────────────────────────────────────


def test_one_broken_file_does_not_stop_the_others(raw: Path, work: Path, capsys) -> None:
    write(raw / "a.json", [poem(1)])
    write(raw / "b.jsonl", json.dumps(poem(2)) + "\n" + json.dumps(poem(1)) + '\n{"title": ')
    write(raw / "c.json", [poem(3), poem(4, para=["短"])])
    assert [item["title"] for item in clean(raw, work)] == ["诗1甲", "诗3甲"]
    out = capsys.readouterr().out
    assert "b.jsonl" in out and "第 3 行" in out
    found = report(work)
    assert found["poems_read"] == 3 and counts(work) == {mend.TOO_SHORT: 1}
    assert [row["examples"] for row in found["broken_files"]] == [[{"where": "b.jsonl"}]]


def test_only_broken_files_are_an_error(raw: Path, work: Path) -> None:
    write(raw / "a.json", "[{")
    write(raw / "b.json", "[{")
    with pytest.raises(UserError, match=r"a\.json") as caught:
        clean(raw, work)
    assert "b.json" in str(caught.value) and "没有改动任何文件" in str(caught.value)


def test_forgotten_poems_leave_no_trace(raw: Path, work: Path, monkeypatch) -> None:
    """签名分批算，忘掉的诗正好跨过几批：结果与没有这个文件时逐字节相同。"""
    monkeypatch.setattr(copies, "_BATCH", 3)
    for count in (1, 2, 3, 7):
        write(raw / "a.json", [poem(n) for n in range(count)])
        write(raw / "c.json", [poem(n) for n in range(50, 54)])
        clean(raw, work)
        wanted = (work / "all_poems.json").read_bytes()
        write(raw / "b.jsonl", "\n".join(json.dumps(poem(n)) for n in range(20, 31)) + "\n{")
        clean(raw, work)
        assert (work / "all_poems.json").read_bytes() == wanted
        (raw / "b.jsonl").unlink()


def test_how_each_file_was_read_is_reported(raw: Path, work: Path, capsys) -> None:
    write(raw / "a.csv", f"题目,作者,内容\n灯,某乙,{verse(1, 1, 30)}\n")
    write(raw / "b.json", [poem(2)])
    clean(raw, work)
    rows = {row["reason"]: row["examples"] for row in report(work)["layouts"]}
    assert rows["按 CSV 读，题目=题目列，作者=作者列，正文=内容列"] == [{"where": "a.csv"}]
    assert "按 JSON 读，题目=title，作者=author，正文=para" in rows
    assert "a.csv" in capsys.readouterr().out
