"""盲评：同一题目两种写法的诗成对排好，谁是谁另记一份，读的人不知道。"""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

from support import console, files
from support.console import UserError
from writing.poet import Poet

COUNT = 40
SIDES = ("甲", "乙")
_HEAD = """每一对是同一个题目的两首诗，次序是打乱的。只看诗，写下你更愿意读的那一首（甲或乙），
分不出就写“平”；全部写完再打开答案。
"""


def sheet(titles: list, first: tuple, second: tuple, seed: int) -> tuple:
    """first、second 各是 (名字, 各题目的诗)；返回卷子，和答案：第几对 → {甲: 名字, 乙: 名字}。"""
    rng = random.Random(seed)
    pairs = list(zip(titles, first[1], second[1]))
    rng.shuffle(pairs)
    parts, key = [_HEAD], {}
    for number, (title, *poems) in enumerate(pairs, 1):
        named = list(zip((first[0], second[0]), poems))
        rng.shuffle(named)
        parts.append(f"════ 第 {number} 对：{title} ════\n")
        for side, (_, poem) in zip(SIDES, named):
            parts.append(f"【{side}】\n{poem}\n")
        parts.append("更愿意读：____\n")
        key[str(number)] = {side: name for side, (name, _) in zip(SIDES, named)}
    return "\n".join(parts), key


def write(poet: Poet, titles: list, ways: dict, seed: int, paths: tuple) -> int:
    """每个题目按两套抽样 ways（名字 → 选项）各写一首，写出卷子与答案两个文件；返回几对。"""
    kept, wanted = [], {name: [] for name in ways}
    for number, title in enumerate(titles, seed):
        with contextlib.suppress(UserError):  # 太长的题目跳过
            asked = [poet.request(title, **{**way, "seed": number}) for way in ways.values()]
            kept.append(title)
            for requests, request in zip(wanted.values(), asked):
                requests.append(request)
    with console.progress(sum(map(len, wanted.values())), "写诗") as bar:
        sides = [
            (name, [each.text for each in poet.write_all(asked, on_done=bar.update)])
            for name, asked in wanted.items()
        ]
    text, key = sheet(kept, *sides, seed=seed)
    for path, content in zip(paths, (text, json.dumps(key, ensure_ascii=False, indent=1))):
        with files.atomic_write(Path(path)) as file:
            file.write(content)
    return len(kept)
