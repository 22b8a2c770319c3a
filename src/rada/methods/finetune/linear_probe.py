"""Linear probe: one vector and one bias a class on features of the frozen encoder."""

from __future__ import annotations

from dataclasses import dataclass

from rada.methods.finetune.base import FFTMethod, FirstStage
from rada.methods.finetune.model import TunedModel
from rada.methods.finetune.registry import register_fft_method

__all__ = ["LinearProbe", "probe_vectors"]


def probe_vectors(model: TunedModel, stage: FirstStage) -> None:
    """Set vectors and biases of the classes to a logistic regression on the training features."""
    from rada.methods.linear_probe import class_weights

    features = stage.features()
    labels, count = features.labels, len(model.classes)
    model.set_vectors(*class_weights(features.plain(), labels, count, seed=stage.seed))


@dataclass(frozen=True)
class LinearProbe(FFTMethod):
    """Logistic regression; its regularisation by cross-validation on the training pictures."""

    def first(self, model: TunedModel, stage: FirstStage) -> None:
        """Fit the vectors; nothing else learns."""
        probe_vectors(model, stage)


register_fft_method(
    LinearProbe(
        "linear_probe",
        "LP",
        "Radford et al., Learning transferable visual models from natural language supervision, ICML 2021; "
        "scikit-learn's logistic regression, C by cross-validation",
        towers=frozenset(),
        train=None,
        has_vectors=True,
    )
)
