"""优化器：矩阵用 Muon，其余用 AdamW，或全部用 AdamW；词嵌入里的字另走一步。"""

from __future__ import annotations

import inspect

import torch
from torch import nn

from gpt import GPT
from training.characters import CharAdamW, Spelling

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NEWER = ("chars",)  # 检查点里可以没有（那时没有开），从头来也不碍事


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype, steps: int = 5) -> torch.Tensor:
    """一批矩阵 (n, r, c) 的近似正交化（Newton–Schulz 五次迭代）；Muon，Jordan et al. 2024。"""
    a, b, c = _COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)  # (n, r, c) -> (n, r, r)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Muon：动量、正交化、按形状缩放的步长；同形状的矩阵一起算。

    拼在一起的矩阵（q|k|v、gate|up）由 parts 指明按行分成几个，各自正交化。
    步长缩放取 max(1, 行/列)^0.5（Keller Jordan 原版，torch.optim.Muon 的 "original"）。
    """

    def __init__(
        self,
        params: list,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape = {}
            pairs = [
                each for each in zip(group["params"], group["parts"]) if each[0].grad is not None
            ]
            directions = self._directions([param for param, _ in pairs], group["momentum"])
            for (param, parts), direction in zip(pairs, directions):
                shape = (parts, param.size(0) // parts, param.size(1))
                by_shape.setdefault(shape[1:], []).append((param, direction.view(shape)))
            for (rows, columns), members in by_shape.items():
                stacked = torch.cat([direction for _, direction in members])  # (n, r, c)
                update = orthogonalize(stacked, self.dtype).to(stacked.dtype)
                scale = -group["lr"] * max(1.0, rows / columns) ** 0.5
                pieces = update.split([direction.size(0) for _, direction in members])
                params = [param for param, _ in members]
                pieces = [piece.reshape(param.shape) for param, piece in zip(params, pieces)]
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, pieces, alpha=scale)

    def _directions(self, params: list, momentum: float) -> list:
        """各矩阵更新的方向（Nesterov 动量）；一起算，显卡上几个核就够。"""
        for param in params:
            if "momentum" not in self.state[param]:
                self.state[param]["momentum"] = torch.zeros_like(param)
        grads = [param.grad for param in params]
        averages = [self.state[param]["momentum"] for param in params]
        torch._foreach_lerp_(averages, grads, 1 - momentum)
        return torch._foreach_lerp(grads, averages, momentum)


class Optimizers:
    """一次更新要用的全部优化器，像一个那样用。"""

    def __init__(self, members: dict) -> None:
        self.members = members
        self.base = {
            name: [group["lr"] for group in member.param_groups] for name, member in members.items()
        }

    def step(self, lr_scale: float) -> None:
        """以 lr_scale × 基础学习率更新一次。"""
        for name, member in self.members.items():
            for group, lr in zip(member.param_groups, self.base[name]):
                group["lr"] = lr * lr_scale
            member.step()

    def state_dict(self) -> dict:
        """每个参数的状态，按优化器内的次序；学习率等设置不存，由配置给。"""
        return {name: member.state_dict()["state"] for name, member in self.members.items()}

    def load_state_dict(self, states: dict) -> None:
        for name, member in self.members.items():
            groups = member.state_dict()["param_groups"]
            state = states.get(name, {}) if name in _NEWER else states[name]
            member.load_state_dict({"state": state, "param_groups": groups})


def build(
    model: GPT,
    kind: str,
    lr: float,
    muon_lr: float,
    weight_decay: float,
    dtype: torch.dtype = torch.float32,
    spelling: Spelling | None = None,
    char_lr: float = 0.0,
) -> Optimizers:
    """kind = muon | adamw；dtype 是 Muon 正交化的精度（fp32 时单卡与多卡才一致）。

    给了 spelling，同一个字的词一起学，学习率是 char_lr。
    """
    named = list(model.named_parameters())
    matrices = [(n, p) for n, p in named if p.dim() == 2 and not n.startswith("embed.")]
    embeddings = [p for n, p in named if p.dim() == 2 and n.startswith("embed.")]
    vectors = [p for _, p in named if p.dim() < 2]
    adam_groups = [
        {"params": embeddings, "weight_decay": 0.0},
        {"params": vectors, "weight_decay": 0.0},
    ]
    members = {}
    if kind == "muon":
        parts = {weight.name: len(weight.qwen3) for weight in model.config.weights()}
        group = {"params": [p for _, p in matrices], "parts": [parts[n] for n, _ in matrices]}
        members["muon"] = Muon([group], lr=muon_lr, weight_decay=weight_decay, dtype=dtype)
    else:
        adam_groups.append({"params": [p for _, p in matrices], "weight_decay": weight_decay})
    options = {"betas": (0.9, 0.95), **_fused(model)}
    members["adamw"] = torch.optim.AdamW(adam_groups, lr=lr, **options)
    if spelling is not None:
        members["chars"] = CharAdamW(model.embed.weight, spelling, lr=char_lr, **options)
    return Optimizers(members)


def _fused(model: nn.Module) -> dict:
    """有融合实现的设备用融合的 AdamW。"""
    if "fused" not in inspect.signature(torch.optim.AdamW.__init__).parameters:
        return {}
    device = next(model.parameters()).device.type
    try:
        probe = torch.nn.Parameter(torch.zeros(1, device=device))
        torch.optim.AdamW([probe], fused=True)
    except RuntimeError:
        return {}
    return {"fused": True}
