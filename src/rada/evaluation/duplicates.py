"""Near duplicates: images that are in two sets, or twice in one, as copies, resized or compressed again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rada.features import Features

__all__ = ["NearDuplicate", "near_duplicates"]

ALIKE = 0.95
"""Images with a smaller cosine are not looked at."""
EQUAL = 0.9995
"""Cosine from which features without images count as those of one image."""
SAME_PIXELS = 0.95
"""Correlation of two small grey images from which they are one image."""
MOST_PAIRS = 64
"""Pairs whose pixels are looked at, the most similar first; within one set each is there twice."""
_SIDE = 24
_AT_ONCE = 1024


class NearDuplicate(NamedTuple):
    """Two images that are one, for all that can be seen.

    Attributes:
        row: Number of the image in the first set.
        other: Number of the image in the second set.
        similarity: Cosine of their features.
    """

    row: int
    other: int
    similarity: float


def near_duplicates(
    first: Features, second: Features | None = None, *, left: list[NearDuplicate] | None = None
) -> list[NearDuplicate]:
    """Return images of a set that have a near duplicate in another set, the most similar first.

    The features propose pairs, and the pixels decide: small grey versions of both have to be alike. Of
    features alone, only practically equal ones count.

    Args:
        first: A set.
        second: Another one, of the same encoder. None looks within the first set for images that are
            there twice with different labels; each of the two is returned, with the other.
        left: Takes the pairs whose pixels were not looked at, since there are too many.

    Raises:
        DataError: If an image cannot be read.

    Example:
        >>> one = Features(torch.eye(3), [0, 1, 2], ("a", "b", "c"))
        >>> other = Features(torch.eye(3)[1:2], [1], ("a", "b", "c"))
        >>> near_duplicates(other, one)
        [NearDuplicate(row=0, other=1, similarity=1.0)]
        >>> near_duplicates(Features(torch.eye(2)[[0, 0, 1]], [0, 1, 1], ("a", "b")))
        [NearDuplicate(row=0, other=1, similarity=1.0), NearDuplicate(row=1, other=0, similarity=1.0)]
    """
    others = first if second is None else second
    with_images = first.images is not None and others.images is not None
    least = ALIKE if with_images else EQUAL
    found, rows, keys = [], first.plain(), others.plain()
    for start in range(0, len(rows), _AT_ONCE):
        cosine = rows[start : start + _AT_ONCE] @ keys.T.to(rows)
        if second is None:
            own = first.labels[start : start + len(cosine)]
            cosine = cosine.masked_fill(first.labels[None] == own[:, None], -1.0)
        best, other = cosine.max(1)
        for row in (best >= least).nonzero().flatten().tolist():
            found.append(NearDuplicate(start + row, int(other[row]), float(best[row])))
    found.sort(key=lambda pair: -pair.similarity)
    if not with_images:
        return found
    most = MOST_PAIRS if second is not None else 2 * MOST_PAIRS
    if left is not None:
        left += found[most:]
    small: dict[tuple[bool, int], Tensor] = {}
    return [pair for pair in found[:most] if _same_pixels(first, others, pair, small)]


def _same_pixels(
    first: Features, second: Features, pair: NearDuplicate, small: dict[tuple[bool, int], Tensor]
) -> bool:
    sides = ((first, pair.row), (second, pair.other))
    for side in sides:
        key = (side[0] is first, side[1])
        if key not in small:
            small[key] = _small(*side)
    one, two = (small[features is first, row] for features, row in sides)
    return float(one @ two) >= SAME_PIXELS


def _small(features: Features, row: int) -> Tensor:
    """Return the small grey version of an image as a vector of mean 0 and length 1."""
    assert features.images is not None
    image = features.images.load(row).convert("L").resize((_SIDE, _SIDE))
    values = torch.from_numpy(np.array(image, np.float32)).flatten()
    values -= values.mean()
    unit: Tensor = values / values.norm().clamp(min=1e-6)
    return unit
