"""Hashes that tell one model from another, the same in every process."""

from __future__ import annotations

import hashlib
from itertools import chain

import torch
from torch import Tensor, nn

__all__ = ["digest", "module_digest", "tensor_version", "weights_version"]


def digest(*parts: str) -> str:
    """Return a hash of texts, which keeps their borders apart.

    Example:
        >>> digest("ab", "c") == digest("a", "bc")
        False
    """
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        state.update(len(encoded).to_bytes(8, "little") + encoded)
    return state.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def module_digest(module: nn.Module) -> str:
    """Return a hash of the names, types, shapes and values of all parameters and buffers.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = module_digest(layer)
        >>> _ = layer.weight.data.mul_(2)
        >>> module_digest(layer) == before
        False
    """
    state = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            state.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
            state.update(_bytes(value))
    return state.hexdigest()


def weights_version(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return what changes when an optimizer or `load_state_dict` writes to the weights.

    Reading it is far cheaper than hashing. Writing through `.data` in place is the one way round it,
    as it is for autograd.
    """
    return tuple(map(tensor_version, chain(module.parameters(), module.buffers())))


def tensor_version(tensor: Tensor) -> tuple[int, int]:
    """Return the same of one tensor."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
