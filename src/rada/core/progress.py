"""Progress bars with rate and time left; quiet when standard error is not a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

from rada.core.printable import clean

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["progress_bar", "track"]

Item = TypeVar("Item")


@contextlib.contextmanager
def progress_bar(
    description: str, total: int | None, *, enabled: bool | None = None, unit: str = "it"
) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error and yield a function that advances it.

    Bars of several threads stand below each other; those with the same description are one.

    Args:
        description: What is being done.
        total: Number of steps; None if unknown.
        enabled: None shows the bar on a terminal only.
        unit: Name of a step in the rate.

    Yields:
        A function that takes the number of steps done since its last call.

    Example:
        >>> with progress_bar("Encoding", total=3, enabled=False) as advance:
        ...     advance(3)
    """
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield lambda steps: None
        return
    bars, line = _screen.enter(clean(description), total, clean(unit))
    try:
        yield lambda steps: bars.advance(line, steps)
    finally:
        _screen.leave(line)


class _Screen:
    """The bars that are shown now, of all threads: rich shows one set of them at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: Progress | None = None
        self._users: dict[TaskID, int] = {}

    def enter(self, description: str, total: int | None, unit: str) -> tuple[Progress, TaskID]:
        """Return the bars, and the one of a description."""
        with self._lock:
            bars = self._bars or _started()
            self._bars = bars
            for task in bars.tasks:
                if task.description == description:
                    if task.total is not None and total is not None:
                        bars.update(task.id, total=task.total + total)
                    self._users[task.id] += 1
                    return bars, task.id
            line = bars.add_task(description, total=total, unit=unit)
            self._users[line] = 1
            return bars, line

    def leave(self, line: TaskID) -> None:
        """Take a bar away when its last user leaves."""
        with self._lock:
            assert self._bars is not None
            self._users[line] -= 1
            if self._users[line]:
                return
            del self._users[line]
            if self._users:
                self._bars.remove_task(line)
            else:
                self._bars.stop()
                self._bars = None


_screen = _Screen()


def _started() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    from rada.core.terminal import screen

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            unit = task.fields["unit"]
            return Text("" if not speed else f"{speed:.1f} {unit}/s", style="progress.data.speed")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=screen(err=True), transient=True)
    bars.start()
    return bars


def track(
    items: Iterable[Item],
    description: str,
    *,
    total: int | None = None,
    enabled: bool | None = None,
    unit: str = "it",
) -> Iterator[Item]:
    """Yield the items and show how far along they are.

    Example:
        >>> list(track([1, 2], "Counting", enabled=False))
        [1, 2]
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, total, enabled=enabled, unit=unit) as advance:
        for item in items:
            yield item
            advance(1)
