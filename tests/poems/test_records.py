"""records.py：编码、流式读取与 json.load 一致、出错时的行列与改法。"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from poems import records

README_EXAMPLE = """[
  {
     "title": "xxxxxx",
    "para": [
      "xxxxxxxx/nxxxxxxx"
    ],
    "author": "xxx"
  },
  }
]
"""


def random_value(rng: random.Random, depth: int = 0):
    choice = rng.random()
    if choice < 0.4 or depth > 3:
        text = '春天"\\\n\t' * rng.randint(0, 40)
        return rng.choice([text, "x", 1.5e10, -3, 12345, None, True, "😀", "", "[]{},:"])
    if choice < 0.7:
        return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {f"{n}键": random_value(rng, depth + 1) for n in range(rng.randint(0, 4))}


@pytest.mark.parametrize("chunk", [4, 7, 64, 1 << 20])
def test_streaming_equals_json_load(tmp_path: Path, monkeypatch, chunk: int) -> None:
    monkeypatch.setattr(records, "CHUNK", chunk)
    rng = random.Random(chunk)
    path = tmp_path / "poems.json"
    for _ in range(40):
        values = [random_value(rng) for _ in range(rng.randint(0, 8))]
        text = json.dumps(values, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 0, 2]))
        path.write_text(text, encoding=rng.choice(["utf-8", "utf-8-sig", "utf-16"]))
        assert list(records.iter_records(path)) == values
        lines = [value for value in values if isinstance(value, dict)]
        glue = rng.choice(["\n", "\r\n", "\n\n", " ", ""])
        path.write_bytes(glue.join(json.dumps(value) for value in lines).encode())
        assert list(records.iter_records(path)) == lines


def test_odd_but_legal_layouts(tmp_path: Path) -> None:
    path = tmp_path / "poems.json"
    for text, expected in [
        ("", []),
        (" \n ", []),
        ("[]", []),
        (" [ 1 ,\r\n{} , [2\n] ] \n", [1, {}, [2]]),
        ('{"a":\n 1}', [{"a": 1}]),
        ('{"a": 1}\n\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
    ]:
        path.write_bytes(text.encode())
        assert list(records.iter_records(path)) == expected


def test_progress_adds_up_to_the_file_size(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "CHUNK", 10)
    path = tmp_path / "poems.jsonl"
    path.write_text('{"title": "春天"}\n' * 20, encoding="utf-8")
    seen = []
    assert len(list(records.iter_records(path, on_read=seen.append))) == 20
    assert sum(seen) == path.stat().st_size


@pytest.mark.parametrize(
    ("text", "line", "column", "shown", "hint"),
    [
        (README_EXAMPLE, 9, 3, "},\n    >>>}", "多了一个 }"),
        ('[{"a": 1},\n]', 2, 1, ">>>]", "多了一个逗号"),
        ('[{"a": 1}\n{"a": 2}]', 2, 1, '>>>{"a": 2}]', "少了一个英文逗号"),
        ('[{"a": 1}', 1, 10, "（到此为止）", "断了"),
        ('[{"a": "春天', 1, 8, '>>>"春天', "断了"),
        ('[{"a": 1,}]', 1, None, "}", "逗号"),
        ('[{"a": "他说"好""}]', 1, 12, '"他说">>>好', "英文双引号"),
        ('[{"a": "一\n二"}]', 1, 10, '"一>>>', "\\n"),
        ("[{“a”: 1}]", 1, 3, ">>>“a”", "英文双引号"),
        ('[{"a"：1}]', 1, 6, ">>>：1", "中文的"),
        ('[{"a": 1}，{"a": 2}]', 1, 10, ">>>，", "中文的"),
        ('[{"a": "\\x"}]', 1, 9, ">>>\\x", "反斜杠"),
        ("[1]]", 1, 4, "[1]>>>]", "之后还有内容"),
        ('{"a": 1},\n{"a": 2}', 1, 9, ">>>,", "[ ]"),
        ("春天", 1, 1, ">>>春天", "请检查"),
        ("[" * 100000, 1, None, "[", "嵌套太深"),
    ],
)
@pytest.mark.parametrize("chunk", [8, 1 << 20])
def test_broken_json_names_the_place_and_the_mend(
    tmp_path: Path, monkeypatch, chunk: int, text: str, line: int, column, shown: str, hint: str
) -> None:
    if chunk == 8 and len(text) > 1000:
        pytest.skip("太长")
    monkeypatch.setattr(records, "CHUNK", chunk)
    path = tmp_path / "poems.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        list(records.iter_records(path))
    message = str(caught.value)
    assert str(path) in message
    assert f"第 {line} 行" in message
    assert column is None or f"第 {column} 列" in message
    if chunk > 8:  # 缓冲区很小时上下文可能不全
        assert shown in message
    assert hint in message


def test_good_records_come_before_the_error(tmp_path: Path) -> None:
    path = tmp_path / "poems.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": }\n', encoding="utf-8")
    reader = records.iter_records(path)
    assert [next(reader), next(reader)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match="第 3 行第 7 列"):
        next(reader)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("gbk", "gb18030"),
        ("gb18030", "gb18030"),
    ],
)
def test_encodings_are_recognised(tmp_path: Path, encoding: str, expected: str) -> None:
    text = '[{"title": "春天", "para": ["一只鸟在想方向"]}]'
    path = tmp_path / "poems.json"
    path.write_bytes(text.encode(encoding))
    assert records.detect_encoding(path) == expected
    assert list(records.iter_records(path)) == json.loads(text)
    assert records.decode(path.read_bytes()) == (text, expected)


def test_late_gbk_bytes_and_a_few_broken_ones(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "CHUNK", 64)
    path = tmp_path / "poems.json"
    path.write_bytes(b'["' + b"x" * 500 + "春天来了".encode("gbk") + b'"]')
    assert records.detect_encoding(path) == "gb18030"
    broken = ("一只鸟在想方向" * 20).encode() + b"\xff" + "春天".encode()
    assert records.decode(broken) == ("一只鸟在想方向" * 20 + "\ufffd春天", "utf-8")


def test_records_longer_than_the_chunk(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "CHUNK", 16)
    values = [{"title": "长", "para": ["春天来了\n" * 500]}, {"title": "短"}]
    path = tmp_path / "poems.json"
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    assert list(records.iter_records(path)) == values
