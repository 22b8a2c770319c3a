"""Cross-modal linear probe: a linear layer that learns from pictures and class prompts alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rada.core.config import Config
from rada.methods.base import ClassSet, Method, Predictor, Task
from rada.methods.registry import register_method
from rada.training.feature_loop import Recipe, train

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["CrossModalProbe", "CrossModalSettings"]


@dataclass(frozen=True)
class CrossModalSettings(Config):
    """Settings of the cross-modal probe; the paper takes the best of a grid on validation shots.

    Attributes:
        iterations: Steps, at least.
        batch_size: Pictures a step; as many prompts are added.
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


class CrossModalPredictor(Predictor):
    """`scale * f @ W.T`, where W starts as the class features."""

    def __init__(self, names: list[str], weight: Tensor, scale: float) -> None:
        super().__init__(
            "cross_modal_probe", {"names": names, "dim": weight.shape[1], "scale": scale}
        )
        self.names, self.scale = names, scale
        self.weight = nn.Parameter(weight.clone())

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the layer's outputs; a class that it never saw has its class features as weight."""
        found = classes.rows_among(self.names)
        known = torch.tensor([row is not None for row in found])
        rows = torch.tensor([0 if row is None else row for row in found])
        weight = torch.where(known[:, None], self.weight[rows], classes.text_features)
        return self.scale * images @ weight.T

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Tensor:
        """Return the mean loss of the pictures and of as many prompts."""
        prompts = torch.arange(len(classes))
        if len(labels) < len(classes):
            prompts = labels  # the prompts of the classes in the batch: half of every batch is text
        text = self(classes.text_features[prompts], classes)
        return (cross_entropy(self(images, classes), labels) + cross_entropy(text, prompts)) / 2


@dataclass(frozen=True)
class CrossModalProbe(Method):
    """Starts as zero-shot."""

    settings: ClassVar[type[Config]] = CrossModalSettings

    def start(self, task: Task, config: CrossModalSettings) -> Predictor:
        """Return the layer whose weights are the class features."""
        names = list(task.classes.names)
        return CrossModalPredictor(names, task.classes.text_features, task.scale)

    def build(self, facts: dict[str, Any], encoder: DualEncoder | None) -> Predictor:
        """Return a layer of the right shape."""
        names = list(map(str, facts["names"]))
        return CrossModalPredictor(
            names, torch.zeros(len(names), int(facts["dim"])), float(facts["scale"])
        )

    def train(
        self,
        predictor: Predictor,
        task: Task,
        config: CrossModalSettings,
        *,
        state_path: Path | None,
        progress: bool | None,
    ) -> Predictor:
        """Train the layer."""
        recipe = config.recipe(len(task.labels))
        return train(predictor, task, recipe, state_path=state_path, progress=progress)


register_method(
    CrossModalProbe(
        "cross_modal_probe",
        "Cross-modal probe",
        "Lin et al., Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with Multimodal "
        "Models, CVPR 2023",
    )
)
