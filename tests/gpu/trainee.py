"""验收里另起的训练进程：python -m tests.gpu.trainee 配置.json [--deterministic]"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> int:
    values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if "--deterministic" in sys.argv:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if "FAKE_CUDA_LIBRARY" in os.environ:
        from tests.fake_cuda import device

        device.install()
    import torch

    from training import loop

    # 只警告的话，flash 仍用它不确定的算法
    torch.use_deterministic_algorithms("--deterministic" in sys.argv)
    return loop.exit_code(loop.train(values))


if __name__ == "__main__":
    sys.exit(main())
