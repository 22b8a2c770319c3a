"""ZERO: the confident views vote, each for one class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rada.test_time.base import CombinesViews
from rada.test_time.config import ViewConfig
from rada.test_time.registry import register_test_time_method
from rada.test_time.selection import keep_confident, view_entropies

__all__ = ["Zero", "votes"]


@dataclass(frozen=True)
class Zero(CombinesViews):
    """Temperature zero makes each kept view's prediction one class; the majority wins, by any model."""

    def combined(self, logits: Tensor, config: ViewConfig) -> Tensor:
        """Return the logarithm of the votes of the confident views."""
        # A class without a vote would have the logit -inf: one more vote is spread over all.
        return (votes(logits, config.kept(logits.shape[1])) + 1 / logits.shape[-1]).log()


def votes(logits: Tensor, count: int) -> Tensor:
    """Return the votes of the `count` views with the lowest entropy, and a half more to break a tie.

    Of classes with equally many votes that one wins which the next view in the order of entropy names,
    looking through the views that were not kept; if none names one of them, the most confident of
    the kept views decides.

    Args:
        logits: `(N, V, K)`.
        count: Views that vote.

    Returns:
        `(N, K)`.

    Example:
        >>> logits = torch.tensor([[[9.0, 0.0], [0.0, 8.0], [1.0, 0.0]]])
        >>> votes(logits, 2)
        tensor([[1.5000, 1.0000]])
    """
    classes = logits.shape[-1]
    order = keep_confident(view_entropies(logits), logits.shape[1])
    named = logits.argmax(-1).gather(1, order)
    found = one_hot(named[:, :count], classes).sum(1)
    tied = found == found.amax(-1, keepdim=True)
    # First the views that were not kept, then the kept ones, who always name a tied class.
    after = torch.cat([named[:, count:], named[:, :count]], 1)
    first = tied.gather(1, after).int().argmax(1, keepdim=True)
    bonus = one_hot(after.gather(1, first)[:, 0], classes) * (tied.sum(-1, keepdim=True) > 1)
    return found + 0.5 * bonus


register_test_time_method(
    Zero(
        "zero",
        "ZERO",
        "Farina et al., Frustratingly Easy Test-Time Adaptation of Vision-Language Models, NeurIPS 2024; "
        "the spreading of one more vote, for probabilities above zero, is ours",
    )
)
