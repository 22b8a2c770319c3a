"""The folder for everything that can be made again, and what is kept there beside the features."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rada.core.errors import CacheError

__all__ = ["KeptPart", "cache_root", "cache_size", "clear_parts", "delete_unused", "list_parts"]

# Name, what its files' places below the root look like: nothing else is ever deleted. A copy that was
# killed leaves its temporary file.
_PARTS = {
    "the embedded model": re.compile(r"encoders/(?:class-names|embedded)-[^/]+\.safetensors"),
    "class features": re.compile(r"encoders/classes-[^/]+\.safetensors"),
    "words of explanations": re.compile(r"encoders/words-[^/]+\.safetensors"),
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


def cache_size(root: Path | None = None) -> int:
    """Return the bytes of all files below the cache's folder, 0 where there is none."""
    total = 0
    for folder, _, names in os.walk(root or cache_root()):
        for name in names:
            with contextlib.suppress(OSError):  # another process deletes it meanwhile
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118
    return total


def list_parts(root: Path | None = None) -> list[KeptPart]:
    """Return what the cache holds beside features: one entry a kind, none for an empty kind."""
    found: dict[str, list[os.stat_result]] = {}
    for _, status, name in _files(root or cache_root()):
        found.setdefault(name, []).append(status)
    return [
        KeptPart(
            name,
            len(statuses),
            sum(status.st_size for status in statuses),
            max(_last_used(status) for status in statuses),
        )
        for name, statuses in found.items()
    ]


def clear_parts(root: Path | None = None, older_than: float | None = None) -> int:
    """Delete what the cache holds beside features; returns the bytes freed.

    Args:
        root: The cache's folder; default: `cache_root()`.
        older_than: Keep what was used in the last so many seconds; default: keep nothing.

    Raises:
        CacheError: If a file cannot be deleted.
    """
    files = list(_files(root or cache_root()))
    used = ((path, status.st_size, _last_used(status)) for path, status, _ in files)
    try:
        freed = delete_unused(used, older_than)
    except OSError as error:
        raise CacheError(f"cannot clear the cache: {error}") from error
    for folder in {path.parent for path, _, _ in files}:
        with contextlib.suppress(OSError):  # something else is in it
            folder.rmdir()
    return freed


def delete_unused(files: Iterable[tuple[Path, int, float]], older_than: float | None) -> int:
    """Delete files of a cache; returns the bytes freed.

    Args:
        files: Path, size and time of the last use of each.
        older_than: Keep what was used in the last so many seconds; None keeps nothing.

    Raises:
        OSError: If one cannot be deleted.
    """
    before, freed = time.time() - (older_than or 0), 0
    for path, size, used in files:
        if older_than is None or used < before:
            path.unlink(missing_ok=True)
            freed += size
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
