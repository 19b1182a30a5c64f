"""词嵌入的初始值：由训练集的相邻词统计算出，而不是随机数。

输出投影从零开始（见 gpt.py），所以起初每块都是恒等映射，模型就是一个双字模型：
logits(u → v) = (w ⊙ norm(E_u)) · E_v，w 是末归一化的权重。这里解出使它一开始就接近真实的
相邻词概率的 E 与 w：E 的第 0 维是 log p(v)，其余各维是对称化的正点互信息矩阵绝对值最大的
特征向量（Levy & Goldberg 2014 的思路，特征值的正负放进 w），每行长度相同。
全部用 fp64 在 CPU 上算，与线程数、设备无关；两核上八万首诗约十秒。
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from support import hardware

SIZE = 0.2  # 词嵌入各个数的大小：随机初始的十倍，AdamW 的步子相对就小，算好的不会被冲掉
POWER = 0.25  # 特征值的指数：小于 1/2，免得头几个特征压过其余
SMOOTHING = 0.75  # 上下文词频的指数（word2vec），压低罕见词虚高的互信息
UNSEEN = 0.5  # 每个词加的次数，没见过的词也有概率
ENOUGH = 1_000_000  # INIT=auto：训练目标不到这么多时用随机的起点（251 首自带的诗上，随机的更好）
MOST_PAIRS = 1 << 24  # 至多统计这么多对相邻词，更多时均匀地取
_CHUNK = 1 << 20  # 一段读这么多 token
_BLOCK, _KRYLOV = 96, 3  # 块 Krylov：一块几列；子空间是所求个数的几倍
HELD_OUT = 0.02  # 末尾这么多相邻对不统计，留着定 w 的两个系数（诗少时互信息靠不住，系数就小）
_FIT_PAIRS = 512  # 至多用其中多少对
_FIT_ROWS = 64  # 一起算这么多对


def embedding(tokens: np.ndarray, mask: np.ndarray, vocab_size: int, dim: int, seed: int) -> tuple:
    """训练集的 token 与训练标记（各 (N,)）→ (词嵌入 (V, dim), 末归一化权重 (dim,))，fp32。

    只统计后一个是训练目标的相邻对；一对也没有时返回 (None, None)。
    """
    before, after = _pairs(tokens, mask)
    aside = max(1, int(HELD_OUT * len(after)))
    before, after, unseen = before[:-aside], after[:-aside], (before[-aside:], after[-aside:])
    if not len(after):
        return None, None
    counts = np.bincount(after, minlength=vocab_size) + UNSEEN
    log_p = torch.from_numpy(np.log(counts / counts.sum()))  # (V,)
    generator = torch.Generator().manual_seed(seed)
    matrix = _mutual_information(before, after, vocab_size)
    del before, after
    hardware.give_back_memory()  # 训练留着释放了的内存；下一步用得少，别让它们一起成为峰值
    values, vectors = _eigen(matrix, min(dim - 1, vocab_size), generator)
    hardware.give_back_memory()
    rows = torch.zeros(vocab_size, dim - 1, dtype=torch.float64)
    rows[:, : len(values)] = vectors * values.abs() ** POWER
    rows = _unit_rows(rows, generator)
    entropy = -(log_p.exp() * log_p).sum()
    table = SIZE * dim**0.5 * torch.cat((log_p[:, None] / entropy, rows), dim=1)  # (V, dim)
    sign = torch.ones(dim - 1, dtype=torch.float64)
    sign[: len(values)] = values.sign()
    weight = _fit(table, sign, *unseen)
    return table.float(), weight.float()


def _pairs(tokens: np.ndarray, mask: np.ndarray) -> tuple:
    """(前一个词, 后一个词)，各 (n,)，类型同 tokens；一段一段地读，内存只随 MOST_PAIRS。"""
    step = max(1, -(-int(np.count_nonzero(mask[1:])) // MOST_PAIRS))
    found, seen = [(tokens[:0], tokens[:0])], 0
    for first in range(1, len(mask), _CHUNK):
        places = first + np.flatnonzero(mask[first : first + _CHUNK])
        kept = places[-seen % step :: step]  # 全部的训练目标里每 step 个取一个
        found.append((tokens[kept - 1], tokens[kept]))
        seen += len(places)
    return tuple(np.concatenate(parts) for parts in zip(*found))


def _mutual_information(before: np.ndarray, after: np.ndarray, size: int) -> torch.Tensor:
    """对称化的正点互信息，稀疏 CSR (V, V)，fp64。"""
    key = np.uint32 if size <= 1 << 16 else np.int64  # 窄的排得快，占得少
    pairs = before.astype(key) * key(size) + after.astype(key)
    pairs, counts = np.unique(pairs, return_counts=True)
    rows, columns = np.divmod(pairs, key(size))
    left = np.bincount(before, minlength=size).astype(np.float64)
    right = np.bincount(after, minlength=size).astype(np.float64) ** SMOOTHING
    values = np.log(counts / left[rows] / (right / right.sum())[columns])
    kept = values > 0
    rows, columns, values = rows[kept], columns[kept], values[kept] / 2
    both = np.concatenate((rows * key(size) + columns, columns * key(size) + rows))
    return _csr(both, np.concatenate((values, values)), size)


def _csr(places: np.ndarray, values: np.ndarray, size: int) -> torch.Tensor:
    """places（行 × size + 列）上的 values，同一处的相加 → 稀疏 CSR (size, size)。

    与 torch 的 coalesce 一样，不造 (2, n) 的 int64 下标，占的内存少。
    """
    order = np.argsort(places, kind="stable")
    places = places[order]
    first = np.flatnonzero(np.append(True, places[1:] != places[:-1])[: len(places)])
    values = np.add.reduceat(values[order], first) if len(first) else values
    rows, columns = np.divmod(places[first], places.dtype.type(size))
    begins = np.append(0, np.bincount(rows, minlength=size).cumsum())
    with warnings.catch_warnings():  # 稀疏张量在 PyTorch 里还标着 beta
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(begins.astype(np.int32)),
            torch.from_numpy(columns.astype(np.int32)),
            torch.from_numpy(values),
            (size, size),
        )


def _eigen(matrix: torch.Tensor, count: int, generator: torch.Generator) -> tuple:
    """绝对值最大的 count 个特征值与特征向量 (V, count)：随机块 Krylov（Musco & Musco 2015）。

    每步把矩阵乘上最新的一块，与已有的全部正交化；再在张成的子空间里分解。
    """
    size = matrix.size(0)
    block = torch.randn(size, min(_BLOCK, size), dtype=torch.float64, generator=generator)
    most = min(size, -(-_KRYLOV * count // _BLOCK) * _BLOCK)
    basis = torch.empty(size, most, dtype=torch.float64)
    small = torch.empty(most, most, dtype=torch.float64)  # basisᵀ @ matrix @ basis
    done = 0
    while done < most:
        for _ in range(2):  # 减两遍，正交到舍入误差
            block = block - basis[:, :done] @ (basis[:, :done].t() @ block)
        block = torch.linalg.qr(block[:, : most - done]).Q  # (V, block)
        end = done + block.size(1)
        basis[:, done:end] = block
        block = matrix @ block
        small[:end, done:end] = basis[:, :end].t() @ block
        small[done:end, :done] = small[:done, done:end].t()  # matrix 是对称的
        done = end
    values, vectors = torch.linalg.eigh((small + small.t()) / 2)
    chosen = values.abs().argsort(descending=True)[:count]
    vectors = basis @ vectors[:, chosen]  # (V, count)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values[chosen], vectors * largest.sign()  # 正负号本是任意的，定下来


def _unit_rows(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """每行长度为 1；没有出现过的词是随机方向。"""
    noise = torch.randn(rows.shape, dtype=rows.dtype, generator=generator)
    length = rows.norm(dim=1, keepdim=True)
    rows = torch.where(length > 1e-9, rows, noise)
    return rows / rows.norm(dim=1, keepdim=True)


def _fit(
    table: torch.Tensor, sign: torch.Tensor, before: np.ndarray, after: np.ndarray
) -> torch.Tensor:
    """w = (a, b·sign)：使没有统计过的相邻对似然最大的 a、b；对 a、b 是凸的，用牛顿法。"""
    places = np.linspace(0, len(after) - 1, min(_FIT_PAIRS, len(after))).astype(np.int64)
    target = torch.from_numpy(after[places].astype(np.int64))[:, None]  # (n, 1)
    hidden = table[torch.from_numpy(before[places].astype(np.int64))]  # (n, dim)
    hidden = hidden * torch.rsqrt(hidden.square().mean(1, keepdim=True))
    parts = torch.stack(
        (
            (hidden[:, :1] @ table[:, :1].t()).float(),
            ((hidden[:, 1:] * sign) @ table[:, 1:].t()).float(),
        )
    )  # (2, n, V)
    scale = torch.zeros(2)
    for _ in range(8):
        slope, curve = torch.zeros(2), torch.zeros(2, 2)
        for some, wanted in zip(parts.split(_FIT_ROWS, 1), target.split(_FIT_ROWS)):
            p = (scale[:, None, None] * some).sum(0).softmax(-1)  # (m, V)
            mean = (p * some).sum(-1)  # (2, m)
            slope += (mean - some.gather(2, wanted.expand(2, -1, 1)).squeeze(2)).sum(1)  # (2,)
            centred = some - mean[:, :, None]
            curve += torch.einsum("nv,inv,jnv->ij", p, centred, centred)
        slope, curve = slope / len(target), curve / len(target)
        step = torch.linalg.solve(curve + 1e-6 * torch.eye(2), slope)
        scale = scale - step / max(1.0, float((step * (curve @ step)).sum().sqrt()))  # 阻尼
    scale = scale.double()
    return torch.cat((scale[:1], scale[1] * sign))
