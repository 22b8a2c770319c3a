from __future__ import annotations

import os
from pathlib import Path

import pytest

from rada.core.caches import cache_root, clear_parts, list_parts
from rada.core.errors import CacheError

KEPT = {
    "encoders/class-names-ab.safetensors": "the embedded model",  # of earlier versions
    "encoders/embedded-ab.safetensors": "the embedded model",
    "encoders/classes-ab.safetensors": "class features",
    "encoders/words-ab.safetensors": "words of explanations",
    "shards/index/00ff.npz": "indexes of shards",
    f"shards/copies/{'0' * 32}/train-1.tar": "copies of remote shards",
    f"shards/copies/{'1' * 32}/.train-2.tar.ab.tmp": "copies of remote shards",
}
FOREIGN = (
    "encoders/mine.txt",
    "shards/notes.md",
    "shards/copies/mine/a.tar",
    "shards/index/x/y.npz",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for place in (*KEPT, *FOREIGN):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    return tmp_path


def test_every_kind_is_listed_with_its_size(root: Path) -> None:
    found = list_parts(root)
    assert {entry.name for entry in found} == set(KEPT.values())
    sizes = sorted((entry.files, entry.bytes) for entry in found)
    assert sizes == [(1, 5), (1, 5), (1, 5), (2, 10), (2, 10)]
    assert all(entry.last_used > 0 for entry in found)


def test_clearing_leaves_what_is_not_the_cache_s(root: Path) -> None:
    assert clear_parts(root) == 35
    left = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert left == set(FOREIGN)
    assert list_parts(root) == []
    assert not (root / "shards/copies" / ("0" * 32)).exists()


def test_what_was_used_lately_may_stay(root: Path) -> None:
    old = root / "shards/index/00ff.npz"
    os.utime(old, (1.0, 1.0))
    assert clear_parts(root, older_than=3600) == 5
    assert not old.exists()
    assert len(list_parts(root)) == 4


def test_an_empty_cache(tmp_path: Path) -> None:
    assert list_parts(tmp_path / "none") == [] and clear_parts(tmp_path / "none") == 0


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADA_CACHE", "~/somewhere")
    assert cache_root() == Path.home() / "somewhere"
    monkeypatch.setenv("RADA_CACHE", "")
    assert cache_root().name == "rada"


def test_what_cannot_be_deleted_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CacheError, match="cannot clear"):
        clear_parts(root)
