"""Locks that a forked process does not get locked by a thread that it does not have."""

from __future__ import annotations

import os
import threading

__all__ = ["fork_safe_lock"]


def fork_safe_lock() -> threading.RLock:
    """Return a lock for threads that is free in every process that is forked, as worker processes are.

    Example:
        >>> lock = fork_safe_lock()
        >>> with lock:
        ...     "mine"
        'mine'
    """
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock
