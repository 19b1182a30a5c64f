"""量规模用的诗：少的是多的的开头；清洗几乎全部留下。"""

from __future__ import annotations

import io
import itertools
import json
import sys

import data_clean
from tests import many_poems


def some(count, seed=1):
    return [*itertools.islice(many_poems.poems(seed), count)]


def test_the_same_seed_writes_the_same_poems():
    assert some(50) == some(120)[:50]
    assert some(50) != some(50, seed=2)


def test_written_as_json_lines(monkeypatch):
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", written)
    many_poems.main(30, 1)
    lines = written.buffer.getvalue().decode("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == some(30)


def test_cleaning_keeps_nearly_all(tmp_path, capsys):
    raw = tmp_path / "诗.jsonl"
    lines = [json.dumps(poem, ensure_ascii=False) for poem in some(2000)]
    raw.write_text("\n".join(lines), encoding="utf-8")
    report = data_clean.clean(str(raw), str(tmp_path), 10, 0.8)
    assert report.read == 2000 and report.kept > 1980
