"""验收里的一项，在自己的进程里做：python -m tests.gpu.one 编号 文件夹 [--fake]"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

from tests.gpu.checks import CHECKS, RESULT


def outcome_of(number: int, folder: str, fake: bool) -> dict:
    """做第 number 项；出了什么错都是不过。"""
    from tests.gpu.stage import FAIL, Outcome, Stage

    module, function = next(check.body for check in CHECKS if check.number == number).split(":")
    try:
        check = getattr(importlib.import_module(module), function)
        outcome = check(Stage(Path(folder), fake))
    except Exception as error:
        text = traceback.format_exc()
        outcome = Outcome(FAIL, f"{type(error).__name__}：{error}"[:300], details=text)
    return outcome.to_dict()


def several(numbers: list, folder: str) -> dict:
    """测试用：在假的显卡上接连做几项。"""
    return {str(number): outcome_of(number, folder, fake=True) for number in numbers}


def main() -> None:
    fake = "--fake" in sys.argv
    if fake:
        from tests.fake_cuda import device

        device.install()
    found = outcome_of(int(sys.argv[1]), sys.argv[2], fake)
    print(f"\n{RESULT}{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
