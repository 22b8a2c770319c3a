"""How the work of one call is cut into pieces that fit a memory budget and the caches."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ["KernelPlan", "default_budget", "make_plan"]

_BUDGET_CAPS = {"cpu": 1 << 30}
_LARGEST_BUDGET = 4 << 30
"""Bytes that a call may take by default: on the CPU, and on an accelerator."""


class _Pieces(NamedTuple):
    """What a device likes: a CPU pieces that fit its caches, an accelerator few large ones.

    Attributes:
        chunk_rows: Rows (images times classes) per chunk, by whether activations are kept.
        map_bytes: Bytes of class-by-class maps held at once where one map is smaller than that.
        largest_map_bytes: A map of more bytes is never held whole, however much memory is free.
        tile: Rows and columns of a tile of a map that is not held whole.
    """

    chunk_rows: dict[bool, int]
    map_bytes: int
    largest_map_bytes: int
    tile: int


_PIECES = {"cpu": _Pieces({False: 288, True: 336}, 3 << 20, 16 << 20, 512)}
# Every piece costs some thirty kernel launches, whatever its size.
_LARGE_PIECES = _Pieces({False: 1 << 22, True: 1 << 22}, 1 << 30, 1 << 30, 4096)
_BACKWARD_UNITS = 20
_KEPT_UNITS = 6
"""Tensors of `(B, K, D)` size that a chunk works on, and at most kept for the backward pass."""


@dataclass(frozen=True)
class KernelPlan:
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
    device_type: str = "cpu",
) -> KernelPlan:
    """Choose the pieces for `batch` images, `classes` classes and width `dim`.

    Args:
        batch: images `B`.
        classes: classes `K`.
        dim: width `D`.
        num_heads: attention heads `H`.
        itemsize: bytes per number.
        budget: bytes of working memory to stay under, where at all possible.
        keep: whether activations are wanted for a backward pass.
        device_type: `"cpu"` or an accelerator.

    Returns:
        The plan. It depends on nothing but the arguments.
    """
    pieces = _PIECES.get(device_type, _LARGE_PIECES)
    unit = classes * dim * itemsize
    images = min(pieces.chunk_rows[keep] // classes, budget // (2 * _BACKWARD_UNITS * unit), batch)
    images = max(1, images)
    images = -(-batch // -(-batch // images)) if batch else 1
    one_map = 5 * classes * (classes + 1) * itemsize
    whole = one_map <= min(pieces.largest_map_bytes, budget // 4)
    rows, columns = None, classes
    if not whole:
        columns = max(8, min(pieces.tile, classes))
        rows = max(8, min(pieces.tile, budget // (16 * columns * itemsize)))
    maps = max(1, min(images * num_heads, min(pieces.map_bytes, budget // 4) // one_map))
    keep = keep and _KEPT_UNITS * unit * batch <= budget // 2
    return KernelPlan(images=images, maps=maps, rows=rows, columns=columns, keep=keep)


@lru_cache(maxsize=8)
def default_budget(device_type: str = "cpu") -> int:
    """Return the budget in bytes that is used where none is given.

    It is a quarter of the memory that was free when it was first asked for, rounded down to a
    power of two and at most 1 GiB (4 GiB on an accelerator), so that one machine gives the same bits
    from run to run.

    Args:
        device_type: `"cpu"` or an accelerator.

    Returns:
        Bytes, a power of two.
    """
    free = _free_device_memory() if device_type == "cuda" else _free_host_memory()
    quarter = max(free // 4, 1 << 20)
    cap = _BUDGET_CAPS.get(device_type, _LARGEST_BUDGET)
    return min(cap, 1 << (quarter.bit_length() - 1))


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
