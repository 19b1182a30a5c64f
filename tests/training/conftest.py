"""训练测试共用的材料；要别样的数据，在自己的文件里另写一个 data。"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_run import build_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """自带诗的前 60 首做的 dataset.bin。"""
    return build_data(tmp_path_factory.mktemp("data"))
