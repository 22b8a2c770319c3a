"""Worker processes for extraction: how many, and how they start, end and fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from rada.core.errors import ConfigError, EncoderError
from rada.features.work import BatchWork, Job, JobResult

__all__ = ["do_jobs", "plan_workers"]

# On a CPU each worker holds the activations of a batch; on another device it only decodes.
_WORKER_MEMORY = 1 << 30
_MOST_DECODERS = 8


def plan_workers(workers: int | None, device: str, jobs: int | None) -> int:
    """Choose the number of worker processes.

    On a CPU each worker decodes and encodes with one thread, which scales better over cores than
    threads do within a model; so there are as many as `torch.get_num_threads()` and the cores of
    this process allow. For another device, workers decode and the model stays in this process.

    Args:
        workers: What the user asked for; None chooses.
        device: Type of the model's device.
        jobs: Number of jobs; None if unknown.

    Returns:
        The number; 0 works in this process.

    Raises:
        ConfigError: If `workers` is negative.

    Example:
        >>> plan_workers(None, "cpu", jobs=1), plan_workers(3, "cuda", jobs=2)
        (0, 2)
    """
    if workers is not None and workers < 0:
        raise ConfigError(f"workers should be 0 or more, not {workers}")
    if not _can_fork():
        return 0
    if workers is None:
        cores = len(os.sched_getaffinity(0))
        if device == "cpu":
            threads = min(torch.get_num_threads(), cores)
            workers = min(threads, max(1, _free_memory() // _WORKER_MEMORY))
            workers = 0 if workers == 1 else workers  # one worker would only move the work
        else:
            workers = min(cores, _MOST_DECODERS)
        if jobs is not None and jobs < 2:
            return 0  # starting a process costs more than it saves
    return workers if jobs is None else min(workers, jobs)


def _can_fork() -> bool:
    # Forked workers share the model's memory and need not pickle it. macOS forks, but its libraries
    # do not survive it.
    return sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def do_jobs(work: BatchWork, jobs: Iterable[Job], workers: int) -> Iterator[JobResult]:
    """Do the jobs and return their results in order; worker processes start at once, not lazily.

    Args:
        work: Does a job.
        jobs: The jobs; taken from it only a few ahead.
        workers: Worker processes; 0 works in this process.

    Raises:
        EncoderError: If a worker process dies; while iterating.
    """
    if workers == 0:
        return map(work.do, jobs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more than the cores
        loader: DataLoader[Any] = DataLoader(
            work,
            batch_size=None,
            sampler=jobs,
            num_workers=workers,
            prefetch_factor=2,
            collate_fn=_same,
            worker_init_fn=_start_worker,
            multiprocessing_context="fork",
            generator=torch.Generator(),  # the global one is the caller's
        )
        return _iterate(iter(loader))


def _iterate(iterator: Iterator[JobResult]) -> Iterator[JobResult]:
    try:
        yield from iterator
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "Caught" in str(error):
            raise
        raise EncoderError(
            f"a worker process died while it encoded images ({error}). Memory may have run out: "
            "lower the batch size or the number of workers (0 uses none). Batches that were "
            "finished are in the cache; the same command goes on from there"
        ) from None
    finally:
        # The traceback of an exception keeps the iterator alive; its workers should go now.
        getattr(iterator, "_shutdown_workers", lambda: None)()


def _same(result: Any) -> Any:
    return result


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the main process alone decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # More than one OpenMP thread hangs in a process forked from one that has used OpenMP.
    torch.set_num_threads(1)
