"""照定义写的 BPE：每次合并都从头数一遍。慢，但短得不必怀疑；分词器必须处处与它相同。"""

from __future__ import annotations

from collections import Counter


def learn(words: dict, byte_ids: list, first_new: int, limit: int) -> dict:
    """{词: 次数} → {(左, 右): 新编号}：反复合并次数最多的一对，相同取编号小的。"""
    found, merges = {word: [byte_ids[b] for b in word.encode()] for word in words}, {}
    while len(merges) < limit:
        counts = Counter()
        for word, ids in found.items():
            for pair in zip(ids, ids[1:]):
                counts[pair] += words[word]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges[best] = first_new + len(merges)
        found = {word: merge(ids, best, merges[best]) for word, ids in found.items()}
    return merges


def apply(word: str, byte_ids: list, merges: dict) -> list:
    """一个词 → 编号：按学到的先后，每个合并做一遍。"""
    ids = [byte_ids[b] for b in word.encode()]
    for pair, new in merges.items():
        ids = merge(ids, pair, new)
    return ids


def merge(ids: list, pair: tuple, new: int) -> list:
    """从左到右，把每处 pair 换成 new。"""
    done = []
    while ids:
        taken = 2 if tuple(ids[:2]) == pair else 1
        done.append(new if taken == 2 else ids[0])
        ids = ids[taken:]
    return done
