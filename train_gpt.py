"""单卡（或 CPU）训练：dataset.bin → checkpoint.bin、best_model.bin；再次运行就接着训练。"""

from __future__ import annotations

from support import console, interpreter

if __name__ == "__main__":
    interpreter.begin()

import config
from support import cuda, threads


def main() -> int:
    cuda.allow_growing_segments()  # 要在导入 PyTorch 之前
    threads.wait_briefly()
    config.load(__doc__)
    from training import loop  # 要几秒；在这里导入，其间的 Ctrl-C 也只是一句话

    return loop.exit_code(loop.train(config.values()))


if __name__ == "__main__":
    console.run(main, must_finish=True)
