"""Asking a run to stop: Ctrl-C, and the SIGTERM of a scheduler that wants the machine back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["EXIT_TERMINATED", "StopRequest", "listening"]

EXIT_TERMINATED = 143
"""Exit code after SIGTERM: 128 + 15, as a shell reports it. The run goes on with the same command."""


class StopRequest:
    """Whether a signal has come, and which."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; a second Ctrl-C does not wait for the step's end."""
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """While the block runs, remember SIGINT and SIGTERM instead of dying of them.

    Outside of the main thread, where Python hears no signals, nothing is ever requested.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
