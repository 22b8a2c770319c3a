"""Sharing a folder between processes: each cell is claimed by one of them.

A claim is a lock on one byte of the file `lock`, at a place that a hash of the cell's name gives. The
operating system gives it back when the process ends, however it ends, so there are no stale claims.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rada.core.storage import storage_errors

__all__ = ["Locks"]

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int, place: int, wait: bool) -> None:
        os.lseek(handle, place, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)

    def _unlock(handle: int, place: int) -> None:
        os.lseek(handle, place, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _lock(handle: int, place: int, wait: bool) -> None:
        fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)

    def _unlock(handle: int, place: int) -> None:
        fcntl.lockf(handle, fcntl.LOCK_UN, 1, place)


class Locks:
    """The claims of this process in one folder.

    Args:
        folder: The folder; it is made where there is none.

    Raises:
        StorageError: If the lock file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Locks(Path(folder)) as locks:
        ...     with locks.claim("a cell") as mine:
        ...         mine
        True
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "lock"
        with storage_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def __enter__(self) -> Locks:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    @contextlib.contextmanager
    def claim(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Claim a name for the time of the block.

        Args:
            name: What to claim.
            wait: Wait until whoever has it is done, instead of giving up.

        Yields:
            Whether this process has it.
        """
        place = _place(name)
        try:
            _lock(self._handle, place, wait)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            _unlock(self._handle, place)


def _place(name: str) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2  # places are signed 64-bit numbers
