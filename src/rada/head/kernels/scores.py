"""What the two ways of computing the maps share: operands, scores, bounds."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rada.head.kernels.plan import KernelPlan

__all__ = [
    "LOG2_E",
    "MapState",
    "Operands",
    "Padding",
    "column",
    "is_bounded",
    "scores",
    "sections",
]

LOG2_E = math.log2(math.e)
_SAFE_EXPONENT = 40.0
"""Scores below this, in base two, need no maximum: sums stay far from float32's 2^127."""


class Padding(NamedTuple):
    """Of pairs whose classes are fewer than the K rows that the tensors have.

    Attributes:
        classes: Their number, `(N,)`, in the type of the scores.
        bias: Added to the scores: minus infinity where a row or column of a map is no class,
            `(N, 2 K + 1, K)`.
    """

    classes: Tensor
    bias: Tensor


class Operands(NamedTuple):
    """Queries, keys and values of N pairs of image and attention head.

    Attributes:
        queries: stacked, `(N, 2 K + 1, d)`: rational, text and image rows.
        keys: `(N, K, d)`, with any strides.
        values: `(N, K, d)`, with any strides.
        factor: `c = 1 / (tau sqrt(d))`.
        plan: sizes of the pieces.
        padding: None where every pair has K classes; only of maps that are held whole.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    factor: float
    plan: KernelPlan
    padding: Padding | None = None

    def classes(self, part: slice) -> int | Tensor:
        """Return the classes of some pairs."""
        return self.keys.shape[1] if self.padding is None else self.padding.classes[part]

    def scores(self, part: slice, out: Tensor) -> Tensor:
        """Compute the scores of some pairs, in base two."""
        scores(self.queries[part], self.keys[part], self.factor, out)
        return out if self.padding is None else out.add_(self.padding.bias[part])


class MapState(NamedTuple):
    """What the backward pass needs to compute the maps again.

    Attributes:
        total: sums `Z` of the rational, text and image map, `(N, 3)`.
        shift: maxima that were subtracted, in base two, `(N, 3)`, or None if nothing was.
        rational: the rational map's share of the output, `(N, K, d)`; only from tiles.
    """

    total: Tensor
    shift: Tensor | None
    rational: Tensor | None


def is_bounded(operands: Operands) -> bool:
    """Whether Cauchy and Schwarz promise that every score is small."""
    longest_query = torch.linalg.vector_norm(operands.queries, dim=-1).amax()
    longest_key = torch.linalg.vector_norm(operands.keys, dim=-1).amax()
    bound = float(longest_query * longest_key) * operands.factor * LOG2_E
    return bound <= _SAFE_EXPONENT


def classes_are_few(operands: Operands) -> bool:
    """Whether subtracting every map's maximum costs less than proving that it need not be."""
    return operands.keys.shape[1] < 2 * operands.keys.shape[2]


def sections(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split `(N, 2 K + 1, ...)` into its rational, text and image rows."""
    classes = rows.shape[1] // 2
    return rows[:, :classes], rows[:, classes:-1], rows[:, -1:]


def column(numbers: Tensor) -> Tensor:
    """Return `(N,)` numbers as `(N, 1, 1)`."""
    return numbers[:, None, None]


def scores(queries: Tensor, keys: Tensor, factor: float, out: Tensor) -> Tensor:
    """Compute scores in base two: its exponential is the faster one."""
    return torch.baddbmm(out, queries, keys.transpose(1, 2), beta=0, alpha=factor * LOG2_E, out=out)
