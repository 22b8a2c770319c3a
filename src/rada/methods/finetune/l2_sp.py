"""L2-SP: fine-tuning that is pulled back to the pretrained weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rada.core.config import Config
from rada.methods.finetune.base import ImageEncoderConfig
from rada.methods.finetune.ft import FineTuning
from rada.methods.finetune.model import TunedModel
from rada.methods.registry import register_method

__all__ = ["L2SP", "L2SPConfig"]


@dataclass(frozen=True)
class L2SPConfig(ImageEncoderConfig):
    """Configuration of L2-SP.

    Attributes:
        l2_alpha: Weight of half the squared distance to the pretrained weights.
        l2_beta: Weight of half the squared norm of new weights.
    """

    weight_decay: float = 0.0
    l2_alpha: float = 0.1
    l2_beta: float = 0.01

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        for name in ("l2_alpha", "l2_beta"):
            self.require(getattr(self, name) >= 0, name, "0 or more")


@dataclass(frozen=True)
class L2SP(FineTuning):
    """FT with `alpha / 2 |w - w0|^2` for pretrained and `beta / 2 |w|^2` for new weights."""

    config: ClassVar[type[Config]] = L2SPConfig
    shards: ClassVar[bool] = False  # the penalty reads all weights

    def penalty(self, model: TunedModel) -> Tensor:
        """Return the two terms; vectors of the classes are pretrained, by the text encoder, biases new."""
        assert isinstance(model.config, L2SPConfig)
        total = torch.zeros((), device=model.text.device)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if name == "class_biases":
                total = total + model.config.l2_beta / 2 * parameter.float().square().sum()
                continue
            moved = parameter.float() - model.pretrained[name].to(parameter.device)
            total = total + model.config.l2_alpha / 2 * moved.square().sum()
        return total


register_method(
    L2SP(
        "l2_sp",
        "L2-SP",
        "Li et al., Explicit inductive bias for transfer learning with convolutional networks, ICML 2018; "
        "the optimiser and its values are FT's, without weight decay",
    )
)
