"""The output layers of many heads, one for each image: all that learns at test time.

The mask is `relu(1 + Z W^T + b)`, where Z is what attention mixes and `out` has the weight W and the bias b.
From the untrained head, whose W and b are zero, they alone have a gradient in the first step; they alone
learn in later steps and from trained heads as well. So Z is computed once, and the change of the mask
is linear in what is learned: a step's length can be given in units of the mask itself, which do not
depend on the encoder's scale, on its width or on how large a gradient is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rada.test_time.start import Rows, Start

__all__ = ["OutLayers", "bytes_of_image"]

MEASURABLE = 1e-6
"""Nats: a step that promises much less than this, of an image of which nothing or all is known, is not
taken, since its direction is rounding."""


def bytes_of_image(start: Start, views: int) -> int:
    """Return the bytes that adaptation to one image takes, of which `views` views are looked at."""
    classes, dim = start.text.shape
    return start.text.element_size() * (5 * dim * dim + 8 * views * classes * dim)


class _Step(NamedTuple):
    """A direction of steepest descent, `(n, D, D)` and `(n, D)`, and the length to go."""

    weight: Tensor
    bias: Tensor
    length: Tensor


class OutLayers:
    """n layers `out`, all as the head has it at first.

    Args:
        start: The head to begin with.
        count: n.

    Attributes:
        weight: `(n, D, D)`.
        bias: `(n, D)`.
    """

    def __init__(self, start: Start, count: int) -> None:
        self.start = start
        out = start.head.out
        self._initial = (out.weight.detach(), out.bias.detach())
        self.weight, self.bias = (
            initial.expand(count, *initial.shape).clone() for initial in self._initial
        )

    def predict(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return logits `(n, m, K)` and the largest deviations of the masks from one, `(n, m)`."""
        return self.start.masked(rows, _linear(rows.mixed, self.weight, self.bias))

    def step(self, rows: Rows, active: Tensor | None = None) -> None:
        """Take one step on the kept views of each image.

        No mask of any of the views moves by more than `max_step`, that of the original one included.

        Args:
            rows: The kept views and, last, the original one, which has no part in the loss.
            active: Which images are learned from, `(n,)`; None for all.
        """
        step = self._descent(rows)
        length = step.length if active is None else step.length * active
        self.weight.sub_(length[:, None, None] * step.weight)
        self.bias.sub_(length[:, None] * step.bias)

    def _descent(self, rows: Rows) -> _Step:
        own = Rows(*(part[:, :-1] for part in rows))
        change = _linear(own.mixed, self.weight, self.bias).requires_grad_(True)
        with torch.enable_grad():
            loss = self.start.loss(*self.start.masked(own, change)).sum()
        (gradient,) = torch.autograd.grad(loss, change)
        pushed = gradient.flatten(1, 2)
        weight = torch.bmm(pushed.transpose(1, 2), own.mixed.flatten(1, 2))
        bias = pushed.sum(1)
        moved = self.start.strength * _linear(rows.mixed, weight, bias).abs().amax((1, 2, 3))
        smallest = torch.finfo(moved.dtype).tiny
        length = torch.where(
            moved > smallest, self.start.config.max_step / moved.clamp(min=smallest), 0
        )
        promised = length * (weight.square().sum((1, 2)) + bias.square().sum(1))
        return _Step(weight, bias, length * promised / (promised + MEASURABLE))

    def pull(self, part: float) -> None:
        """Move every layer by a part of its way back to the start."""
        for tensor, initial in zip((self.weight, self.bias), self._initial, strict=True):
            tensor.lerp_(initial.expand_as(tensor), part)

    def restore(self, which: Tensor) -> None:
        """Put the layers marked in `which (n,)` back to the start."""
        for tensor, initial in zip((self.weight, self.bias), self._initial, strict=True):
            tensor[which] = initial

    def finite(self) -> Tensor:
        """Return which layers are finite, `(n,)`."""
        return self.weight.sum((1, 2)).isfinite() & self.bias.sum(1).isfinite()

    def distance(self) -> Tensor:
        """Return the largest change of any number of each layer, `(n,)`."""
        weight, bias = self._initial
        return torch.maximum(
            (self.weight - weight).abs().amax((1, 2)), (self.bias - bias).abs().amax(1)
        )


def _linear(mixed: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply the layer of each image to its views, `(n, m, K, D)`."""
    flat = torch.baddbmm(bias[:, None], mixed.flatten(1, 2), weight.transpose(1, 2))
    return flat.view_as(mixed)
