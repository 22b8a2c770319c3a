"""Cross-modal linear probe: a linear layer that learns from images and class prompts alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Run
from rada.methods.class_layer import ClassLayer, ClassLayerModel
from rada.methods.registry import register_method
from rada.training.feature_loop import Losses, Recipe, class_logits_loss

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


class CrossModalModel(ClassLayerModel):
    """A linear layer that starts as the class features."""

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Losses:
        """Return the mean loss of the images and of as many prompts."""
        prompts = torch.arange(len(classes))
        if len(labels) < len(classes):
            prompts = labels  # the prompts of the classes in the batch: half of every batch is text
        text = cross_entropy(self(classes.text_features[prompts], classes), prompts)
        found = class_logits_loss(self(images, classes), labels)
        return found | {"loss": (found["loss"] + text) / 2}


@dataclass(frozen=True)
class CrossModalProbe(ClassLayer):
    """Starts as zero-shot."""

    config: ClassVar[type[Config]] = CrossModalConfig
    model = CrossModalModel

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
