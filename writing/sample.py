"""对数几率 → token：纯函数，不知道模型、文字和会话。

先改对数几率（重复惩罚、禁止），再 candidates() 留下候选，draw() 抽一个。选项可以是数，
也可以是每行一个的张量，所以一批里各行可以各用各的选项。语义与 transformers 的
LogitsProcessor 相同（测试对照）。随机数来自各行自己的 torch.Generator，与同批的别行无关。
"""

from __future__ import annotations

from typing import Iterable, Sequence, Union

import torch

from kernels.picking import Picking

Value = Union[float, Sequence[float], torch.Tensor]  # 一个数，或每行一个
GREEDY = 1e-4  # 温度比它还低就是每步取最大：再除下去会溢出
# 收尾的对数几率：平时略减（按模型自己的概率写，诗比人写的短），剩下 LANDING 个 token 起逐渐加
LINGER, LANDING, LAND = -0.5, 80, 4.0


def penalize_repeats(
    logits: torch.Tensor, seen: torch.Tensor, penalty: Value, minus: Value = 0.0
) -> torch.Tensor:
    """重复惩罚（Keskar 2019）：出现过的 token，正的除以 penalty，负的乘以 penalty，再减去 minus
    （OpenAI 的 presence_penalty + frequency_penalty × 次数）；就地修改。

    logits (B, V)；seen (B, N) 出现过的编号，可以重复；penalty、minus 是数或 (B, N)，1 与 0 = 不动
    （用来补齐长短不一的行；补的编号不能与同行真正要惩罚的相同）。
    """
    scores = logits.gather(1, seen)
    scores = torch.where(scores > 0, scores / penalty, scores * penalty)
    return logits.scatter_(1, seen, scores - minus)


def repeated_ngrams(ids: list, size: int) -> set:
    """接在 ids 后面会让某个长为 size 的片段第二次出现的 token。"""
    if size < 1 or len(ids) + 1 < size:
        return set()
    tail = ids[len(ids) - size + 1 :]
    return {
        ids[start + size - 1]
        for start in range(len(ids) - size + 1)
        if ids[start : start + size - 1] == tail
    }


def ban(logits: torch.Tensor, tokens: Iterable[int]) -> torch.Tensor:
    """logits (V,) 里这些 token 不许出现；就地修改。"""
    index = torch.as_tensor(list(tokens), dtype=torch.long, device=logits.device)
    return logits.index_fill_(0, index, -torch.inf)


def allow_only(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """logits (V,) 里只许这些 token 出现；它们若都已被禁止，就一样可能。返回新的张量。"""
    kept, scores = torch.full_like(logits, -torch.inf), logits[tokens]
    if scores.max() == -torch.inf:
        scores = torch.zeros_like(scores)
    return kept.index_copy_(0, tokens, scores)


def candidates(
    logits: torch.Tensor,
    temperature: Value = 1.0,
    top_k: Value = 0,
    top_p: Value = 1.0,
    min_p: Value = 0.0,
) -> tuple:
    """候选的概率与编号，各 (B, K)，每行从大到小；被筛掉的概率为 0，每行至少留一个。

    temperature 0（或近于 0）= 只留最大的；top_k 0、top_p 1、min_p 0 = 不限。次序与 transformers
    相同：温度、top-k、top-p（在 top-k 留下的里面累加）、min-p（相对最大的概率）。
    """
    if not any(isinstance(x, (list, torch.Tensor)) for x in (temperature, top_k, top_p, min_p)):
        return _same_candidates(logits, temperature, top_k, top_p, min_p)
    size = logits.size(-1)
    temperature, top_p, min_p = (_column(x, logits) for x in (temperature, top_p, min_p))
    wanted = _column(top_k, logits)
    widest = _widest(wanted, temperature, size)
    values, ids = logits.topk(widest, dim=-1) if widest < size else logits.sort(-1, True)
    greedy = temperature < GREEDY
    values = values / torch.where(greedy, torch.ones_like(temperature), temperature)
    rank = torch.arange(widest, device=logits.device)
    limit = torch.where(wanted > 0, wanted, torch.full_like(wanted, size))
    limit = torch.where(greedy, torch.ones_like(limit), limit)
    probs = values.masked_fill(rank >= limit, -torch.inf).softmax(-1)
    return _drop_tail(probs, top_p, min_p), ids


def _same_candidates(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple:
    """各行选项相同时的 candidates，少走几步。"""
    size = logits.size(-1)
    if temperature < GREEDY:
        ids = logits.argmax(-1, keepdim=True)
        return torch.ones_like(ids, dtype=logits.dtype), ids
    if 0 < top_k < size:
        values, ids = logits.topk(top_k, dim=-1)
    else:
        values, ids = logits.sort(-1, True)
    probs = (values / temperature).softmax(-1)
    return (_drop_tail(probs, top_p, min_p) if top_p < 1 or min_p > 0 else probs), ids


def _drop_tail(probs: torch.Tensor, top_p: Value, min_p: Value) -> torch.Tensor:
    """从大到小的概率里去掉 top-p、min-p 之外的，再归一。"""
    before = probs.cumsum(-1) - probs  # 比它更可能的加起来
    drop = (before >= top_p) | (probs < min_p * probs[:, :1])
    drop[:, 0] = False
    probs = probs.masked_fill(drop, 0.0)
    return probs / probs.sum(-1, keepdim=True)


def _column(value: Value, logits: torch.Tensor) -> torch.Tensor:
    """数或 (B,) → (1, 1) 或 (B, 1)，与 logits 同设备。"""
    value = torch.as_tensor(value, dtype=logits.dtype, device=logits.device)
    return value.reshape(-1, 1)


def _widest(wanted: torch.Tensor, temperature: torch.Tensor, size: int) -> int:
    """最宽的一行要几个候选。"""
    wanted = torch.where(temperature < GREEDY, torch.ones_like(wanted), wanted)
    low, high = int(wanted.min()), int(wanted.max())
    return size if low <= 0 else min(high, size)


def mark_chances(
    logits: torch.Tensor,
    marks: torch.Tensor,
    scratch: torch.Tensor | None = None,
    picking: Picking | None = None,
) -> torch.Tensor:
    """惩罚之前，标点、换行与收尾（marks (M,)）各有多少概率：(B, V) -> (B, M)。

    scratch：给了就用这块 (B, V) 的内存；每一步都新要一块，缺页比计算还费时间。
    picking：编译好的同一个函数，给了就用。
    """
    if picking is not None:
        return picking.mark_chances(logits, marks)
    top = logits.amax(-1, keepdim=True)
    total = torch.sub(logits, top, out=scratch).exp_().sum(-1, keepdim=True)
    return (logits[:, marks] - top).exp_().div_(total)


def steady_pick(
    logits: torch.Tensor,
    chances: torch.Tensor,
    marks: torch.Tensor,
    uniform: torch.Tensor,
    picking: Picking | None = None,
    **options: Value,
) -> torch.Tensor:
    """同 pick，但标点、换行与收尾照 chances (B, M)，options 只在字里挑；logits 会被改掉。

    降温与截断把摊在几千个字上的概率去掉，剩下的按比例放大，换行就凭空多出几倍：诗碎成一个词
    一行。所以先定是标点还是字。logits 里已被禁止的标点不要，它们的份归字。
    picking：编译好的同一个函数，不必排序时就用。
    """
    if picking is not None and (options["top_k"], options["top_p"]) == (0, 1.0):
        numbers = (_column(options[name], logits) for name in ("temperature", "min_p"))
        numbers = (number.expand(len(logits), 1).contiguous() for number in numbers)
        return picking.steady_pick(logits, chances, marks, uniform, *numbers)
    chances = chances.masked_fill(logits.index_select(1, marks) == -torch.inf, 0.0)
    words = _spread(logits.index_fill_(1, marks, -torch.inf), **options).cumsum_(-1)
    edges, total = chances.cumsum_(-1), words[:, -1:]
    marked = edges[:, -1:]
    share = (1 - marked).clamp_min_(0).masked_fill_(total <= 0, 0.0)  # 字都被禁止了就没有它们的份
    goal = uniform.view(-1, 1) * (marked + share)
    rest = (goal - marked) / share.clamp_min(1e-12) * total
    chosen = torch.where(goal < marked, marks[_find(edges, goal)], _find(words, rest))
    return chosen.squeeze(1)


def _find(edges: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """前缀和 (B, K) 里第一个超过 goal (B, 1) 的；goal 不小于最后一个时取最后一个不为 0 的。

    照编号排着累加：从大到小排的话，差百万分之一的两个字会因舍入换位，同批与单独写就不一样了。
    """
    below = edges[:, -1:] * (1 - 2**-22)
    found = torch.searchsorted(edges, torch.minimum(goal, below), right=True)
    return found.clamp_max_(edges.size(-1) - 1)


def _spread(
    logits: torch.Tensor,
    temperature: Value = 1.0,
    top_k: Value = 0,
    top_p: Value = 1.0,
    min_p: Value = 0.0,
) -> torch.Tensor:
    """全词表的概率 (B, V)，不归一，都被禁止的行全是 0；只有 min-p 时不必排序，就在 logits 里算。"""
    if (top_k, top_p) == (0, 1.0) and not isinstance(temperature, list):
        logits.sub_(logits.amax(-1, keepdim=True).clamp_min_(-1e30))
        probs = (logits if temperature == 1 else logits.div_(temperature)).exp_()
        if isinstance(min_p, list):
            return probs.mul_(probs >= _column(min_p, probs))
        return torch.nn.functional.threshold_(probs, min_p, 0.0)
    probs, ids = candidates(logits, temperature, top_k, top_p, min_p)
    return torch.zeros_like(logits).scatter_(1, ids, probs.nan_to_num_(0.0))


def closing(remaining: int) -> float:
    """还能写 remaining 个 token 时，收尾的对数几率加多少：快写满时自己收住，不被截断。"""
    return LINGER + LAND * max(0.0, 1 - remaining / LANDING)


def draw(probs: torch.Tensor, ids: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """按概率抽样：probs、ids (B, K)，从大到小；uniform (B,) 在 [0, 1) 里均匀。返回 (B,)。"""
    edges = probs.cumsum(-1)
    chosen = (edges <= uniform.view(-1, 1) * edges[:, -1:]).sum(-1, keepdim=True)
    last = (probs > 0).sum(-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(chosen, last)).squeeze(1)


def pick(logits: torch.Tensor, uniform: torch.Tensor, **options: Value) -> torch.Tensor:
    """(B, V) -> (B,)；options 同 candidates。"""
    return draw(*candidates(logits, **options), uniform)


def log_probability(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """这些 token 的 ln p：(B, V), (B,) -> (B,)。"""
    chosen = logits.gather(1, tokens.view(-1, 1)).squeeze(1)
    return chosen - logits.logsumexp(-1)


class Uniforms:
    """一行自己的均匀随机数，成批取以省时间；同一个种子永远给出同一串。"""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self._ready = []

    def next(self) -> float:
        """[0, 1) 里的下一个数。"""
        if not self._ready:
            self._ready = torch.rand(64, generator=self.generator).tolist()[::-1]
        return self._ready.pop()
