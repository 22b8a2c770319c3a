"""One hash of tensors and JSON values, by which runs, data and weights are told apart."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

__all__ = ["fingerprint_tensors"]


def fingerprint_tensors(*tensors: Tensor, extra: object = None) -> str:
    """Hash the content, shapes and types of tensors together with a JSON value.

    Example:
        >>> fingerprint_tensors(torch.zeros(2)) == fingerprint_tensors(torch.zeros(3))
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(extra, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():  # torch gives no bytes of an empty one
            flat = tensor.detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
