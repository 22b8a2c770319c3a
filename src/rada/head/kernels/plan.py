"""How the work of one call is cut into pieces that fit a memory budget and the caches."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

__all__ = ["Plan", "default_budget", "make_plan"]

_CHUNK_ROWS = {False: 288, True: 336}
"""Rows (images times classes) per chunk, by whether activations are kept: enough for full speed."""
_MAP_BYTES = 3 << 20
"""Bytes of class-by-class maps held at once where one map is smaller than that."""
_LARGEST_MAP_BYTES = 16 << 20
"""A map of more bytes than this is never held whole, however much memory is free."""
_BUDGET_CAP = 1 << 30
_BACKWARD_UNITS = 20
_KEPT_UNITS = 6
"""Tensors of `(B, K, D)` size that a chunk works on, and at most kept for the backward pass."""


@dataclass(frozen=True)
class Plan:
    """Sizes of the pieces; they change the rounding and the memory, never the mathematics.

    Attributes:
        images: images per chunk.
        maps: class-by-class maps (one per image and attention head) held at once.
        rows: rows of a tile if maps are not held whole, else None.
        columns: columns of a tile.
        keep: whether activations are kept for the backward pass rather than computed again.
    """

    images: int
    maps: int
    rows: int | None
    columns: int
    keep: bool


def make_plan(
    batch: int,
    classes: int,
    dim: int,
    num_heads: int,
    *,
    itemsize: int,
    budget: int,
    keep: bool = False,
) -> Plan:
    """Choose the pieces for `batch` images, `classes` classes and width `dim`.

    Args:
        batch: images `B`.
        classes: classes `K`.
        dim: width `D`.
        num_heads: attention heads `H`.
        itemsize: bytes per number.
        budget: bytes of working memory to stay under, where at all possible.
        keep: whether activations are wanted for a backward pass.

    Returns:
        The plan. It depends on nothing but the arguments.
    """
    unit = classes * dim * itemsize
    images = min(_CHUNK_ROWS[keep] // classes, budget // (2 * _BACKWARD_UNITS * unit), batch)
    images = max(1, images)
    images = -(-batch // -(-batch // images)) if batch else 1
    one_map = 5 * classes * (classes + 1) * itemsize
    whole = one_map <= min(_LARGEST_MAP_BYTES, budget // 4)
    rows, columns = None, classes
    if not whole:
        columns = max(8, min(512, classes))
        rows = max(8, min(512, budget // (16 * columns * itemsize)))
    maps = max(1, min(images * num_heads, min(_MAP_BYTES, budget // 4) // one_map))
    keep = keep and _KEPT_UNITS * unit * batch <= budget // 2
    return Plan(images=images, maps=maps, rows=rows, columns=columns, keep=keep)


@lru_cache(maxsize=8)
def default_budget(device_type: str = "cpu") -> int:
    """Return the budget in bytes that is used where none is given.

    It is a quarter of the memory that was free when it was first asked for, rounded down to a
    power of two and at most 1 GiB, so that one machine gives the same bits from run to run.

    Args:
        device_type: `"cpu"` or an accelerator.

    Returns:
        Bytes, a power of two.
    """
    free = _free_device_memory() if device_type == "cuda" else _free_host_memory()
    quarter = max(free // 4, 1 << 20)
    return min(_BUDGET_CAP, 1 << (quarter.bit_length() - 1))


def _free_device_memory() -> int:
    free, _ = torch.cuda.mem_get_info()
    return int(free)


def _free_host_memory() -> int:
    """Bytes available to this process: what the kernel reports, within the container's limit."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        found.append(max(limit - used, 0))
    except (OSError, ValueError):
        pass
    return min(found, default=4 << 30)
