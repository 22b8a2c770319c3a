"""Linear probe: logistic regression on image features (Radford et al. 2021, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run
from rada.methods.registry import register_method
from rada.training.probe import linear_probe, regression

__all__ = ["LinearProbe", "linear_probe"]


class ProbeModel(AdaptedModel):
    """A linear layer over the training classes; before it learns, every class is equally likely."""

    def __init__(self, method: Method, facts: Facts, config: Any, *_: object) -> None:
        super().__init__(method, facts, config)
        self.linear = nn.Linear(facts.dim, len(facts.classes))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Check that every class was trained."""
        self.refuse_unknown(classes.names)
        return classes

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the linear layer's outputs for the classes."""
        rows = [row for row in classes.rows_among(self.facts.classes) if row is not None]
        return images @ self.linear.weight[rows].T + self.linear.bias[rows]


@dataclass(frozen=True)
class LinearProbe(Method):
    """Logistic regression; C by cross-validation on the shots."""

    model = ProbeModel

    def train(self, model: AdaptedModel, data: Features, config: Any, run: Run) -> AdaptedModel:
        """Solve the regression on the plain images."""
        assert isinstance(model, ProbeModel)
        weight, bias, strength = regression(data.plain(), data.labels, len(data.classes), run.seed)
        with torch.no_grad():
            model.linear.weight.copy_(weight)
            model.linear.bias.copy_(bias)
        model.record["C"] = strength
        return model


register_method(
    LinearProbe(
        "linear_probe",
        "Linear probe",
        "Radford et al., Learning Transferable Visual Models From Natural Language, ICML 2021, "
        "section 3.2",
        trains="one vector for each class",
        new_classes=False,
    )
)
