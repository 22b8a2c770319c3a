"""Linear probe: logistic regression on image features (Radford et al. 2021, section 3.2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rada.errors import FeatureError

__all__ = ["linear_probe"]

_STRENGTHS = np.logspace(-2, 4, 7)
_MOST_FOLDS = 5


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
    model.fit(image_features.numpy(), targets)
    logits = torch.full((len(test_features), num_classes), -1e4)
    found = torch.from_numpy(model.predict_log_proba(test_features.numpy())).float()
    logits[:, torch.from_numpy(present)] = found.clamp(min=-1e4)
    return logits
