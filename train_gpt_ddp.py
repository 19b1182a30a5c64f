"""多卡、多机训练：torchrun --nproc_per_node=卡数 train_gpt_ddp.py；结果与单卡相同，只是更快。

python -m torch.distributed.launch 也可以；不经启动器直接运行就是单进程，
或手工设置 RANK、WORLD_SIZE、MASTER_ADDR、MASTER_PORT（Windows）。
"""

from __future__ import annotations

from support import console, interpreter

if __name__ == "__main__":
    interpreter.begin()

import sys

import config
from support import cuda


def main() -> int:
    cuda.allow_growing_segments()  # 要在导入 PyTorch 之前
    from training import launch, loop  # 要几秒；在这里导入，其间的 Ctrl-C 也只是一句话
    from training.distributed import Told

    with launch.one_voice():
        config.load(__doc__, argv=launch.drop_launcher_arguments(sys.argv[1:]))
    try:
        result = loop.train(config.values())
    except Told:
        launch.wait_to_be_ended()
        return 1
    if result["stopped"]:
        launch.leave_undisturbed()
    return loop.exit_code(result)


if __name__ == "__main__":
    console.run(main, must_finish=True)
