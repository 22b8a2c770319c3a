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
    "column",
    "is_bounded",
    "scores",
    "sections",
]

LOG2_E = math.log2(math.e)
_SAFE_EXPONENT = 40.0
"""Scores below this, in base two, need no maximum: sums stay far from float32's 2^127."""


class Operands(NamedTuple):
    """Queries, keys and values of N pairs of image and attention head.

    Attributes:
        queries: stacked, `(N, 2 K + 1, d)`: rational, text and image rows.
        keys: `(N, K, d)`, with any strides.
        values: `(N, K, d)`, with any strides.
        factor: `c = 1 / (tau sqrt(d))`.
        plan: sizes of the pieces.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    factor: float
    plan: KernelPlan


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
