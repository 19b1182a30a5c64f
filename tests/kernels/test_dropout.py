"""dropout：份额、均值，随机数只由种子决定。"""

from __future__ import annotations

import torch

from kernels.dropout import drop, random_noise


def test_dropout_keeps_the_mean_and_drops_its_share():
    torch.manual_seed(3)
    noise = random_noise((1000, 101), torch.device("cpu"))
    x = drop(torch.ones(1000, 101), noise, 0.1)
    assert abs((x == 0).float().mean() - 0.1) < 0.005 and abs(x.mean() - 1) < 0.01
    torch.manual_seed(3)
    assert torch.equal(noise, random_noise((1000, 101), torch.device("cpu")))
    assert torch.equal(drop(x, noise, 0.0), x)
