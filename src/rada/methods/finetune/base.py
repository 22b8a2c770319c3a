"""What every method of full fine-tuning has in common."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rada.core.errors import ConfigError
from rada.methods.finetune.config import FFTConfig

if TYPE_CHECKING:
    from rada.encoders.base import Part
    from rada.features import Features
    from rada.methods.finetune.model import Batch, TunedModel

__all__ = ["FFTMethod", "FirstStage", "Losses", "weighted"]

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class FirstStage:
    """What a stage on the features of the frozen encoder may use.

    Attributes:
        features: Returns the features of the plain training pictures and their labels.
        seed: Seed of everything random.
        folder: Where the stage may keep its state, or None.
        progress: Show a bar; None on a terminal only.
    """

    features: Callable[[], Features]
    seed: int
    folder: Path | None
    progress: bool | None


@dataclass(frozen=True)
class FFTMethod(ABC):
    """A way to fine-tune; one file and one registered object each.

    Attributes:
        name: How to ask for it.
        title: How tables name it.
        source: Where it is described, and what of it is ours.
        towers: Towers that may learn; empty where the encoder stays frozen.
        train: Those that learn unless the configuration says otherwise.
        learning_rate: Peak learning rate unless the configuration says otherwise.
        weight_decay: Weight decay unless the configuration says otherwise.
        has_head: Whether it has a RAda head.
        has_vectors: Whether it learns one vector and one bias a class instead of asking the text tower.
        captions: Whether a step needs a caption of each picture.
        learns_scale: Whether the logit scale learns.
    """

    name: str
    title: str
    source: str
    towers: frozenset[str] = frozenset({"image", "text"})
    train: Part | None = "both"
    learning_rate: float = 3e-5
    weight_decay: float = 0.1
    has_head: bool = False
    has_vectors: bool = False
    captions: bool = False
    learns_scale: bool = False

    def resolve(self, config: FFTConfig) -> FFTConfig:
        """Return the configuration with the method's own values where it says None.

        Raises:
            ConfigError: If it asks for a tower that the method cannot train.
        """
        if config.train is not None and not self.towers:
            raise ConfigError(
                f"{self.name} leaves the encoder as it is: leave out --train, or choose another method"
            )
        train = config.train or self.train
        wanted = {"image", "text"} if train == "both" else {train} - {None}
        if not wanted <= self.towers:
            raise ConfigError(
                f"{self.name} trains {' or '.join(sorted(self.towers))}, not {train!r}: it learns one "
                "vector for each class, so the text tower has no part in it"
            )
        return dataclasses.replace(
            config,
            train=train,
            learning_rate=config.learning_rate or self.learning_rate,
            weight_decay=self.weight_decay if config.weight_decay is None else config.weight_decay,
        )

    def templates(self, data: tuple[str, ...]) -> tuple[str, ...]:
        """Return the prompt templates where the user names none: the data's, unless a method differs."""
        return data

    def first(self, model: TunedModel, stage: FirstStage) -> None:
        """Change `model` on features of the frozen encoder before the towers learn.

        Nothing, unless a method says otherwise.
        """
        del model, stage

    def loss(self, model: TunedModel, batch: Batch) -> Losses:
        """Return `loss` (this batch's share of the step's mean) and sums to report.

        Cross-entropy of the class logits, unless a method says otherwise.
        """
        images = model.image_features(batch.pixels)
        text = model.class_features(batch.classes, batch.template)
        logits = model.scale() * images @ text.T
        biases = model.class_biases(batch.classes)
        if biases is not None:
            logits = logits + biases
        losses = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        return weighted(batch, logits, cross_entropy=losses)

    def penalty(self, model: TunedModel) -> Tensor | None:
        """Return what is added to the loss of a step whatever its pictures, or None."""
        return None


def weighted(batch: Batch, logits: Tensor | None = None, **losses: Tensor) -> Losses:
    """Add up losses of single pictures: `loss` is their share of the step's mean.

    Args:
        batch: Says what counts.
        logits: `(n, C)`, for the accuracy on the training pictures.
        losses: Losses `(n,)` by name, already weighted against each other.
    """
    found = {name: (values * batch.weights).sum() / batch.count for name, values in losses.items()}
    result = {"loss": torch.stack(list(found.values())).sum()}
    result |= {name: value.detach() for name, value in found.items()}
    if logits is not None:
        hits = (logits.detach().argmax(1) == batch.labels).to(batch.weights.dtype)
        result["accuracy"] = (hits * batch.weights).sum() / batch.count
    return result
