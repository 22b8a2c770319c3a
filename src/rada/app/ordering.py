"""Which images to label next: those that the model is unsure of, and that differ from one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["most_useful"]


def most_useful(
    features: NDArray[np.float32],
    probabilities: NDArray[np.float32] | None,
    labelled: Sequence[int],
    count: int,
) -> list[int]:
    """Return rows to label next, the most useful first.

    One after the other, the row is taken whose doubt times distance is the largest: doubt is one minus the
    lead of the best class over the second, and distance the cosine distance to the nearest row that is
    labelled or taken (the core-set of Sener and Savarese, ICLR 2018, weighted by margin sampling). Without
    probabilities the distance alone counts.

    Args:
        features: `(N, D)`, unit-norm.
        probabilities: `(N, K)`; None where no classes are named.
        labelled: Rows that have a label.
        count: How many at most.

    Example:
        >>> rows = np.array([[1, 0], [0.995, 0.0999], [0, 1]], np.float32)
        >>> most_useful(rows, None, [0], 2)
        [2, 1]
    """
    doubt = np.ones(len(features))
    if probabilities is not None and probabilities.shape[1] > 1:
        top = np.sort(probabilities.astype(np.float64), axis=1)[:, -2:]
        doubt = 1 - (top[:, 1] - top[:, 0]) + 1e-3
    distance = np.ones(len(features))
    if len(labelled):
        for start in range(0, len(features), 4096):
            part = features[start : start + 4096] @ features[list(labelled)].T
            distance[start : start + 4096] = 1 - part.max(axis=1)
    left = np.ones(len(features), bool)
    left[list(labelled)] = False
    chosen: list[int] = []
    for _ in range(min(count, int(left.sum()))):
        worth = np.where(left, doubt * np.maximum(distance, 1e-6), -1.0)
        row = int(worth.argmax())
        chosen.append(row)
        left[row] = False
        distance = np.minimum(distance, 1 - features @ features[row])
    return chosen
