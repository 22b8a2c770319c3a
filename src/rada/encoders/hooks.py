"""What hangs at the layers of an encoder while a block runs, for one thread at a time."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator

from torch.utils.hooks import RemovableHandle

__all__ = ["INSERTING", "hooked"]

INSERTING = threading.RLock()
"""Held while something hangs at the layers of an encoder, where another thread would meet it."""

# Or a process that is forked while another thread holds it waits for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=INSERTING.acquire,
        after_in_parent=INSERTING.release,
        after_in_child=INSERTING.release,
    )


@contextlib.contextmanager
def hooked(register: Callable[[], Iterable[RemovableHandle]]) -> Iterator[None]:
    """Let hooks be there while the block runs; no other thread meets them.

    Args:
        register: Registers the hooks and returns their handles, once other threads have left such blocks.

    Example:
        >>> import torch
        >>> layer = torch.nn.Identity()
        >>> with hooked(lambda: [layer.register_forward_hook(lambda *_: 7)]):
        ...     layer(1)
        7
        >>> layer(1)
        1
    """
    with INSERTING:
        handles = list(register())
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
