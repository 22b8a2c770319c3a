"""The global generators of torch, NumPy and `random`, lent to one thread at a time.

There is one of each for all threads: two that seed and draw in turns would get each other's numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rada.core.locks import fork_safe_lock

if TYPE_CHECKING:
    import torch

__all__ = ["seeded"]

_drawing = fork_safe_lock()
"""Held by whoever has seeded a global generator, until it is as it was."""


@contextmanager
def seeded(seed: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """While the block runs, torch draws from `seed`; its generators are as before after it.

    Args:
        seed: The seed.
        device: Where is drawn, beside the CPU.

    Example:
        >>> import torch
        >>> with seeded(1):
        ...     one = torch.rand(2)
        >>> with seeded(1):
        ...     bool((one == torch.rand(2)).all())
        True
    """
    import torch  # here, so that listing and naming data needs no torch

    kind = torch.device(device).type
    places = [torch.device(device)] if kind == "cuda" else []
    with _drawing, torch.random.fork_rng(devices=places):
        if kind == "cpu":  # torch.manual_seed would seed the generators of GPUs as well
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        yield
