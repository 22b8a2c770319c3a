"""Sharing a folder between processes: each cell is claimed by one of them.

A claim is a lock on an empty file whose name is a hash of the cell's. The operating system gives it back
when the process ends, however it ends, so there are no stale claims.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from rada.core.errors import StorageError
from rada.core.storage import storage_errors, umask

__all__ = ["Locks"]


class Locks:
    """The claims of this process in one folder.

    Args:
        folder: The folder; it is made where there is none.

    Raises:
        StorageError: If it cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Locks(Path(folder)).claim("a cell") as mine:
        ...         mine
        True
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def claim(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Claim a name for the time of the block.

        Args:
            name: What to claim.
            wait: Wait until whoever has it is done, instead of giving up.

        Yields:
            Whether this process has it.

        Raises:
            StorageError: If the file cannot be written, or its file system has no locks.
        """
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        lock = FileLock(self._folder / digest, mode=0o666 & ~umask())
        with storage_errors(self._folder):
            mine = _acquired(lock, wait)
        try:
            yield mine
        finally:
            lock.release()


def _acquired(lock: FileLock, wait: bool) -> bool:
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        return False
    except NotImplementedError as error:
        raise StorageError(
            f"{lock.lock_file!r} is on a file system without locks: choose another folder"
        ) from error
    return True
