"""Cross-modal linear probe: a linear layer that learns from images and class prompts alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run
from rada.methods.registry import register_method
from rada.training.feature_loop import Losses, Recipe, class_logits_loss

if TYPE_CHECKING:
    pass

__all__ = ["CrossModalConfig", "CrossModalProbe"]


@dataclass(frozen=True)
class CrossModalConfig(Config):
    """Configuration of the cross-modal probe; the paper takes the best of a grid on validation shots.

    Attributes:
        iterations: Steps, at least.
        batch_size: Images a step; as many prompts are added.
        learning_rate: Peak for AdamW.
        weight_decay: Its decay.
    """

    iterations: int = 1600
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01

    def validate(self) -> None:
        """Check that every field is in its range."""
        self.require(self.iterations >= 1, "iterations", "a positive integer")
        self.recipe(1)

    def recipe(self, examples: int) -> Recipe:
        """Return the recipe for so many examples."""
        steps = -(-examples // self.batch_size)
        return Recipe(
            epochs=-(-self.iterations // steps),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer="adamw",
            weight_decay=self.weight_decay,
            schedule="steps",
            warmup=0.03,
        )


class CrossModalModel(AdaptedModel):
    """`scale * f @ W.T`, where W starts as the class features."""

    def __init__(self, method: Method, facts: Facts, config: Any, *_: object) -> None:
        super().__init__(method, facts, config)
        self.weight = nn.Parameter(torch.zeros(len(facts.classes), facts.dim))

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the layer's outputs; a class that it never saw has its class features as weight."""
        found = classes.rows_among(self.facts.classes)
        known = torch.tensor([row is not None for row in found])
        rows = torch.tensor([0 if row is None else row for row in found])
        weight = torch.where(known[:, None], self.weight[rows], classes.text_features)
        return self.facts.scale * images @ weight.T

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Losses:
        """Return the mean loss of the images and of as many prompts."""
        prompts = torch.arange(len(classes))
        if len(labels) < len(classes):
            prompts = labels  # the prompts of the classes in the batch: half of every batch is text
        text = cross_entropy(self(classes.text_features[prompts], classes), prompts)
        found = class_logits_loss(self(images, classes), labels)
        return found | {"loss": (found["loss"] + text) / 2}


@dataclass(frozen=True)
class CrossModalProbe(Method):
    """Starts as zero-shot."""

    config: ClassVar[type[Config]] = CrossModalConfig
    model = CrossModalModel

    def start(self, data: Features, config: Any, run: Run) -> AdaptedModel:
        """Return the layer whose weights are the class features."""
        model = super().start(data, config, run)
        assert isinstance(model, CrossModalModel)
        with torch.no_grad():
            model.weight.copy_(data.class_set().text_features)
        return model

    def train(
        self, model: AdaptedModel, data: Features, config: CrossModalConfig, run: Run
    ) -> AdaptedModel:
        """Train the layer."""
        return self.learn(model, data, config.recipe(len(data)), run)


register_method(
    CrossModalProbe(
        "cross_modal_probe",
        "Cross-modal probe",
        "Lin et al., Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with Multimodal "
        "Models, CVPR 2023",
        trains="one vector for each class, from images and prompts",
    )
)
