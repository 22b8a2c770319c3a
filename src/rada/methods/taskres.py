"""TaskRes: a residual on the features of every class, which is all that learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run
from rada.methods.class_layer import CosineLayerModel
from rada.methods.registry import register_method
from rada.training.feature_loop import Recipe

__all__ = ["TaskRes", "TaskResConfig"]


@dataclass(frozen=True)
class TaskResConfig(Recipe):
    """Configuration of TaskRes, as published; for ImageNet that is `learning_rate=2e-4, epochs=200`.

    Attributes:
        alpha: Weight of the residual; the paper takes 1 for Flowers102.
        views: Views of each image, of which a step takes one at random; 1 is the plain image that all
            methods see.
    """

    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 2e-3
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    alpha: float = 0.5
    views: int = 1

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.alpha > 0, "alpha", "above 0")
        self.require(self.views >= 1, "views", "a positive integer")


class TaskResModel(CosineLayerModel):
    """`scale * cosine(f, h + alpha R)`: the layer holds R, zero for a class that it never saw."""

    def __init__(self, method: Method, facts: Facts, config: TaskResConfig, *_: Any) -> None:
        super().__init__(method, facts, config)
        self.alpha = config.alpha

    def class_weights(self, classes: ClassSet) -> Tensor:
        """Return the class features with their residuals, `(K, D)`."""
        text = classes.text_features.to(self.weight)
        return text + self.alpha * self.rows_or(classes, torch.zeros_like(text))


@dataclass(frozen=True)
class TaskRes(Method):
    """Starts as zero-shot: the residuals are zero."""

    config: ClassVar[type[Config]] = TaskResConfig
    model = TaskResModel

    def train(
        self, model: AdaptedModel, data: Features, config: TaskResConfig, run: Run
    ) -> AdaptedModel:
        """Train the residuals."""
        return self.learn(model, data, config, run)


register_method(
    TaskRes(
        "taskres",
        "TaskRes",
        "Yu et al., Task Residual for Tuning Vision-Language Models, CVPR 2023",
        trains="a residual on the features of each class",
    )
)
