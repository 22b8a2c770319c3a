"""The memory that a piece of work takes at its peak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["PeakMemory", "peak_allocated"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures, for the time of a block, how far memory rose above where it was.

    On a CUDA device that is its memory; else the resident memory of the process, on Linux, whose
    kernel lets a process reset its high-water mark.

    Attributes:
        bytes: The rise at its highest; None where it cannot be known.

    Example:
        >>> with PeakMemory() as memory:
        ...     _ = torch.zeros(1_000_000).clone()
        >>> memory.bytes is None or memory.bytes >= 0
        True
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._before: int | None = None

    def __enter__(self) -> PeakMemory:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            try:
                _CLEAR.write_text("5")
            except OSError:
                return self
            self._before = _resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            return
        if torch.cuda.is_available():
            peak: int | None = torch.cuda.max_memory_allocated()
        else:
            peak = _resident("VmHWM")
        self.bytes = None if peak is None else max(0, peak - self._before)


def peak_allocated(work: Callable[[], object]) -> int:
    """Return the most bytes of tensors on the CPU at once during `work`, over what was there before.

    Exact, unlike `PeakMemory`, and slow: torch's profiler notes every allocation.

    Example:
        >>> peak_allocated(lambda: torch.zeros(250).clone())
        2000
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def _resident(field: str) -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
