"""The folder for everything that can be made again, and what is kept there beside the features."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rada.errors import CacheError

__all__ = ["KeptPart", "cache_root", "clear_parts", "list_parts"]

# Name, what its files' places below the root look like: nothing else is ever deleted. A copy that was
# killed leaves its temporary file.
_PARTS = {
    "class names of the embedded model": re.compile(r"encoders/class-names-[^/]+\.safetensors"),
    "indexes of shards": re.compile(r"shards/index/[0-9a-f]+\.npz"),
    "copies of remote shards": re.compile(r"shards/copies/[0-9a-f]{32}/(?:[^/]+\.tar|\..+\.tmp)"),
}
_FOLDERS = ("encoders", "shards/index", "shards/copies")


@dataclass(frozen=True)
class KeptPart:
    """Files of one kind that the cache holds.

    Attributes:
        name: What they are.
        files: Their number.
        bytes: Their size on disk.
        last_used: Time of the last use, seconds since 1970.
    """

    name: str
    files: int
    bytes: int
    last_used: float


def cache_root() -> Path:
    """Return `$RADA_CACHE`, or `rada` in the platform's cache directory; it may not exist.

    Example:
        >>> cache_root().is_absolute()
        True
    """
    found = os.environ.get("RADA_CACHE")
    if not found:
        from platformdirs import user_cache_dir

        found = user_cache_dir("rada")
    return Path(found).expanduser().absolute()


def list_parts(root: Path | None = None) -> list[KeptPart]:
    """Return what the cache holds beside features: one entry a kind, none for an empty kind."""
    entries = []
    for name in _PARTS:
        found = [status for _, status, part in _files(root or cache_root()) if part == name]
        if found:
            entries.append(
                KeptPart(
                    name,
                    len(found),
                    sum(status.st_size for status in found),
                    max(_last_used(status) for status in found),
                )
            )
    return entries


def clear_parts(root: Path | None = None, older_than: float | None = None) -> int:
    """Delete what the cache holds beside features; returns the bytes freed.

    Args:
        root: The cache's folder; default: `cache_root()`.
        older_than: Keep what was used in the last so many seconds; default: keep nothing.

    Raises:
        CacheError: If a file cannot be deleted.
    """
    before, freed = time.time() - (older_than or 0), 0
    for path, status, _ in list(_files(root or cache_root())):
        if older_than is not None and _last_used(status) >= before:
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CacheError(f"cannot clear the cache: {error}") from error
        freed += status.st_size
        with contextlib.suppress(OSError):  # something else is in it
            path.parent.rmdir()
    return freed


def _last_used(status: os.stat_result) -> float:
    return max(status.st_atime, status.st_mtime)


def _files(root: Path) -> Iterator[tuple[Path, os.stat_result, str]]:
    """Yield every file of a known kind; others may delete them meanwhile."""
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            place = path.relative_to(root).as_posix()
            for name, pattern in _PARTS.items():
                if pattern.fullmatch(place):
                    with contextlib.suppress(FileNotFoundError):
                        yield path, path.stat(follow_symlinks=False), name
