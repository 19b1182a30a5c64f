"""评测的表、JSON 与图。"""

from __future__ import annotations

import pytest

from writing import appraisal
from writing.appraisal import Column
from writing.measures import Figure

MINE = Column("a.bin", {"repeated_lines": Figure(0.02, 0.01, 0.034), "written": 8, "lines": None})
HUMAN = Column("验证诗", {"repeated_lines": Figure(0.01, 0.0, 0.02)})


def test_table():
    text = appraisal.table([MINE, HUMAN])
    rows = [row.split() for row in text.split("\n")]
    assert rows[0] == ["a.bin", "验证诗"]
    assert ["重复行", "2.0%（1.0%～3.4%）", "1.0%（0.0%～2.0%）"] in rows
    assert ["写了几首", "8", "—"] in rows
    assert "每首行数" not in text  # 谁都没有的不占一行


def test_record():
    found = appraisal.record(MINE)
    assert found["repeated_lines"] == 0.02 and found["written"] == 8 and found["lines"] is None
    assert found["intervals"] == {"repeated_lines": [0.01, 0.034]}


def test_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="没有安装 matplotlib")
    assert appraisal.draw([MINE, HUMAN], tmp_path / "eval.png")
    assert (tmp_path / "eval.png").read_bytes()[:4] == b"\x89PNG"
