"""RAda-FT: encoder and head together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch.nn.functional import cross_entropy

from rada.core.config import Config
from rada.features import Features
from rada.methods.base import Run
from rada.methods.finetune.base import EncoderConfig, EncoderMethod, weighted
from rada.methods.finetune.model import TunedModel
from rada.methods.rada import RADA, SOURCE, EFTConfig
from rada.methods.registry import register_method
from rada.training.batches import Batch
from rada.training.feature_loop import Losses

__all__ = ["FFTConfig", "RAdaFT", "RAdaFTConfig"]

_CLASSES_PER_STEP = 64


@dataclass(frozen=True)
class RAdaFTConfig(EncoderConfig):
    """Configuration of RAda-FT; no code was published for it, so the defaults are ours.

    Attributes:
        head_learning_rate: Peak learning rate of the head while the encoder learns.
        head_first: Whether the head is trained on the pretrained encoder before everything learns
            together; otherwise all learn together from the start.
        head_epochs: Passes of that first stage over the features.
        alpha: Weight of the smoothness term `mean_b max |M - 1|`.
        num_heads: Attention heads of the head.
        temperature: Temperature of its joint softmax.
        strength: Mask strength at inference in [0, 1], or "auto" to choose it on the training images by
            the one rule. A whole run of as many steps as the final one is made for every fold: with
            two folds it takes three times as long as with a number.
        strength_folds: Folds of that cross-validation, at least 2.
        classes_per_step: Classes that a step draws, or as many as its images have, if that is more;
            None for at most 64, 0 for all. In the first stage None is the rule of `EFTConfig`.
    """

    head_learning_rate: float = 3e-4
    head_first: bool = True
    head_epochs: int = 20
    alpha: float = 1.0
    num_heads: int = 8
    temperature: float = 1.0
    strength: float | Literal["auto"] = "auto"
    strength_folds: int = 2
    classes_per_step: int | None = None

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        for name in ("head_epochs", "num_heads"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        for name in ("head_learning_rate", "temperature"):
            self.require(getattr(self, name) > 0, name, "above 0")
        self.require(self.alpha >= 0, "alpha", "0 or more")
        self.require(
            self.strength == "auto" or 0 <= float(self.strength) <= 1,
            "strength",
            "'auto' or in [0, 1]",
        )
        self.require(self.strength_folds >= 2, "strength_folds", "at least 2")
        subset = self.classes_per_step
        self.require(
            subset is None or subset == 0 or subset >= 2, "classes_per_step", "0 or above 1"
        )

    def first_stage(self) -> EFTConfig:
        """Return the configuration of the head's training on features."""
        return EFTConfig(
            epochs=self.head_epochs,
            alpha=self.alpha,
            num_heads=self.num_heads,
            temperature=self.temperature,
            classes_per_step=self.classes_per_step,
            strength=1.0,  # chosen when the encoder has learned, too
        )


FFTConfig = RAdaFTConfig
"""The configuration of `FineTuner`'s default method."""


@dataclass(frozen=True)
class RAdaFT(EncoderMethod):
    """The head first, on the pretrained encoder (`head_first`), then head and encoder together."""

    config: ClassVar[type[Config]] = RAdaFTConfig
    shards: ClassVar[bool] = True
    trains: str = "the encoder and the head"
    has_head: bool = True

    def first(self, model: TunedModel, data: Features, run: Run) -> None:
        """Train the head as the method `rada` does, unless everything is to learn from the start."""
        assert isinstance(model.config, RAdaFTConfig) and model.head is not None
        if model.config.head_first:
            found = RADA.fit(data, model.config.first_stage(), run)
            assert found.head is not None
            model.head.load_state_dict(found.head.state_dict())

    def loss(self, model: TunedModel, batch: Batch) -> Losses:
        """Return cross-entropy plus `alpha * mean_b max |M - 1|`."""
        assert isinstance(model.config, RAdaFTConfig) and model.head is not None
        images = model.image_features(batch.pixels)
        text = model.class_features(batch.classes, batch.template)
        output = model.head(images, text, model.scale())
        return weighted(
            batch,
            output.logits,
            cross_entropy=cross_entropy(output.logits, batch.labels, reduction="none"),
            smoothness=model.config.alpha * output.max_deviation,
        )

    def classes_per_step(self, config: RAdaFTConfig, classes: int) -> int:
        """Return how many of the classes a step draws; 0 for all."""
        if config.classes_per_step is None:
            return min(_CLASSES_PER_STEP, classes)
        return config.classes_per_step


register_method(
    RAdaFT("rada_ft", "RAda-FT", f"{SOURCE}; no code was published for it, values ours")
)
