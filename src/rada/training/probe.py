"""Linear probe: logistic regression on image features (Radford et al. 2021, section 3.2).

It is a method of its own (`rada.methods.linear_probe`), and what every other method is compared with.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from rada.core.errors import FeatureError
from rada.features import Features

__all__ = ["class_weights", "linear_probe", "probe_logits", "quick_weights", "regression"]

_STRENGTHS = np.logspace(-2, 4, 7)
_MOST_FOLDS = 5
_ABSENT = -1e4  # the logit of a class without images
_QUICK = 2e7
"""Images times width times classes up to which a probe takes seconds."""


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
    weight, bias, _ = regression(image_features, labels, num_classes, seed)
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
    return regression(image_features, labels, num_classes, seed)[:2]


def quick_weights(data: Features, seed: int) -> tuple[Tensor, Tensor] | None:
    """Return the `class_weights` of labelled features, or None where they would take long.

    That is above 20 million of images times width times classes, such as 16 images of 50 classes at
    512, or where fewer than two classes have images.
    """
    present = len(data.labels.unique())
    if present < 2 or len(data) * data.dim * len(data.classes) > _QUICK:
        return None
    return class_weights(data.plain().cpu(), data.labels.cpu(), len(data.classes), seed=seed)


def probe_logits(learned: Features, asked: Features, seed: int) -> Tensor | None:
    """Return the logits `(M, K)` that a quick linear probe on some features gives of others."""
    found = quick_weights(learned, seed)
    if found is None:
        return None
    weight, bias = found
    return asked.plain() @ weight.T.to(asked.plain()) + bias.to(asked.plain())


def regression(
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
