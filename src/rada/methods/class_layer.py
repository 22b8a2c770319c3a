"""A linear layer with one row a class, and what its methods share.

A class that the layer never saw has the features of its name in the place of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rada.core.errors import FeatureError
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run

__all__ = ["ClassLayer", "ClassLayerModel", "CosineLayerModel", "class_means"]


class ClassLayerModel(AdaptedModel):
    """`scale * f @ W.T`; a class that it never saw has its class features as weight."""

    def __init__(self, method: Method, facts: Facts, config: Any, *_: object) -> None:
        super().__init__(method, facts, config)
        self.weight = nn.Parameter(torch.zeros(len(facts.classes), facts.dim))

    def rows_or(self, classes: ClassSet, otherwise: Tensor) -> Tensor:
        """Return the learned row of each class `(K, D)`, that of `otherwise` where there is none."""
        found = classes.rows_among(self.facts.classes)
        device = self.weight.device
        known = torch.tensor([row is not None for row in found], device=device)
        rows = torch.tensor([0 if row is None else row for row in found], device=device)
        return torch.where(known[:, None], self.weight[rows], otherwise.to(device))

    def class_weights(self, classes: ClassSet) -> Tensor:
        """Return the weights of the classes, `(K, D)`."""
        return self.rows_or(classes, classes.text_features)

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the layer's outputs."""
        return self.facts.scale * images @ self.class_weights(classes).T


class CosineLayerModel(ClassLayerModel):
    """`scale * cosine` of images and weights."""

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the layer's outputs, whatever the lengths of its weights."""
        return self.facts.scale * images @ normalize(self.class_weights(classes), dim=-1).T


@dataclass(frozen=True)
class ClassLayer(Method):
    """Starts as zero-shot: the weights are the class features."""

    model = ClassLayerModel

    def start(self, data: Features, config: Any, run: Run) -> AdaptedModel:
        """Return the layer whose weights are the class features."""
        model = super().start(data, config, run)
        assert isinstance(model, ClassLayerModel)
        with torch.no_grad():
            model.weight.copy_(data.class_set().text_features)
        return model


def class_means(rows: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the mean row of each class, zero for a class without any, and how many each has.

    Args:
        rows: `(N, D)`.
        labels: `(N,)` in `[0, count)`.
        count: K.

    Raises:
        FeatureError: If a label is out of range, as only a damaged file can have it.

    Example:
        >>> class_means(torch.tensor([[1.0], [3.0]]), torch.tensor([1, 1]), 2)
        (tensor([[0.],
                [2.]]), tensor([0, 2]))
    """
    if bool(((labels < 0) | (labels >= count)).any()):
        raise FeatureError(
            f"labels should be in 0 to {count - 1}: the file of the model is damaged"
        )
    counts = torch.bincount(labels, minlength=count)
    sums = torch.zeros(count, rows.shape[1], dtype=rows.dtype, device=rows.device)
    sums.index_add_(0, labels, rows)
    return sums / counts.clamp(min=1)[:, None].to(rows.dtype), counts
