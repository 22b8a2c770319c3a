"""What a result needs to be run again: versions, machine, command; time and memory that it took."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rada._version import __version__

__all__ = ["Timer", "command_line", "environment", "peak_memory"]

_DISTRIBUTIONS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "open_clip": "open_clip_torch",
    "timm": "timm",
    "numpy": "numpy",
    "pillow": "pillow",
    "scikit-learn": "scikit-learn",
}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def environment() -> dict[str, Any]:
    """Describe where a result comes from, without names of people or hosts.

    Returns:
        Plain JSON values: `{"date", "python", "versions": {...}, "platform", "processor", "cpus",
        "threads", "devices", "variables": {...}}`. A library that is not installed has the version
        None.

    Example:
        >>> sorted(environment())[:4]
        ['cpus', 'date', 'devices', 'platform']
        >>> environment()["versions"]["numpy"].count(".") >= 1
        True
    """
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {"rada": __version__} | {n: _version(p) for n, p in _DISTRIBUTIONS.items()},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": _cpus(),
        "threads": torch.get_num_threads(),
        "devices": devices or ["cpu"],
        "variables": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
    }


def command_line() -> str:
    """Return the command of this process, quoted for a shell, with the program's folder left out.

    Example:
        >>> isinstance(command_line(), str)
        True
    """
    program, *arguments = sys.argv or [""]
    return shlex.join([Path(program).name or "python", *arguments])


def peak_memory() -> int | None:
    """Return the largest resident memory of this process so far, in bytes; None where unknown.

    Example:
        >>> memory = peak_memory()
        >>> memory is None or memory > 1_000_000
        True
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # macOS counts bytes, Linux KiB


@dataclass
class Timer:
    """Measure wall time, processor time and peak memory of a `with` block.

    Peak memory is the process's, not the block's: the system counts it over the whole life.

    Attributes:
        seconds: Wall time; grows while the block runs.
        cpu_seconds: Processor time of all threads of this process.

    Example:
        >>> with Timer() as timer:
        ...     _ = sum(range(1000))
        >>> timer.to_dict()["seconds"] >= 0
        True
    """

    _start: tuple[float, float] | None = field(default=None, repr=False)
    _spent: tuple[float, float] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self._start, self._spent = (time.perf_counter(), time.process_time()), None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._spent = self._elapsed()

    def _elapsed(self) -> tuple[float, float]:
        if self._spent is not None:
            return self._spent
        if self._start is None:
            return (0.0, 0.0)
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]

    @property
    def seconds(self) -> float:
        """Wall time, in seconds."""
        return self._elapsed()[0]

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all threads, in seconds."""
        return self._elapsed()[1]

    def to_dict(self) -> dict[str, Any]:
        """Return `{"seconds", "cpu_seconds", "peak_memory_bytes"}`."""
        return {
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "peak_memory_bytes": peak_memory(),
        }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's model, which `platform.processor()` does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _cpus() -> int:
    """Return the processors that this process may use, which in a container are fewer than all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
