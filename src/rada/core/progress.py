"""Progress bars with rate and time left; quiet when standard error is not a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from rada.core.printable import clean

__all__ = ["progress_bar", "track"]

Item = TypeVar("Item")


@contextlib.contextmanager
def progress_bar(
    description: str, total: int | None, *, enabled: bool | None = None, unit: str = "it"
) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error and yield a function that advances it.

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
            return Text(
                "" if not speed else f"{speed:.1f} {clean(unit)}/s", style="progress.data.speed"
            )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen(err=True), transient=True) as bar:
        task = bar.add_task(clean(description), total=total)
        yield lambda steps: bar.advance(task, steps)


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
