"""Parts of the shots that are held out in turn, to choose a value by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rada.features import Features
from rada.training.strength import position_in_class

__all__ = ["Held", "best_weight", "likeliest_weight", "shot_folds"]


def shot_folds(data: Features, seed: int, folds: int = 4) -> Iterator[tuple[Features, Features]]:
    """Yield images to learn from and images to ask, which are the rest; each is asked once.

    An image of a class that has no other is never asked: nothing would be left to answer with. Classes take
    turns, so that with few shots a fold takes an image of some of them and none of the others.

    Args:
        data: Labelled images.
        seed: Draws the folds.
        folds: Their number, at most.
    """
    labels = data.labels.cpu()
    several = torch.bincount(labels, minlength=len(data.classes))[labels] > 1
    part = (position_in_class(data, seed) + labels) % folds
    for fold in range(folds):
        asked = several & (part == fold)
        if bool(asked.any()):
            yield data.subset((~asked).nonzero()), data.subset(asked.nonzero())


class Held(NamedTuple):
    """Images that were asked of a model which did not learn them.

    Attributes:
        base: Logits that stay, `(Q, K)`.
        added: Logits that are weighed, `(Q, K)`.
        labels: `(Q,)`.
    """

    base: Tensor
    added: Tensor
    labels: Tensor


def best_weight(parts: Sequence[Held], weights: Sequence[float]) -> float:
    """Return the middle one of the weights of the added logits that are as good as the best.

    The best has the most right predictions. Of few images many weights have nearly as many: those within one
    standard error of the best, which for a difference of n predictions that differ in m is sqrt(m) / n. The
    upper one of two in the middle is taken.

    Args:
        parts: At least one.
        weights: What is compared, in ascending order.

    Example:
        >>> part = Held(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        >>> best_weight([part], (0.5, 2.0, 3.0, 4.0))
        3.0
    """
    right = torch.stack(
        [
            torch.cat([(p.base + weight * p.added).argmax(1) == p.labels for p in parts])
            for weight in weights
        ]
    )
    counts = right.sum(1)
    best = right[int(counts.argmax())]
    near = (best.sum() - counts) <= (right != best).sum(1).double().sqrt()
    places = near.nonzero().flatten()
    return weights[int(places[len(places) // 2])]


def likeliest_weight(parts: Sequence[Held], weights: Sequence[float]) -> float:
    """Return the weight of the added logits with the lowest cross-entropy.

    Args:
        parts: At least one.
        weights: What is compared.

    Example:
        >>> part = Held(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        >>> likeliest_weight([part], (0.5, 2.0))
        2.0
    """

    def loss(weight: float) -> float:
        logits = [(part.base + weight * part.added).double() for part in parts]
        pairs = zip(logits, parts, strict=True)
        return sum(float(cross_entropy(x, part.labels, reduction="sum")) for x, part in pairs)

    return min(weights, key=loss)
