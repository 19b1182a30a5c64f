"""写文件：新的写好以前，旧的一直在自己的名字下；留着的旧的一个字节不差。"""

from __future__ import annotations

import os

import pytest

from support import files


class Killed(Exception):
    """就在这一刻被杀了。"""


def test_the_name_is_there_at_every_moment(tmp_path, monkeypatch):
    """改名的每一刻停下来看：path 总在，内容不是旧的就是新的。"""
    path, previous = tmp_path / "a.bin", tmp_path / "a.prev.bin"
    path.write_bytes(b"old")
    previous.write_bytes(b"older")
    seen = []

    def watched(function):
        def wrapper(*args, **options):
            seen.append(path.read_bytes())
            result = function(*args, **options)
            seen.append(path.read_bytes())
            return result

        return wrapper

    for name in ("replace", "link", "unlink", "fsync"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    with files.atomic_write(path, "wb", previous=previous) as file:
        file.write(b"new")
    assert set(seen) == {b"old", b"new"} and seen.index(b"new") > 0
    assert (path.read_bytes(), previous.read_bytes()) == (b"new", b"old")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.bin", "a.prev.bin"]


def test_without_hard_links_the_old_one_is_renamed(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def no_links(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    with files.atomic_write(path, "wb", previous=tmp_path / "b.bin") as file:
        file.write(b"new")
    assert (path.read_bytes(), (tmp_path / "b.bin").read_bytes()) == (b"new", b"old")


def test_killed_before_the_last_step_the_old_one_keeps_its_name(tmp_path, monkeypatch):
    path, previous = tmp_path / "a.bin", tmp_path / "a.old1.bin"
    path.write_bytes(b"old")

    def killed(*_):
        raise Killed

    monkeypatch.setattr(files, "replace", killed)
    with pytest.raises(Killed), files.atomic_write(path, "wb", previous=previous) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    """名字已经改好了：有的网络盘不支持对目录 fsync。"""
    real = os.fsync

    def fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(22, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_text(tmp_path / "a.txt", "诗")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "诗"
