"""LP-FT: a linear probe first, then the image tower and the probe together."""

from __future__ import annotations

from dataclasses import dataclass

from rada.methods.finetune.base import FFTMethod, FirstStage
from rada.methods.finetune.linear_probe import probe_vectors
from rada.methods.finetune.model import TunedModel
from rada.methods.finetune.registry import register_fft_method

__all__ = ["ProbeThenFineTuning"]


@dataclass(frozen=True)
class ProbeThenFineTuning(FFTMethod):
    """FT that starts from the linear probe's vectors."""

    def first(self, model: TunedModel, stage: FirstStage) -> None:
        """Fit the vectors on frozen features."""
        probe_vectors(model, stage)


register_fft_method(
    ProbeThenFineTuning(
        "lp_ft",
        "LP-FT",
        "Kumar et al., Fine-tuning can distort pretrained features and underperform out-of-distribution, "
        "ICLR 2022; both stages with this library's values for them",
        towers=frozenset({"image"}),
        train="image",
        has_vectors=True,
    )
)
