"""Threads of torch: fewer where they would only wait for each other, or shared by tasks side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

__all__ = ["one_thread", "side_by_side", "stop_if_told"]

_told_to_stop: ContextVar[threading.Event | None] = ContextVar("told_to_stop", default=None)


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Let torch use one thread inside the block, and as many as before after it.

    Args:
        wanted: Whether to; False changes nothing.

    Example:
        >>> with one_thread():
        ...     torch.get_num_threads()
        1
    """
    threads = torch.get_num_threads()
    change = wanted and threads != 1
    if change:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if change:
            torch.set_num_threads(threads)


def stop_if_told() -> None:
    """Raise a `KeyboardInterrupt` in a task whose neighbours failed or were interrupted.

    Long loops that may run in `side_by_side` call it in each step; elsewhere it does nothing.
    """
    told = _told_to_stop.get()
    if told is not None and told.is_set():
        raise KeyboardInterrupt


def side_by_side(tasks: Sequence[Callable[[], Any]], workers: int) -> list[Any]:
    """Run tasks in threads that share torch's threads, and return their results in order.

    The first runs in the calling thread; the others one after another in `workers - 1` threads beside it.

    Args:
        tasks: What to run. They must draw from no global source of random numbers.
        workers: Threads; 1 runs the tasks one after another, each with all of torch's threads.

    Raises:
        BaseException: What the first task that failed raised. An error, or Ctrl-C, tells the others to stop
            (`stop_if_told`), and all have ended when it is raised.

    Example:
        >>> side_by_side([lambda: "a", lambda: "b"], workers=2)
        ['a', 'b']
    """
    if min(workers, len(tasks)) < 2:
        return [task() for task in tasks]
    threads, stop = torch.get_num_threads(), threading.Event()
    share = max(1, threads // workers)

    def run(task: Callable[[], Any]) -> Any:
        token = _told_to_stop.set(stop)
        try:
            stop_if_told()
            torch.set_num_threads(share)  # of this thread
            return task()
        except BaseException:
            stop.set()
            raise
        finally:
            _told_to_stop.reset(token)

    with ThreadPoolExecutor(workers - 1, thread_name_prefix="rada-beside") as pool:
        others = [pool.submit(run, task) for task in tasks[1:]]
        try:
            first = run(tasks[0])
            return [first, *(one.result() for one in others)]
        except BaseException as error:
            stop.set()
            wait(others)
            for found in (error, *(one.exception() for one in others)):
                # an interrupt may be what another's error caused
                if found is not None and not isinstance(found, KeyboardInterrupt):
                    raise found from None
            raise
        finally:
            torch.set_num_threads(threads)
