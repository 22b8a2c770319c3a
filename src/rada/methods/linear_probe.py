"""Linear probe: logistic regression on image features (Radford et al. 2021, section 3.2)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rada.core.errors import FeatureError
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run
from rada.methods.registry import register_method

if TYPE_CHECKING:
    pass

__all__ = ["LinearProbe", "class_weights", "linear_probe"]

_STRENGTHS = np.logspace(-2, 4, 7)
_MOST_FOLDS = 5
_ABSENT = -1e4  # the logit of a class without images


def linear_probe(
    image_features: Tensor, labels: Tensor, test_features: Tensor, num_classes: int, seed: int = 0
) -> Tensor:
    """Fit a logistic regression on labelled features and return its logits on others.

    The inverse regularisation C is chosen among 1e-2 ... 1e4 by stratified cross-validation on the
    labelled features alone; with one image a class there is nothing to validate on and C is 1.

    Args:
        image_features: `(N, D)`, unit-norm.
        labels: `(N,)` in `[0, num_classes)`.
        test_features: `(M, D)`.
        num_classes: K; a class without images gets the logit -1e4 everywhere.
        seed: Shuffles the folds.

    Returns:
        Logits `(M, K)` (log-probabilities).

    Raises:
        FeatureError: If fewer than two classes have images.

    Example:
        >>> eye = torch.eye(3)
        >>> linear_probe(eye, torch.arange(3), eye, 3).argmax(1)
        tensor([0, 1, 2])
    """
    weight, bias, _ = _regression(image_features, labels, num_classes, seed)
    logits = test_features @ weight.T + bias
    return logits.log_softmax(-1).clamp(min=_ABSENT)


def class_weights(
    image_features: Tensor, labels: Tensor, num_classes: int, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return weights `(K, D)` and biases `(K,)` of a logistic regression.

    Args:
        image_features: `(N, D)`, unit-norm.
        labels: `(N,)` in `[0, num_classes)`.
        num_classes: K; a class without images has the weights 0 and the bias -1e4.
        seed: Shuffles the folds on which C is chosen.

    Raises:
        FeatureError: If fewer than two classes have images.

    Example:
        >>> class_weights(torch.eye(3), torch.arange(3), 3)[0].argmax(1)
        tensor([0, 1, 2])
    """
    return _regression(image_features, labels, num_classes, seed)[:2]


def _regression(
    image_features: Tensor, labels: Tensor, num_classes: int, seed: int
) -> tuple[Tensor, Tensor, float]:
    """Return weights `(K, D)`, biases `(K,)` and the C that was chosen."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    targets = labels.numpy()
    present, counts = np.unique(targets, return_counts=True)
    if len(present) < 2:
        raise FeatureError("a linear probe needs images of at least 2 classes")
    model = LogisticRegression(C=1.0, max_iter=2000)
    folds = min(_MOST_FOLDS, int(counts.min()))
    if folds >= 2:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        model = GridSearchCV(model, {"C": _STRENGTHS}, cv=splitter)
    with warnings.catch_warnings():
        # Few shots of many classes look like a regression to scikit-learn.
        warnings.filterwarnings("ignore", message="The number of unique classes")
        model.fit(image_features.numpy(), targets)
    best = getattr(model, "best_estimator_", model)
    rows = torch.from_numpy(best.coef_).float()
    shifts = torch.from_numpy(np.broadcast_to(best.intercept_, len(rows)).copy()).float()
    if len(rows) == 1:  # two classes have one row: the logit of the second against the first
        rows, shifts = torch.cat([-rows, rows]) / 2, torch.cat([-shifts, shifts]) / 2
    weight = torch.zeros(num_classes, image_features.shape[1])
    bias = torch.full((num_classes,), _ABSENT)
    weight[present], bias[present] = rows, shifts
    return weight, bias, float(best.C)


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
        weight, bias, strength = _regression(data.plain(), data.labels, len(data.classes), run.seed)
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
