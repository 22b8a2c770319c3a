"""LP-FT: a linear probe first, then the image encoder and the probe together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rada.core.config import Config
from rada.features import Features
from rada.methods.base import Run
from rada.methods.finetune.base import ImageEncoderConfig
from rada.methods.finetune.ft import FineTuning
from rada.methods.finetune.model import TunedModel
from rada.methods.registry import register_method
from rada.training.probe import class_weights

__all__ = ["ProbeThenFineTuning", "ProbeThenFineTuningConfig"]


@dataclass(frozen=True)
class ProbeThenFineTuningConfig(ImageEncoderConfig):
    """Configuration of LP-FT's second stage; the first has none."""


@dataclass(frozen=True)
class ProbeThenFineTuning(FineTuning):
    """FT that starts from the vectors of a linear probe."""

    config: ClassVar[type[Config]] = ProbeThenFineTuningConfig

    def first(self, model: TunedModel, data: Features, run: Run) -> None:
        """Fit vectors and biases on features of the pretrained encoder."""
        found = class_weights(data.plain(), data.labels, len(data.classes), seed=run.seed)
        model.set_class_weights(*found)


register_method(
    ProbeThenFineTuning(
        "lp_ft",
        "LP-FT",
        "Kumar et al., Fine-tuning can distort pretrained features and underperform out-of-distribution, "
        "ICLR 2022; both stages with this library's values for them",
    )
)
