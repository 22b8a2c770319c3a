"""`Evaluation`: what `Classifier.evaluate` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rada.features import Features

if TYPE_CHECKING:
    from rada.data import ImageSplit

__all__ = ["Evaluation"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The models side by side on labelled images.

    Attributes:
        result: Everything as plain JSON values.
        features: The encoded test images; None where a store has them, which are not held in memory.
        classes: Candidate class names.
        logits: Logits `(N, K)` of each row of the result, by its name; none of a store.
        images: The images, where the data has them.
        train: The encoded training images, where they are known.

    Example:
        >>> from rada.evaluation import compare
        >>> import torch
        >>> features = Features(torch.eye(2), [0, 1], ("cat", "dog"))
        >>> rows = {"zero_shot": torch.eye(2), "adapted": torch.eye(2)}
        >>> result = compare(*rows.values(), features.labels, features.classes)
        >>> Evaluation(result, features, features.classes, rows)["adapted"]["accuracy"]
        1.0
    """

    result: dict[str, Any]
    features: Features | None
    classes: tuple[str, ...]
    logits: dict[str, Tensor]
    images: ImageSplit | None = None
    train: Features | None = None

    def __getitem__(self, name: str) -> Any:
        return self.result[name]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return dict(self.result)
