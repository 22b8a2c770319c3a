"""A head behind adapters: it sees adapted features, and the zero-shot share sees the plain ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rada.head import RAdaHead
from rada.head.head import HeadOutput

__all__ = ["PairHead", "halves", "pair"]


def pair(adapted: Tensor, plain: Tensor) -> Tensor:
    """Return unit-norm rows that hold adapted and plain features side by side, `(..., 2 D)`."""
    return torch.cat([adapted, plain], -1) * math.sqrt(0.5)


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the adapted and the plain features of rows of `pair`."""
    adapted, plain = (rows * math.sqrt(2)).chunk(2, -1)
    return adapted, plain


class PairHead(RAdaHead):
    """A head on rows of `pair`, whose strength mixes all that was adapted with zero-shot.

    Args:
        dim: Width of the pairs, twice that of the features.
        num_heads: As for `RAdaHead`, as all others.
        temperature: Divides the attention scores.
        memory_budget: Bytes of working memory.

    Example:
        >>> head, rows = PairHead.of(RAdaHead(4, 2)), torch.eye(4)
        >>> output = head(pair(rows, rows.flip(0)), pair(rows, rows), scale=10.0, strength=0.25)
        >>> [round(value, 4) for value in output.logits[0].tolist()]
        [2.5, 0.0, 0.0, 7.5]
    """

    def __init__(
        self, dim: int, num_heads: int, temperature: float, *, memory_budget: int | None = None
    ) -> None:
        super().__init__(dim // 2, num_heads, temperature, memory_budget=memory_budget)
        self.dim = dim

    @classmethod
    def of(cls, head: RAdaHead) -> PairHead:
        """Return a copy of a head."""
        found = cls(
            2 * head.dim, head.num_heads, head.temperature, memory_budget=head.memory_budget
        )
        found.load_state_dict(head.state_dict())
        return found

    def _predict(
        self,
        image_features: Tensor,
        text_features: Tensor,
        scale: float | Tensor,
        strength: float,
        return_mask: bool,
    ) -> HeadOutput:
        (images, plain), (text, names) = halves(image_features), halves(text_features)
        full = super()._predict(images, text, scale, 1.0, return_mask)
        zero_shot = scale * plain @ names.T
        return HeadOutput(
            logits=zero_shot + strength * (full.logits - zero_shot),
            max_deviation=abs(strength) * full.max_deviation,
            mask=full.mask,
        )
