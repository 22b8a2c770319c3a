"""CLIP-Adapter: a bottleneck on the image features, mixed with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import normalize

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run
from rada.methods.registry import register_method
from rada.methods.terms import Terms
from rada.training.feature_loop import Recipe

__all__ = ["ClipAdapter", "ClipAdapterConfig"]


@dataclass(frozen=True)
class ClipAdapterConfig(Recipe):
    """Configuration of CLIP-Adapter; the training recipe is CoOp's, as in its public code.

    Attributes:
        epochs: Passes with more than 4 shots; a half of them with 2 to 4, a quarter with 1.
        reduction: The bottleneck has D / reduction units.
        ratio: Part of the adapter in the mixture.
    """

    epochs: int = 200
    reduction: int = 4
    ratio: float = 0.2

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.reduction >= 1, "reduction", "a positive integer")
        self.require(0 < self.ratio <= 1, "ratio", "in (0, 1]")


class ClipAdapterModel(AdaptedModel):
    """`normalise(ratio A(f) + (1 - ratio) f)` against the class features."""

    by_class_features = True

    def __init__(self, method: Method, facts: Facts, config: ClipAdapterConfig, *_: object) -> None:
        super().__init__(method, facts, config)
        self.ratio = config.ratio
        hidden = max(1, facts.dim // config.reduction)
        self.adapter = nn.Sequential(
            nn.Linear(facts.dim, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, facts.dim, bias=False),
            nn.ReLU(),
        )

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return `scale * cosine` of the mixed features."""
        return self.facts.scale * self._mixed_images(images) @ classes.text_features.T

    def terms(self, images: Tensor, classes: ClassSet) -> Terms:
        """Return the products of the mixed features and the class features."""
        return Terms.of(self._mixed_images(images), self.facts.scale * classes.text_features)

    def _mixed_images(self, images: Tensor) -> Tensor:
        mixed = self.ratio * self.adapter(images) + (1 - self.ratio) * images
        return normalize(mixed, dim=-1)


@dataclass(frozen=True)
class ClipAdapter(Method):
    """Starts from random weights: zero-shot but for `ratio` of noise."""

    config: ClassVar[type[Config]] = ClipAdapterConfig
    model = ClipAdapterModel

    def train(
        self, model: AdaptedModel, data: Features, config: ClipAdapterConfig, run: Run
    ) -> AdaptedModel:
        """Train the two layers."""
        shots = len(data) / len(data.labels.bincount().nonzero())
        part = 4 if shots <= 1 else 2 if shots <= 4 else 1
        recipe = replace(config, epochs=max(1, config.epochs // part))
        trained = self.learn(model, data, recipe, run)
        if recipe.epochs < config.epochs:
            few = "1 image" if part == 4 else "2 to 4 images"
            trained.record["effective"]["reason"] = (
                f"with {few} a class this method makes {'a quarter' if part == 4 else 'half'} of the "
                f"{config.epochs}"
            )
        return trained


register_method(
    ClipAdapter(
        "clip_adapter",
        "CLIP-Adapter",
        "Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters, IJCV 2024",
        trains="a bottleneck on image features",
    )
)
