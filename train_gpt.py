"""单卡（或 CPU）训练：dataset.bin → checkpoint.bin、best_model.bin；再次运行就接着训练。"""

from __future__ import annotations

import common
import config
import trainer


def main() -> int:
    config.load(__doc__)
    return trainer.exit_code(trainer.train(config.values()))


if __name__ == "__main__":
    common.run(main)
