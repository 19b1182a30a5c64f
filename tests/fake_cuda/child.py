"""子进程：装上假显卡，再跑测试的身体。python -m tests.fake_cuda.child 模块:函数 '{"选项": …}'"""

from __future__ import annotations

import importlib
import json
import sys

from tests import fake_cuda
from tests.fake_cuda import device


def main() -> None:
    body, options = sys.argv[1:]
    module, function = body.split(":")
    device.install()
    fake_cuda.report(getattr(importlib.import_module(module), function)(**json.loads(options)))


if __name__ == "__main__":
    main()
