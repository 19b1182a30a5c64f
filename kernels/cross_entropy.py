"""输出层与交叉熵合在一起：分块算 logits、损失与梯度，整块 logits 从不同时存在。

梯度在前向里就算好，所以反向不必重算 logits（做法同 Liger Kernel 的 fused linear cross entropy）；
softmax 的分母折进行缩放，每个 logit 只算一次 exp；输出层的梯度直接加进 weight.grad。
字母：N 是要训练的位置数，n 是一块的，C 是宽，V 是词表大小，M 是抽样时算的词数。
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, NamedTuple

import torch
import torch.nn.functional as F

from kernels.lookup import gradient_of
from support import hardware

_WORDS = 64  # 半精度的词表补零到它的倍数
_SIZES = 4  # 最后一块补零到一块的几分之一的倍数：形状只有这么多种；补的行是零，不影响梯度


class Scratch:
    """反复使用的几块内存，按名字取；省得每次分配大块，把堆切碎。"""

    def __init__(self) -> None:
        self._kept = {}

    def take(
        self, name: str, shape: tuple, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """名为 name 的那一块，形状为 shape；内容是上次留下的。"""
        count = math.prod(shape)
        flat = self._kept.get(name)
        if flat is None or flat.numel() < count or (flat.dtype, flat.device) != (dtype, device):
            flat = self._kept[name] = torch.empty(count, dtype=dtype, device=device)
        return flat[:count].view(shape)


class Chunks(NamedTuple):
    """交叉熵分块的大小。

    一块太少则每块都要加一遍输出层梯度，太多则 logits 占内存；exp 的中间结果是 fp32，
    在 CPU 上一次算少些就留在高速缓存里。
    """

    rows: int  # 一块算多少行
    expo_rows: int  # 其中 exp 一次算多少行


class Soft(NamedTuple):
    """老师的看法：软目标是 softmax(hidden @ weightᵀ)，在损失里占 share 份（Hinton 2015）。"""

    hidden: torch.Tensor  # (N, C')，与学生的位置一一对应
    weight: torch.Tensor  # (V, C')
    share: float


class Candidates(NamedTuple):
    """抽样的 softmax（Jean et al. 2015）：只算词表里的这几个词，labels 是在这里面的第几个。"""

    rows: torch.Tensor  # (M,) 词的编号，互不相同
    bias: torch.Tensor  # (M,) 加在对数几率上：−log(它被抽中的概率)，分母的期望与算全部时相同


def default_chunks(device: str) -> Chunks:
    """这种设备上量得最合适的大小。"""
    return Chunks(512, 64) if device == "cpu" else Chunks(2048, 2048)


def softmax_parts(logits: torch.Tensor, target: torch.Tensor) -> tuple:
    """logits (n, V) -> 各行的损失 (n,)、exp 的行和的倒数 (n, 1)；logits 就地换成
    exp(logits − 行最大值)。"""
    exact = logits.float()
    top = exact.amax(-1, keepdim=True)
    expo = (exact - top).exp()
    total = expo.sum(-1, keepdim=True)
    loss = total.log() + top - exact.gather(1, target[:, None])
    logits.copy_(expo)
    return loss.squeeze(1), total.reciprocal()


def fused_softmax(logits: torch.Tensor, target: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """softmax(logits (n, V)) 放进 out，返回各行的损失 (n,)。

    显卡上的 softmax 一个核读写半精度、里面用 fp32 算，不必造几份 fp32 的副本；损失由最大的那个
    概率求出，它不会太小，fp16 也存得准。
    """
    top, where = logits.max(-1, keepdim=True)
    wanted = logits.gather(1, target[:, None])
    torch.softmax(logits, -1, out=out)
    return (top.float() - out.gather(1, where).float().log() - wanted.float()).squeeze(1)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    chunks: Chunks | None = None,
    kernel: Callable | None = softmax_parts,
    scratch: Scratch | None = None,
    soft: Soft | None = None,
    candidates: Candidates | None = None,
) -> torch.Tensor:
    """sum(交叉熵(hidden @ weightᵀ, labels))；hidden (N, C)，weight (V, C)，labels (N,)。

    给了 soft，返回的数不变，梯度是（1 − share）× 它 + share × 与老师的概率的交叉熵 的。
    给了 candidates，只在这几个词里算（老师的概率也是），返回的是估计。
    反向把 weight 的梯度加进 weight.grad，所以要用 backward()，不能用 torch.autograd.grad。
    chunks 默认按设备；kernel 是 softmax_parts 或编译过的它，None = 用 fused_softmax。
    给了 scratch 就用它的内存；再用它之前要先反向，否则反向报错。
    """
    device = hidden.device.type
    dtype = hardware.autocast_dtype(device) or hidden.dtype
    chunks = chunks or default_chunks(device)
    if soft is not None:
        theirs = soft.weight if candidates is None else soft.weight[candidates.rows]
        soft = soft._replace(hidden=soft.hidden.to(dtype), weight=theirs.to(dtype))
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(
            hidden, weight, labels, chunks, dtype, kernel, scratch or Scratch(), soft, candidates
        )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        chunks: Chunks,
        dtype: torch.dtype,
        kernel: Callable | None,
        scratch: Scratch,
        soft: Soft | None,
        candidates: Candidates | None,
    ) -> torch.Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        take = functools.partial(scratch.take, device=weight.device)
        rows, bias = candidates or (None, None)
        words = len(weight) if rows is None else len(rows)  # 只算 M 个词时，下面的 V 都是 M
        matrix = _copy_of(weight, rows, dtype, take)  # (V', C)
        need = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        hard = 1.0 if soft is None else 1.0 - soft.share
        if need:
            grad_hidden = torch.empty_like(hidden, dtype=torch.float32)
            grad_weight = take("grad", (words, weight.size(1)), torch.float32).zero_()
        for start in range(0, hidden.size(0), chunks.rows):
            part = hidden[start : start + chunks.rows].to(dtype)  # (n, C)
            target = labels[start : start + chunks.rows]  # (n,)
            real, spare = len(part), -len(part) % (max(1, chunks.rows // _SIZES))
            part, target = F.pad(part, (0, 0, 0, spare)), F.pad(target, (0, spare))
            logits = take("logits", (len(part), len(matrix)), dtype)
            torch.mm(part, matrix.t(), out=logits)  # (n, C) @ (C, V') -> (n, V')
            _biased(logits, words, bias)
            if kernel is None:
                expo, inverse = take("softmax", logits.shape, dtype), None
                loss = fused_softmax(logits, target, expo)
            else:
                loss, inverse = _exponentiate(logits, target, chunks.expo_rows, kernel)
                expo = logits  # 里面已经是 exp
            total += loss[:real].sum()
            if need:
                if soft is not None:
                    taught = _taught(soft, slice(start, start + real), bias, take)  # (real, V)
                    expo, inverse = _probabilities(expo, inverse), None
                    expo[:real, :words].sub_(taught, alpha=soft.share)
                grad = _scaled(expo @ matrix, inverse) - hard * matrix[target].float()  # (n, C)
                grad_hidden[start : start + chunks.rows] = grad[:real]
                _add_weight_grad(grad_weight, expo, part, inverse, take)
                grad_weight.index_add_(0, target, part.to(grad_weight.dtype), alpha=-hard)
        if need:
            ctx.save_for_backward(grad_hidden, grad_weight, rows)
            ctx.dtype, ctx.weight = hidden.dtype, weight
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple:
        grad_hidden, grad_weight, rows = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            grad, whole = grad_weight.to(ctx.weight.dtype), gradient_of(ctx.weight)
            if rows is None:
                whole.addcmul_(grad, grad_output)
            else:
                whole.index_add_(0, rows, grad.mul_(grad_output))
        return (grad_hidden.mul_(grad_output).to(ctx.dtype), *(None,) * 8)


def _copy_of(
    weight: torch.Tensor, rows: torch.Tensor | None, dtype: torch.dtype, take: Callable
) -> torch.Tensor:
    """weight（或它的 rows 这几行）的 dtype 副本；显卡上半精度的矩阵乘要补零到整块的行数，
    否则用不上张量核。"""
    words = len(weight) if rows is None else len(rows)
    spare = -words % _WORDS if weight.is_cuda and dtype != torch.float32 else 0
    matrix = take("matrix", (words + spare, weight.size(1)), dtype)
    matrix[:words].copy_(weight if rows is None else weight[rows])
    matrix[words:].zero_()
    return matrix


def _biased(logits: torch.Tensor, words: int, bias: torch.Tensor | None) -> None:
    """logits (n, V') 就地加上 bias (V,)，V 是 words；多出来的是补的零行，当作没有。"""
    if bias is not None:
        logits[:, :words] += bias
    logits[:, words:] = -math.inf


def _scaled(product: torch.Tensor, inverse: torch.Tensor | None) -> torch.Tensor:
    """fp32 的 product · inverse；inverse 为 None 时是 1。"""
    return product.float() if inverse is None else product.float() * inverse


def _taught(soft: Soft, rows: slice, bias: torch.Tensor | None, take: Callable) -> torch.Tensor:
    """老师在这几行上的概率 (n, V)。"""
    part, weight = soft.hidden[rows], soft.weight
    logits = torch.mm(part, weight.t(), out=take("taught", (len(part), len(weight)), part.dtype))
    _biased(logits, len(weight), bias)
    expo = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    return expo.div_(expo.sum(-1, keepdim=True))


def _probabilities(expo: torch.Tensor, inverse: torch.Tensor | None) -> torch.Tensor:
    """就地乘上行和的倒数；inverse 为 None 时已经是概率。"""
    return expo if inverse is None else expo.mul_(inverse)


def _exponentiate(
    logits: torch.Tensor, target: torch.Tensor, piece: int, kernel: Callable
) -> tuple:
    """同 softmax_parts，一次算 piece 行。"""
    pairs = [kernel(*each) for each in zip(logits.split(piece), target.split(piece))]
    losses, inverses = zip(*pairs)
    return torch.cat(losses), torch.cat(inverses)


def _add_weight_grad(
    grad_weight: torch.Tensor,
    expo: torch.Tensor,
    part: torch.Tensor,
    inverse: torch.Tensor | None,
    take: Callable,
) -> None:
    """输出层梯度里概率的一份：expoᵀ @ (part / 行和)。"""
    scaled = part if inverse is None else (part.float() * inverse).to(part.dtype)
    if grad_weight.dtype == expo.dtype:
        grad_weight.addmm_(expo.t(), scaled)  # (V, n) @ (n, C) -> (V, C)
    else:
        product = take("product", (expo.size(1), scaled.size(1)), expo.dtype)
        grad_weight += torch.mm(expo.t(), scaled, out=product)[: len(grad_weight)]
