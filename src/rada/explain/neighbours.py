"""Like what: the training images that an image is most similar to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from rada.features import Features

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Neighbour", "nearest"]


@dataclass(frozen=True)
class Neighbour:
    """A training image.

    Attributes:
        id: Its key in the training data.
        label: Its class.
        similarity: Cosine of its features and those of the explained image.
        image: The image itself, small; None where there are features alone.
    """

    id: str
    label: str
    similarity: float
    image: Image | None = None


def nearest(
    image: Tensor, train: Features, count: int, *, only: str | None = None
) -> tuple[Neighbour, ...]:
    """Return the training images whose features are most similar, the most similar first.

    Args:
        image: Features `(D,)`, unit-norm.
        train: The training images.
        count: How many.
        only: A class; None for all.

    Example:
        >>> import torch
        >>> train = Features(torch.eye(3), [0, 1, 1], ("cat", "dog"), ids=("a", "b", "c"))
        >>> [found.id for found in nearest(torch.tensor([0.8, 0.0, 0.6]), train, 2)]
        ['a', 'c']
        >>> nearest(torch.tensor([0.8, 0.0, 0.6]), train, 1, only="dog")[0].id
        'c'
    """
    names = [train.classes[label] if label >= 0 else "" for label in train.labels.tolist()]
    cosine = train.plain() @ image.to(train.plain())
    order = cosine.argsort(descending=True, stable=True).tolist()
    chosen = [row for row in order if only is None or names[row] == only][:count]
    return tuple(
        Neighbour(train.ids[row], names[row], float(cosine[row]), _small(train, row))
        for row in chosen
    )


def _small(train: Features, row: int) -> Image | None:
    if train.images is None:
        return None
    image = train.images.load(row)
    image.thumbnail((320, 320))
    return image
