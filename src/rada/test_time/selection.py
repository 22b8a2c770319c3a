"""Which views to trust, and the loss on them; shared by all ways of adapting."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["entropy", "gather_views", "keep_confident", "mean_log_probability", "view_entropies"]


def entropy(log_probabilities: Tensor) -> Tensor:
    """Return the entropy over the last axis, in nats.

    Example:
        >>> round(float(entropy(torch.tensor([0.5, 0.5]).log()).exp()), 4)
        2.0
    """
    # Probability zero contributes zero, also where its logarithm is -inf.
    finite = log_probabilities.clamp(min=torch.finfo(log_probabilities.dtype).min)
    return -(finite.exp() * finite).sum(-1)


def mean_log_probability(logits: Tensor) -> Tensor:
    """Return the logarithm of the mean probability over the views: `(..., V, K)` to `(..., K)`."""
    return logits.log_softmax(-1).logsumexp(-2) - math.log(logits.shape[-2])


def view_entropies(logits: Tensor) -> Tensor:
    """Return the entropy of each view's prediction, `(..., V, K)` to `(..., V)`, in float64."""
    return entropy(logits.double().log_softmax(-1))


def keep_confident(entropies: Tensor, count: int) -> Tensor:
    """Return the `count` views with the lowest entropy, lowest first, the first of equals.

    Example:
        >>> keep_confident(torch.tensor([[0.3, 0.1, 0.2, 0.1]]), 2)
        tensor([[1, 3]])
    """
    return entropies.sort(dim=-1, stable=True).indices[..., :count]


def gather_views(views: Tensor, kept: Tensor) -> Tensor:
    """Return the kept views: `(N, V, D)` and `(N, m)` to `(N, m, D)`."""
    return views.gather(1, kept[..., None].expand(-1, -1, views.shape[-1]))
