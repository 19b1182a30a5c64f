"""container.py：写进去的读得回来，同样的内容同样的字节，坏文件说得清。"""

from __future__ import annotations

import struct

import numpy as np
import pytest

from support import container

KIND = container.Kind(b"TESTFILE", 3, "测试")


def write(path, **arrays):
    pieces = {name: container.piece(np.asarray(value)) for name, value in arrays.items()}
    container.write(path, KIND, {"note": "春"}, pieces)
    return path


def test_round_trip(tmp_path):
    path = write(tmp_path / "a", numbers=np.arange(5, dtype=np.int64), empty=np.zeros(0, np.uint8))
    opened = container.load(path, KIND)
    assert opened.header["note"] == "春" and opened.verify() == []
    assert opened.arrays["numbers"].tolist() == [0, 1, 2, 3, 4]
    assert len(opened.arrays["empty"]) == 0 and not opened.arrays["numbers"].flags.writeable
    start = path.stat().st_size - opened.header["bytes"]
    assert all((start + item["offset"]) % 64 == 0 for item in opened.header["arrays"].values())
    opened.close()


def test_parts_are_joined_and_the_fingerprint_follows_the_content(tmp_path):
    parts = (np.arange(first, last, dtype=np.uint8) for first, last in ((0, 3), (3, 3), (3, 5)))
    pieces = {"data": container.Piece("uint8", 5, parts)}
    container.write(tmp_path / "a", KIND, {"note": "春"}, pieces)
    write(tmp_path / "b", data=np.arange(5, dtype=np.uint8))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write(tmp_path / "c", data=np.arange(1, 6, dtype=np.uint8))
    prints = {container.load(tmp_path / name, KIND).fingerprint for name in "abc"}
    assert len(prints) == 2


def test_damage_is_named(tmp_path):
    good = write(tmp_path / "a", data=np.arange(100)).read_bytes()
    for content, words in (
        (b"", "不是本项目的测试文件"),
        (good[:8] + struct.pack("<I", 4) + good[12:], "版本是 4"),
        (good[:30], "不完整"),
        (good[:-1], "不完整"),
        (good[:12] + struct.pack("<I", 2) + b"{}", "头部已损坏"),
        (good[:16] + b"x" * (len(good) - 16), "头部已损坏"),
    ):
        (tmp_path / "b").write_bytes(content)
        with pytest.raises(container.Damaged, match=words):
            container.load(tmp_path / "b", KIND)
    (tmp_path / "b").write_bytes(good[:-800] + b"\x07" + good[-799:])
    assert container.load(tmp_path / "b", KIND).verify() == ["data"]


@pytest.mark.parametrize("change", [{"offset": -64}, {"length": -1}, {"length": 1 << 40}])
def test_arrays_outside_the_file_are_refused(tmp_path, change, monkeypatch):
    write(tmp_path / "a", data=np.arange(100))
    real = container.json.loads

    def loads(text):
        header = real(text)
        header["arrays"]["data"].update(change)
        monkeypatch.setattr(container, "_fingerprint", lambda _: header["fingerprint"])
        return header

    monkeypatch.setattr(container.json, "loads", loads)
    with pytest.raises(container.Damaged, match="头部已损坏"):
        container.load(tmp_path / "a", KIND)


def test_deep_header_is_damaged(tmp_path):
    good = write(tmp_path / "a", data=np.arange(4)).read_bytes()
    (tmp_path / "b").write_bytes(good[:12] + struct.pack("<I", 200000) + b"[" * 200000)
    with pytest.raises(container.Damaged, match="头部已损坏"):
        container.load(tmp_path / "b", KIND)
