"""CLAP: a linear probe that is held near the class features, each class as firmly as zero-shot was right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run
from rada.methods.class_layer import ClassLayer, CosineLayerModel, class_means
from rada.methods.registry import register_method
from rada.training.feature_loop import Losses, Recipe, class_logits_loss

__all__ = ["Clap", "ClapConfig"]


@dataclass(frozen=True)
class ClapConfig(Recipe):
    """Configuration of CLAP, as published: nothing of it is chosen on validation images.

    Attributes:
        views: Views of each image, of which a step takes one at random; the multipliers are means over
            all. The paper takes 20 random ones, 1 is the plain image that all methods see.
    """

    epochs: int = 300
    batch_size: int = 256
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    views: int = 1

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.views >= 1, "views", "a positive integer")


class ClapModel(CosineLayerModel):
    """`scale * cosine(f, W)`, with a pull of its own on every row of W.

    Attributes:
        multipliers: `(K,)`, how firmly each row is held at its class features.
        anchors: `(K, D)`, these class features; only training reads them.
    """

    multipliers: Tensor
    anchors: Tensor

    def __init__(self, method: Method, facts: Facts, config: ClapConfig, *_: Any) -> None:
        super().__init__(method, facts, config)
        self.register_buffer("multipliers", torch.ones(len(facts.classes)))
        self.register_buffer("anchors", torch.zeros_like(self.weight), persistent=False)

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Losses:
        """Return cross-entropy plus the mean over the classes of `multiplier * |W - h|^2`."""
        distances = (self.weight - self.anchors).square().sum(-1)
        pull = (self.multipliers * distances).mean()
        return class_logits_loss(self(images, classes), labels, pull=pull)


@dataclass(frozen=True)
class Clap(ClassLayer):
    """Starts as zero-shot."""

    config: ClassVar[type[Config]] = ClapConfig
    model = ClapModel

    def start(self, data: Features, config: Any, run: Run) -> AdaptedModel:
        """Return the zero-shot layer with its multipliers: the mean chance of the right class.

        A class without images has the multiplier 1: nothing but the pull may move it.
        """
        model = super().start(data, config, run)
        assert isinstance(model, ClapModel)
        images = data.image_features.flatten(0, 1)
        labels = data.labels.repeat_interleave(data.num_views)
        chances = model.zero_shot_logits(images, data.class_set()).softmax(-1)
        right = chances.gather(1, labels[:, None])
        means, counts = class_means(right, labels, len(data.classes))
        with torch.no_grad():
            model.anchors.copy_(model.weight)
            model.multipliers.copy_(torch.where(counts > 0, means[:, 0], 1.0))
        return model

    def train(
        self, model: AdaptedModel, data: Features, config: ClapConfig, run: Run
    ) -> AdaptedModel:
        """Train the layer."""
        return self.learn(model, data, config, run)


register_method(
    Clap(
        "clap",
        "CLAP",
        "Silva-Rodriguez et al., A Closer Look at the Few-Shot Adaptation of Large Vision-Language "
        "Models, CVPR 2024",
        trains="one vector for each class",
    )
)
