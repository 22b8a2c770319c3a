"""FT: the image encoder, one vector and one bias for each class, from zero-shot, by cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rada.core.config import Config
from rada.methods.finetune.base import EncoderMethod, ImageEncoderConfig
from rada.methods.registry import register_method

__all__ = ["FineTuning", "FineTuningConfig"]


@dataclass(frozen=True)
class FineTuningConfig(ImageEncoderConfig):
    """Configuration of FT; rate, decay and clipping are those of WiSE-FT's code."""


@dataclass(frozen=True)
class FineTuning(EncoderMethod):
    """Starts as zero-shot: the vector of a class is its text features times the scale, its bias 0."""

    config: ClassVar[type[Config]] = FineTuningConfig
    shards: ClassVar[bool] = True
    trains: str = "the image encoder, and one vector and bias for each class"
    has_class_weights: bool = True
    new_classes: bool = False


register_method(
    FineTuning(
        "ft",
        "FT",
        "Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022: AdamW 3e-5, weight decay 0.1, "
        "gradients clipped to 1",
    )
)
