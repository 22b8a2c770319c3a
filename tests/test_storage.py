from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from rada.core.errors import DataError, StorageError
from rada.core.storage import atomic_path, read_json, write_bytes, write_json


def test_failure_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file"):
        write_bytes(tmp_path / "file" / "a", b"x")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_full_and_read_only_disk(tmp_path: Path, kind: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("this sandbox does not let root mount a tmpfs")
    try:
        path = disk / "head.bin"
        write_bytes(path, b"old")
        if kind == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StorageError, match="full" if kind == "full" else "read-only"):
            write_bytes(path, b"x" * 1_000_000)
        assert path.read_bytes() == b"old"
        assert [entry.name for entry in disk.iterdir()] == ["head.bin"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_json_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"the class names .*a\.json"):
        read_json(path, error=DataError, what="the class names")


def test_json_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps("x" * 100))
    with pytest.raises(DataError, match="more than the 50 allowed"):
        read_json(path, error=DataError, what="it", limit=50)
