"""Images that look like none of the classes: far from every training image."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from rada.features import Features

__all__ = ["Unlike", "unlike_images"]

FEWEST = 12
"""With fewer training images nothing is known of how alike they usually are."""
FENCE = 3.0
"""Interquartile ranges below the lower quartile from which a value is far out (Tukey 1977)."""
_AT_ONCE = 1024


class Unlike(NamedTuple):
    """An image that looks like none of the classes.

    Attributes:
        row: Its number.
        similarity: Cosine of its features and those of the most similar training image.
        usual: The median of the same over the training images, each without itself.
    """

    row: int
    similarity: float
    usual: float


def unlike_images(
    features: Features, train: Features, *, but: Collection[str] = ()
) -> list[Unlike]:
    """Return images that are far from every training image, the farthest first.

    The distance to the nearest training image tells images of other things from those of the classes (Sun et
    al., Out-of-distribution detection with deep nearest neighbors, ICML 2022). How near is usual is
    measured on the training images, each without itself; an image is named where its similarity lies
    three interquartile ranges below the lower quartile. Nothing is chosen on the images in question.

    Args:
        features: The images.
        train: The training images, of the same encoder.
        but: Classes whose images are passed over, such as those that were not trained.

    Example:
        >>> angle = torch.linspace(0, 0.5, 20)
        >>> rows = torch.stack([angle.cos(), angle.sin(), 0 * angle], dim=1)
        >>> train = Features(rows, [0] * 20, ("cat",))
        >>> test = Features(torch.stack([rows[7], torch.eye(3)[2]]), [0, 0], ("cat",))
        >>> [one.row for one in unlike_images(test, train)]
        [1]
    """
    if len(train) < FEWEST:
        return []
    keys = train.plain()
    usual = _nearest(keys, keys, apart=True)
    quarter, middle, three = torch.quantile(usual, usual.new_tensor([0.25, 0.5, 0.75])).tolist()
    limit = quarter - FENCE * (three - quarter)
    nearest = _nearest(features.plain().to(keys), keys)
    skipped = {label for label, name in enumerate(features.classes) if name in but}
    found = [
        Unlike(row, float(nearest[row]), middle)
        for row in (nearest < limit).nonzero().flatten().tolist()
        if int(features.labels[row]) not in skipped
    ]
    return sorted(found, key=lambda one: one.similarity)


def _nearest(rows: Tensor, keys: Tensor, *, apart: bool = False) -> Tensor:
    """Return the cosine of each row and the most similar key; `apart`: but that of its own number."""
    found = []
    for start in range(0, len(rows), _AT_ONCE):
        cosine = rows[start : start + _AT_ONCE] @ keys.T
        if apart:
            place = torch.arange(len(cosine))
            cosine[place, start + place] = -2.0
        found.append(cosine.amax(1))
    return torch.cat(found)
