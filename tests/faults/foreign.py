"""外来的诗：各种写法的文件弄坏、拼接、换编码，清洗要么读出诗来，要么一句话；不许卡住。"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import time
from pathlib import Path

import data_clean
from poems import collection
from support import artefacts
from support.console import UserError
from tests.faults.damage import spoil
from tests.faults.hostile import JUNK
from tests.faults.tally import FINE, TOLD, TRACE, WRONG, Tally, problem

_POEM = "春天来了，花开在山坡上\n夏天的雨落在河边\n\n秋天的风吹过麦田\n冬天的雪压着屋顶"
_KEYS = ("title", "para", "author", "content", "paragraphs", "题目", "正文", "messages", "output")
_KEYS += ("instruction", "conversations", "chapter", "role", "poems", "text", "lines", "x")
_ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gb18030", "big5", "latin-1")
_SUFFIXES = (".json", ".jsonl", ".txt", ".csv", ".tsv", ".md", ".pt", ".JSON", "")
_SLOW = 5.0  # 几 KB 的文件，这么多秒还没有清洗完就是卡住了


def _value(rng: random.Random, depth: int = 0) -> object:
    kind = rng.random()
    if kind < 0.4:
        return _POEM[rng.randrange(20) :]
    if kind < 0.6 or depth > 3:
        return rng.choice(JUNK)
    if kind < 0.8:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(_KEYS): _value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _text(rng: random.Random) -> str:
    """一个文件的文字。"""
    kind = rng.randrange(6)
    if kind == 0:
        return json.dumps([_value(rng) for _ in range(3)], ensure_ascii=rng.random() < 0.3)
    if kind == 1:
        return "\n".join(json.dumps(_value(rng), ensure_ascii=False) for _ in range(4))
    if kind == 2:
        comma = rng.choice(",\t;|")
        rows = [["题目", "作者", "内容"], ["窗", "某甲", _POEM], ["井", "", '他说"好"'], ["灯"]]
        return "\n".join(comma.join(rng.sample(row, len(row))) for row in rows)
    if kind == 3:
        return "---\ntitle: 窗\nauthor: [某甲]\n---\n# 窗\n" + _POEM
    if kind == 4:
        mark = rng.choice(("=====", "《窗》 某丙", "\f", "\0", "***", "窗：" + _POEM[:11]))
        return "\n".join((_POEM, mark) * rng.randrange(1, 20))
    return rng.choice((_POEM, "诗" * 3000, "\n" * 500, "《" * 300, "| " * 300, "\r".join(_POEM)))


def _write(path: Path, rng: random.Random) -> None:
    data = _text(rng).encode(rng.choice(_ENCODINGS), "replace")
    if rng.random() < 0.4:
        data = spoil(data, rng)[1]
    path.write_bytes(data)


class Foreign:
    """在 folder 里一次次地清洗。"""

    def __init__(self, folder: Path, tally: Tally) -> None:
        self.folder, self.tally = folder, tally

    def one(self, rng: random.Random) -> None:
        """一个文件夹，一到三个文件。"""
        raw, work = self.folder / "raw", self.folder / "work"
        for each in (raw, work):
            each.mkdir(parents=True)
        for number in range(rng.choice((1, 1, 2, 3))):
            _write(raw / f"某人_{number}{rng.choice(_SUFFIXES)}", rng)
        began, said = time.monotonic(), io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                data_clean.clean(str(raw), str(work), 2, 0.8)
                poems = list(collection.iter_poems(work / artefacts.POEMS))
            sound = all(poem["title"] and any(poem["para"]) for poem in poems)
            verdict, detail = (FINE, "") if poems and sound else (WRONG, f"写出 {poems!r}"[:200])
        except UserError as error:
            verdict, detail = TOLD, str(error)
            if list(work.iterdir()):
                verdict, detail = WRONG, f"没有做成，却留下 {list(work.iterdir())}"
        except Exception as error:
            verdict, detail = TRACE, problem(error)
        if time.monotonic() - began > _SLOW:
            verdict, detail = WRONG, "卡住了"
        inside = [(each.name, each.read_bytes()[:150]) for each in sorted(raw.iterdir())]
        self.tally.add("外来的诗", verdict, f"{detail} {inside}")
        for each in (raw, work):
            shutil.rmtree(each)
