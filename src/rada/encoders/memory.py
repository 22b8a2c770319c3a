"""Keeping freed memory: glibc hands it back after every batch, which can cost more than the arithmetic."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks up to 1 GiB for the next batch; does nothing elsewhere.

    Returns:
        Whether the thresholds were raised.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    limit = 1 << 30
    raised = library.mallopt(_M_MMAP_THRESHOLD, limit) and library.mallopt(_M_TRIM_THRESHOLD, limit)
    return bool(raised)
