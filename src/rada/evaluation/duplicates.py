"""Near duplicates: images that are in two sets, or twice in one, as copies, resized or compressed again."""

from __future__ import annotations

from typing import NamedTuple

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
_SIDE = 24
_AT_ONCE = 1024
_MOST_PAIRS = 400


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


def near_duplicates(first: Features, second: Features | None = None) -> list[NearDuplicate]:
    """Return for each image of a set its near duplicate in another set, if there is one.

    The features propose pairs, and the pixels decide: small grey versions of both have to be alike. Of
    features alone, only practically equal ones count. At most 400 pairs are looked at, the most similar
    first.

    Args:
        first: A set.
        second: Another one, of the same encoder; None looks within the first, each pair once.

    Raises:
        DataError: If an image cannot be read.

    Example:
        >>> one = Features(torch.eye(3), [0, 1, 2], ("a", "b", "c"))
        >>> other = Features(torch.eye(3)[1:2], [1], ("a", "b", "c"))
        >>> near_duplicates(other, one)
        [NearDuplicate(row=0, other=1, similarity=1.0)]
    """
    others = first if second is None else second
    with_images = first.images is not None and others.images is not None
    found, rows = [], first.plain()
    for start in range(0, len(rows), _AT_ONCE):
        cosine = rows[start : start + _AT_ONCE] @ others.plain().T.to(rows)
        if second is None:  # neither the image itself nor a pair twice
            later = (
                torch.arange(len(rows))[None] > torch.arange(start, start + len(cosine))[:, None]
            )
            cosine = cosine.masked_fill(~later, -1.0)
        best, place = cosine.max(1)
        for row in (best >= (ALIKE if with_images else EQUAL)).nonzero().flatten().tolist():
            found.append(NearDuplicate(start + row, int(place[row]), float(best[row])))
    found.sort(key=lambda pair: -pair.similarity)
    if not with_images:
        return found
    kept: dict[tuple[int, int], Tensor] = {}
    return [pair for pair in found[:_MOST_PAIRS] if _same_pixels(first, others, pair, kept)]


def _same_pixels(
    first: Features, second: Features, pair: NearDuplicate, kept: dict[tuple[int, int], Tensor]
) -> bool:
    one, two = (
        _small(features, which, row, kept)
        for which, (features, row) in enumerate(((first, pair.row), (second, pair.other)))
    )
    return float(one @ two) >= SAME_PIXELS


def _small(features: Features, which: int, row: int, kept: dict[tuple[int, int], Tensor]) -> Tensor:
    """Return the small grey version of an image as a vector of mean 0 and length 1."""
    if (which, row) not in kept:
        assert features.images is not None
        import numpy as np

        image = features.images.load(row).convert("L").resize((_SIDE, _SIDE))
        values = torch.from_numpy(np.array(image, np.float32)).flatten()
        values -= values.mean()
        kept[which, row] = values / values.norm().clamp(min=1e-6)
    return kept[which, row]
