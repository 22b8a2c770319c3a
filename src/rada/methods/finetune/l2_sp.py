"""L2-SP: fine-tuning that is pulled back to the pretrained weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rada.methods.finetune.base import FFTMethod
from rada.methods.finetune.model import TunedModel
from rada.methods.finetune.registry import register_fft_method

__all__ = ["L2SP"]


@dataclass(frozen=True)
class L2SP(FFTMethod):
    """FT with `alpha / 2 |w - w0|^2` for pretrained and `beta / 2 |w|^2` for new weights."""

    def penalty(self, model: TunedModel) -> Tensor:
        """Return the two terms; the vectors of the classes are pretrained, by the text tower.

        Their biases are new.
        """
        total = torch.zeros((), device=model.text.device)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if name == "biases":
                total = total + model.config.l2_beta / 2 * parameter.float().square().sum()
                continue
            moved = parameter.float() - model.start[name].to(parameter.device)
            total = total + model.config.l2_alpha / 2 * moved.square().sum()
        return total


register_fft_method(
    L2SP(
        "l2_sp",
        "L2-SP",
        "Li et al., Explicit inductive bias for transfer learning with convolutional networks, ICML 2018; "
        "the optimiser and its values are FT's, without weight decay",
        towers=frozenset({"image"}),
        train="image",
        weight_decay=0.0,
        has_vectors=True,
    )
)
