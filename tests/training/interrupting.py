"""Ctrl-C at a known place of training."""

from __future__ import annotations

import threading

import pytest

from rada.training import feature_loop


def interrupt_in_third_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the third epoch of the main thread, which alone gets Ctrl-C, be interrupted at its end."""
    ordinary, finished = feature_loop._epoch, []

    def interrupted(*args):  # type: ignore[no-untyped-def]
        found = ordinary(*args)
        if threading.current_thread() is threading.main_thread():
            if len(finished) == 2:
                raise KeyboardInterrupt
            finished.append(found)
        return found

    monkeypatch.setattr(feature_loop, "_epoch", interrupted)
