"""验收的十八项：编号、名字、至多几秒、身体在哪里。不导入 torch。"""

from __future__ import annotations

from typing import NamedTuple

RESULT = "这一项的结论 "


class Check(NamedTuple):
    """一项检查；quick 的在 --quick 里也做。"""

    number: int
    title: str
    seconds: int
    body: str
    quick: bool = False


CHECKS = (
    Check(1, "这张卡", 30, "tests.gpu.card:the_card", True),
    Check(2, "一个核", 30, "tests.gpu.card:one_kernel", True),
    Check(3, "快慢", 40, "tests.gpu.card:speed_of_card", True),
    Check(4, "注意力", 40, "tests.gpu.card:attention", True),
    Check(5, "与 CPU 相同", 60, "tests.gpu.model:parity", True),
    Check(6, "优化器", 40, "tests.gpu.model:optimizer", True),
    Check(7, "编译", 180, "tests.gpu.model:compiling"),
    Check(8, "同步", 60, "tests.gpu.model:syncs"),
    Check(9, "训练的速度", 180, "tests.gpu.training:speed"),
    Check(10, "显存预测", 60, "tests.gpu.training:memory_forecast"),
    Check(11, "显存不足", 150, "tests.gpu.training:out_of_memory"),
    Check(12, "被杀再续", 150, "tests.gpu.training:killed_and_resumed"),
    Check(13, "三种精度", 90, "tests.gpu.model:loss_precisions"),
    Check(14, "学得一样", 120, "tests.gpu.model:learns"),
    Check(15, "写诗", 90, "tests.gpu.writing:decoding"),
    Check(16, "边训练边服务", 90, "tests.gpu.writing:serving"),
    Check(17, "几张卡", 180, "tests.gpu.peers:several_cards"),
    Check(18, "Windows", 30, "tests.gpu.peers:on_windows"),
)
