"""FT: the image tower and one vector and bias a class, from the zero-shot classifier, by cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from rada.methods.finetune.base import FFTMethod
from rada.methods.finetune.registry import register_fft_method

__all__ = ["FineTuning"]


@dataclass(frozen=True)
class FineTuning(FFTMethod):
    """Starts as zero-shot: the vector of a class is its text features times the scale, its bias 0."""


register_fft_method(
    FineTuning(
        "ft",
        "FT",
        "Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022: AdamW 3e-5, weight decay 0.1, "
        "gradients clipped to 1",
        towers=frozenset({"image"}),
        train="image",
        has_vectors=True,
    )
)
