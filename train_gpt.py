"""单卡（或 CPU）训练：dataset.bin → checkpoint.bin、best_model.bin；再次运行就接着训练。"""

from __future__ import annotations

import config
from support import console
from training import loop


def main() -> int:
    config.load(__doc__)
    return loop.exit_code(loop.train(config.values()))


if __name__ == "__main__":
    console.run(main)
