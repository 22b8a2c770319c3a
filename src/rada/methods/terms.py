"""The sum behind logits: what each dimension of the features adds to the logit of each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rada.head import RAdaHead

__all__ = ["Terms", "linear_terms", "masked_terms"]

EXACT = 1e-4
"""Largest error, relative to the terms, at which float32 logits count as their sum."""


@dataclass(frozen=True, eq=False)
class Terms:
    """Logits of B images among K classes, taken apart into D dimensions.

    Terms can be added and multiplied by numbers, one for each image if need be, as logits can: a mixture
    of models has the mixture of their terms.

    Attributes:
        images: Image features `(B, D)` that the class weights multiply.
        weights: Effective class weights `(B, K, D)`, the scale included; for a RAda head the scale times
            `M * h`.
        values: The terms `(B, K, D)`.
        rest: What is no term of a dimension, such as a bias: `(B, K)` by name.
        mask: The mask of a RAda head that has a part in it, `(B, K, D)`, whatever its strength and weight;
            None without one.

    Example:
        >>> images, weights = torch.eye(2)[:1], torch.tensor([[3.0, 4.0], [5.0, 6.0]])
        >>> terms = Terms.of(images, weights)
        >>> terms.logits()
        tensor([[3., 5.]])
        >>> (terms + 0.5 * terms).logits()
        tensor([[4.5000, 7.5000]])
    """

    images: Tensor
    weights: Tensor
    values: Tensor
    rest: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None

    @classmethod
    def of(
        cls,
        images: Tensor,
        weights: Tensor,
        rest: Mapping[str, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> Terms:
        """Return the terms of image features `(B, D)` and class weights `(K, D)` or `(B, K, D)`."""
        weights = weights.expand(len(images), *weights.shape[-2:])
        return cls(images, weights, images[:, None] * weights, dict(rest or {}), mask)

    def logits(self) -> Tensor:
        """Return the sum of all terms, `(B, K)`."""
        return sum(self.rest.values(), self.values.sum(-1))

    def to(self, other: Tensor) -> Terms:
        """Return the same with the type and on the device of a tensor."""
        mask = None if self.mask is None else self.mask.to(other)
        return self._each(lambda tensor: tensor.to(other), mask)

    def double(self) -> Terms:
        """Return the same in float64, on the CPU."""
        return self.to(torch.zeros((), dtype=torch.float64))

    def __add__(self, other: Terms) -> Terms:
        names = dict.fromkeys((*self.rest, *other.rest))
        zero = torch.zeros_like(self.values[..., 0])
        return Terms(
            self.images + other.images,
            self.weights + other.weights,
            self.values + other.values,
            {name: self.rest.get(name, zero) + other.rest.get(name, zero) for name in names},
            other.mask if self.mask is None else self.mask,
        )

    def __mul__(self, factor: float | Tensor) -> Terms:
        if isinstance(factor, Tensor):  # one for each image, `(B, 1)`
            each = factor.flatten()
            return self._each(
                lambda tensor: tensor * each.view(-1, *[1] * (tensor.ndim - 1)), self.mask
            )
        return self._each(lambda tensor: tensor * factor, self.mask)

    __rmul__ = __mul__

    def __sub__(self, other: Terms) -> Terms:
        return self + -1.0 * other

    def _each(self, change: Callable[[Tensor], Tensor], mask: Tensor | None) -> Terms:
        rest = {name: change(value) for name, value in self.rest.items()}
        return Terms(change(self.images), change(self.weights), change(self.values), rest, mask)


def linear_terms(score: Callable[[Tensor], Tensor], images: Tensor) -> Terms | None:
    """Return the terms of logits that are linear in the image features, None of others.

    Args:
        score: Makes logits `(N, K)` of features `(N, D)`.
        images: `(B, D)`.

    Example:
        >>> weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> linear_terms(lambda rows: rows @ weights.T + 1, torch.eye(2)).rest["bias"]
        tensor([[1., 1.],
                [1., 1.]])
        >>> linear_terms(lambda rows: rows.exp(), 2 * torch.eye(2)) is None
        True
    """
    dim = images.shape[1]
    axes = score(torch.cat([torch.zeros_like(images[:1]), torch.eye(dim).to(images)]))
    bias, weights = axes[0], (axes[1:] - axes[0]).T
    rest = {"bias": bias.expand(len(images), -1)} if bool(bias.any()) else {}
    found, wanted = Terms.of(images, weights, rest), score(images)
    size = found.values.abs().sum(-1) + bias.abs()
    exact = (found.logits() - wanted).abs() <= EXACT * size.clamp(min=1.0)
    return found if bool(exact.all()) else None


def masked_terms(
    head: RAdaHead,
    images: Tensor,
    text: Tensor,
    scale: float | Tensor,
    shortlist: int | None = None,
) -> Terms:
    """Return the terms of a RAda head at full strength: the scale times mask times rational matrix."""
    mask = head(images, text, scale, return_mask=True, shortlist=shortlist).mask
    assert mask is not None  # it was asked for
    return Terms.of(images, scale * mask * text, mask=mask)
