"""The regularised linear adapter: one square matrix on the image features, pulled to the identity.

It is ProLIP's form for features alone: what a new projection does to the features of an image, up to its
length, as far as it is a linear map of the old features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run
from rada.methods.registry import register_method
from rada.methods.terms import Terms
from rada.training.feature_loop import Losses, Recipe, class_logits_loss

__all__ = ["PROLIP_SOURCE", "MatrixConfig", "Rla", "RlaConfig", "shots_of"]

PROLIP_SOURCE = (
    "Fahes et al., CLIP's Visual Embedding Projector is a Few-shot Cornucopia, arXiv 2410.05270"
)


@dataclass(frozen=True)
class MatrixConfig(Config):
    """Configuration of a matrix that is pulled to where it started; the values are ProLIP's.

    Attributes:
        iterations: Steps, each on one view of all images.
        learning_rate: Peak for Adam; a cosine to zero follows.
        pull: Weight of the squared distance to the start; None for 1 / shots.
        views: Views of each image, of which a step takes one at random. The paper takes 300, a new one in
            every step; 1 is the plain image that all methods see.
    """

    iterations: int = 300
    learning_rate: float = 1e-5
    pull: float | None = None
    views: int = 1

    def validate(self) -> None:
        """Check that every field is in its range."""
        self.require(self.iterations >= 1, "iterations", "a positive integer")
        self.require(self.learning_rate > 0, "learning_rate", "above 0")
        self.require(self.pull is None or self.pull >= 0, "pull", "None, or 0 or more")
        self.require(self.views >= 1, "views", "a positive integer")

    def recipe(self, images: int) -> Recipe:
        """Return the recipe for so many images."""
        return Recipe(
            epochs=self.iterations,
            batch_size=images,
            learning_rate=self.learning_rate,
            optimizer="adam",
            weight_decay=0.0,
            schedule="steps",
            epsilon=1e-4,
        )

    def pull_for(self, data: Features) -> float:
        """Return the weight of the squared distance."""
        return 1.0 / shots_of(data) if self.pull is None else self.pull


def shots_of(data: Features) -> float:
    """Return how many images a class has, in the mean over those that have any."""
    return len(data) / len(torch.bincount(data.labels).nonzero())


@dataclass(frozen=True)
class RlaConfig(MatrixConfig):
    """Configuration of the regularised linear adapter.

    Its public configurations compare rates from 1e-5 to 1e-2; at 1e-5 the identity barely moves.
    """

    learning_rate: float = 1e-3


class RlaModel(AdaptedModel):
    """`scale * cosine(A f, h)`, where A starts as the identity."""

    by_class_features = True

    def __init__(self, method: Method, facts: Facts, config: Any, *_: object) -> None:
        super().__init__(method, facts, config)
        self.weight = nn.Parameter(torch.eye(facts.dim))
        self.pull = 0.0

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return `scale * cosine` of the mapped images."""
        return self.zero_shot_logits(self._mapped(images), classes)

    def terms(self, images: Tensor, classes: ClassSet) -> Terms:
        """Return the products of the mapped images and the class features."""
        return Terms.of(self._mapped(images), self.facts.scale * classes.text_features)

    def _mapped(self, images: Tensor) -> Tensor:
        return normalize(images @ self.weight.T, dim=-1)

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Losses:
        """Return cross-entropy plus `pull * |A - I|^2`."""
        distance = (self.weight - torch.eye(len(self.weight)).to(self.weight)).square().sum()
        return class_logits_loss(self(images, classes), labels, pull=self.pull * distance)


@dataclass(frozen=True)
class Rla(Method):
    """Starts as zero-shot."""

    config: ClassVar[type[Config]] = RlaConfig
    model = RlaModel

    def train(
        self, model: AdaptedModel, data: Features, config: MatrixConfig, run: Run
    ) -> AdaptedModel:
        """Train the matrix."""
        assert isinstance(model, RlaModel)
        model.pull = config.pull_for(data)
        return self.learn(model, data, config.recipe(len(data)), run)


register_method(
    Rla(
        "rla",
        "Regularised linear adapter",
        f"{PROLIP_SOURCE}, its form where features alone are at hand",
        trains="a square matrix on image features",
    )
)
