"""What several processes of one run exchange; with one process, nothing."""

from __future__ import annotations

import atexit

import torch
from torch import Tensor, distributed

__all__ = [
    "gather_rows",
    "gather_with_gradient",
    "leave_at_exit",
    "process_count",
    "process_rank",
    "wait_for_all",
]


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def leave_at_exit() -> None:
    """Take the group of processes apart before Python ends.

    Gloo's threads that still run when the program is taken down abort it now and then, with exit code -6 for
    what was told well. Other backends end by themselves.
    """
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if _several() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()


def process_rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if _several() else 0


def process_count() -> int:
    """Return how many processes there are."""
    return distributed.get_world_size() if _several() else 1


def wait_for_all() -> None:
    """Wait until every process is here."""
    if process_count() > 1:
        distributed.barrier()


def gather_with_gradient(values: Tensor) -> Tensor:
    """Concatenate the values of all processes, in the order of their numbers, differentiably.

    Args:
        values: `(n, ...)`, of one shape in all processes.

    Example:
        >>> gather_with_gradient(torch.ones(2)).tolist()
        [1.0, 1.0]
    """
    if process_count() == 1:
        return values
    if not values.requires_grad:
        parts = [torch.empty_like(values) for _ in range(process_count())]
        distributed.all_gather(parts, values.contiguous())
        return torch.cat(parts)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(values))


def gather_rows(values: Tensor) -> Tensor:
    """Concatenate the rows of all processes, which may have different numbers of them.

    Example:
        >>> gather_rows(torch.ones(2)).tolist()
        [1.0, 1.0]
    """
    if process_count() == 1:
        return values
    parts: list[Tensor] = [torch.empty(0)] * process_count()
    distributed.all_gather_object(parts, values.cpu())
    return torch.cat([part.to(values.dtype) for part in parts])
