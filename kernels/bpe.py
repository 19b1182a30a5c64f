"""字节级 BPE 的两件事：从 {词: 次数} 学合并，用合并把一个词编成编号。

两者都不逐次重数，一个词再长也只是多几倍时间；tests/plain_bpe.py 是照定义写的二十行，结果处处相同。
"""

from __future__ import annotations

import heapq
from typing import Iterator, NamedTuple, Sequence

import numpy as np

_GAP = -1  # 词与词之间
_DEAD = -2  # 已经并入左邻的位置
_CACHE_PIECES = 1 << 19  # 编码时最多记住这么多碎片


# ── 学合并 ────────────────────────────────────────────────────────────
#
# 全部不同的词排成一个大数组，词与词之间隔一格；相邻关系是双向链表，合并只改链表：
#
#     合并前  | 看 山 看 山 | 看 |        合并 (看, 山) 之后  | 看山 × 看山 × | 看 |
#
# 每一对 token 记着自己出现在哪些位置（升序）。合并时只碰这些位置，由它们的左右邻居直接得出
# 新的对和次数，从不重数语料。合并也会拆掉旁边的对，堆里的次数因此可能偏大：等它来到
# 堆顶，再按记着的位置核对，少了就改小、放回去（惰性删除）。
#
# 同一个字符串不会由两对不同的 token 合成：它两头的边界若一直没有被跨过，里面每一步
# 怎么合并就只取决于它自己。所以每次合并必得一个新编号，一对的位置也总是一次记全。


def _pair_key(left: int | np.ndarray, right: int | np.ndarray) -> int | np.ndarray:
    """一对编号 → 一个整数，大小次序与 (left, right) 相同；整数与数组都行。"""
    return (left << 32) | right


class _Pairs:
    """一次合并带来的新对：各自的次数和位置，按（次数大、编号小）的次序逐个取出。

    keys (N,) 升序；counts (N,)；第 i 对的位置是 places[starts[i]:starts[i + 1]]。
    """

    __slots__ = ("_order", "_taken", "counts", "keys", "places", "starts")

    def __init__(self, keys: np.ndarray, places: np.ndarray, weights: np.ndarray) -> None:
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        changes = np.ones(len(keys), dtype=bool)
        changes[1:] = keys[1:] != keys[:-1]
        first = np.flatnonzero(changes)
        self.keys = keys[first]
        self.starts = np.append(first, len(keys))
        self.places = places[order]
        self.counts = np.add.reduceat(weights[order], first) if len(first) else weights[:0]
        self._order = np.lexsort((self.keys, -self.counts)).astype(np.int32)
        self._taken = 0

    def take(self) -> int | None:
        """下一对的序号；取完了为 None。"""
        if self._taken == len(self._order):
            return None
        self._taken += 1
        return int(self._order[self._taken - 1])


class Candidate(NamedTuple):
    """堆里的一项；次数取负，heapq 最先给出的就是次数最大、编号最小的一对。"""

    minus_count: int
    key: int
    batch: int  # 出自第几批 _Pairs
    slot: int  # 那一批里的序号
    rechecked: bool  # 次数改小后放回来的

    @property
    def pair(self) -> tuple[int, int]:
        return self.key >> 32, self.key & 0xFFFFFFFF


class MergeLearner:
    """从 {词: 次数} 里学合并：反复 best() 找出最好的一对，merge() 把它合成新 token。"""

    def __init__(self, words: dict[str, int], byte_ids: Sequence[int]) -> None:
        # 0xFF 不会出现在 UTF-8 里，正好用作词与词之间的空格
        text = b"\xff" + b"".join(word.encode("utf-8") + b"\xff" for word in words)
        raw = np.frombuffer(text, dtype=np.uint8)
        table = np.array(byte_ids, dtype=np.int32)
        table[0xFF] = _GAP
        place = np.int32 if len(raw) < 1 << 31 else np.int64
        counts = np.fromiter(words.values(), dtype=np.int64, count=len(words))
        self.ids = table[raw]  # (P,) 每个位置上的 token
        self.left = np.arange(-1, len(raw) - 1, dtype=place)  # (P,) 左邻的位置
        self.right = np.arange(1, len(raw) + 1, dtype=place)  # (P,) 右邻的位置
        self.weights = np.ones(len(raw), dtype=np.int64)  # (P,) 所在的词出现几次
        self.weights[1:] = np.repeat(counts, np.diff(np.flatnonzero(raw == 0xFF)))
        self._batches: list[_Pairs] = []
        self._heap: list[Candidate] = []
        self._add(self._first_pairs())

    def _first_pairs(self) -> _Pairs:
        places = np.flatnonzero((self.ids[:-1] >= 0) & (self.ids[1:] >= 0))
        places = places.astype(self.left.dtype)
        keys = _pair_key(self.ids[places].astype(np.int64), self.ids[places + 1])
        return _Pairs(keys, places, self.weights[places])

    def _add(self, pairs: _Pairs) -> None:
        self._batches.append(pairs)
        self._push_next(len(self._batches) - 1)

    def _push_next(self, batch: int) -> None:
        """每一批只有当前最好的一对在堆里，取走一个补一个：与全部入堆同效，却省内存。"""
        pairs = self._batches[batch]
        slot = pairs.take()
        if slot is not None:
            count, key = int(pairs.counts[slot]), int(pairs.keys[slot])
            heapq.heappush(self._heap, Candidate(-count, key, batch, slot, False))

    def best(self) -> Candidate | None:
        """次数最多的一对（相同取编号小的）；没有可合并的对时为 None。"""
        while self._heap:
            top = heapq.heappop(self._heap)
            if not top.rechecked:
                self._push_next(top.batch)
            count = int(self.weights[self._places(top)].sum())
            if count == -top.minus_count:
                return top
            if count > 0:
                heapq.heappush(self._heap, top._replace(minus_count=-count, rechecked=True))
        return None

    def _places(self, candidate: Candidate) -> np.ndarray:
        """登记过的位置里，此刻仍是这一对的。"""
        pairs, slot = self._batches[candidate.batch], candidate.slot
        left_id, right_id = candidate.pair
        places = pairs.places[pairs.starts[slot] : pairs.starts[slot + 1]]
        places = places[self.ids[places] == left_id]
        return places[self.ids[self.right[places]] == right_id]

    def merge(self, best: Candidate, new: int) -> None:
        """把 best 这一对都合成 new，并登记由此出现的新对。"""
        places = self._places(best)
        if best.pair[0] == best.pair[1]:  # 哈哈哈：从左到右两个两个地合
            places = self._every_other(places)
        seconds = self.right[places]
        nexts = self.right[seconds]
        self.ids[places] = new
        self.ids[seconds] = _DEAD
        self.right[places] = nexts
        self.left[nexts] = places

        prevs = self.left[places]
        prev_ids = self.ids[prevs].astype(np.int64)
        next_ids = self.ids[nexts].astype(np.int64)
        has_prev = prev_ids >= 0
        has_next = (next_ids >= 0) & (next_ids != new)  # 右邻也是 new 的，由右邻登记
        weights = self.weights[places]
        self._add(
            _Pairs(
                np.concatenate(
                    (_pair_key(prev_ids[has_prev], new), _pair_key(new, next_ids[has_next]))
                ),
                np.concatenate((prevs[has_prev], places[has_next])),
                np.concatenate((weights[has_prev], weights[has_next])),
            )
        )

    def _every_other(self, places: np.ndarray) -> np.ndarray:
        """首尾相接的一串位置里，取第 1、3、5…个。"""
        index = np.arange(len(places))
        starts = np.ones(len(places), dtype=bool)
        starts[1:] = self.right[places[:-1]] != places[1:]
        start_of = np.maximum.accumulate(np.where(starts, index, 0))
        return places[(index - start_of) % 2 == 0]


# ── 用合并 ────────────────────────────────────────────────────────────


class WordEncoder:
    """用学到的合并把词编成编号；记住见过的碎片。"""

    def __init__(self, byte_ids: Sequence[int], merges: dict, token_bytes: list[bytes]) -> None:
        """byte_ids: 字节 → 编号；token_bytes: 编号 → 字节。

        merges: (左, 右) → 新编号，按学到的先后排列。
        """
        self._byte_ids = byte_ids
        self._rank = {pair: rank for rank, pair in enumerate(merges)}
        self._merged = list(merges.values())
        self._crossings = {}  # 字界左边的字节 → 右边的各种字节，凡有 token 跨过的
        for before, after in (found for token in token_bytes for found in _crossings(token)):
            self._crossings.setdefault(before, set()).add(after)
        self._edges = {}  # 字 → _add_edge 的结果
        self._pieces = {}  # 碎片 → 编号

    def encode(self, words: list[str]) -> list[int]:
        """几个词 → 首尾相接的编号。"""
        ids = []
        known = self._pieces.get
        for word in words:
            for piece in self._cut(word):
                ids += known(piece) or self._encode_piece(piece)
        return ids

    def _cut(self, word: str) -> list[str]:
        """在没有任何 token 会跨过的地方切开：两边互不影响，碎片又短又常见，记住结果即可。"""
        pieces, start, reach = [], 0, ()
        known = self._edges.get
        for at, char in enumerate(word):
            heads, next_reach = known(char) or self._add_edge(char)
            if at and (not reach or reach.isdisjoint(heads)):
                pieces.append(word[start:at])
                start = at
            reach = next_reach
        pieces.append(word[start:])
        return pieces

    def _add_edge(self, char: str) -> tuple[list[bytes], set[bytes]]:
        """(这个字的各种开头, 有 token 从这个字跨到的下一个字的各种开头)。"""
        raw = char.encode("utf-8")
        heads = [raw[:length] for length in range(1, len(raw) + 1)]
        reach = set().union(*(self._crossings.get(raw[at:], ()) for at in range(len(raw))))
        self._edges[char] = heads, reach
        return heads, reach

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        ids = tuple(self._merge([self._byte_ids[byte] for byte in piece.encode("utf-8")]))
        if len(self._pieces) >= _CACHE_PIECES:
            self._pieces.clear()
        self._pieces[piece] = ids
        return ids

    def _merge(self, ids: list[int]) -> list[int]:
        """反复合并最早学到的一对（相同取最左边的）；用堆找它，用链表删除，长词也不慢。"""
        rank = self._rank.get
        count = len(ids)
        left = list(range(-1, count - 1))
        right = list(range(1, count + 1))
        heap = [(rank(pair), at) for at, pair in enumerate(zip(ids, ids[1:])) if pair in self._rank]
        heapq.heapify(heap)
        while heap:
            best, at = heapq.heappop(heap)
            after = right[at]
            if after >= count or rank((ids[at], ids[after])) != best:
                continue  # 这一对已经被别的合并拆掉
            ids[at], ids[after] = self._merged[best], _DEAD
            after = right[at] = right[after]
            if after < count:
                left[after] = at
            for first, second in ((left[at], at), (at, after)):
                if first >= 0 and second < count:
                    found = rank((ids[first], ids[second]))
                    if found is not None:
                        heapq.heappush(heap, (found, first))
        return [token for token in ids if token != _DEAD]


def _crossings(token: bytes) -> Iterator[tuple[bytes, bytes]]:
    """token 跨过的每个字界：(字界左边那个字在 token 里的字节, 右边的)。"""
    starts = [at for at in range(1, len(token)) if token[at] & 0xC0 != 0x80]
    edges = [0, *starts, len(token)]
    for before, at, after in zip(edges, starts, edges[2:]):
        yield token[before:at], token[at:after]
