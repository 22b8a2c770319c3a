"""Labels that are likely wrong: images whose features say another class than their label."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rada.core.errors import FeatureError
from rada.core.extras import needed_for
from rada.features import Features

__all__ = ["LabelError", "likely_label_errors"]

_MOST_FOLDS = 5


class LabelError(NamedTuple):
    """An image whose label is likely wrong.

    Attributes:
        row: Its number.
        label: The class that its label names.
        suggested: The class that the other images say.
        probability: Of the suggested class, by a model that did not see the image.
        own: Of its own label, by the same model.
    """

    row: int
    label: str
    suggested: str
    probability: float
    own: float


def likely_label_errors(features: Features, seed: int = 0) -> list[LabelError]:
    """Return the labelled images whose label is likely wrong, the most certain first.

    A logistic regression on the features predicts each image by cross-validation, and confident learning
    (Northcutt et al., JAIR 2021; the package cleanlab) compares the probabilities with the labels.

    Args:
        features: Labelled images; at least two classes with two images each.
        seed: Chooses the folds.

    Raises:
        MissingExtraError: If cleanlab is not installed.
        FeatureError: If an image has no label, or there are too few images.

    Example:
        >>> import torch
        >>> rows = torch.eye(2).repeat_interleave(8, 0)
        >>> labels = [0] * 8 + [1] * 7 + [0]
        >>> [error.row for error in likely_label_errors(Features(rows, labels, ("cat", "dog")))]
        [15]
    """
    with needed_for("a search for wrong labels"):
        from cleanlab.filter import find_label_issues
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    labels = features.labels.numpy()
    if (labels < 0).any():
        raise FeatureError("a search for wrong labels needs a label for every image")
    counts = np.bincount(labels, minlength=len(features.classes))
    kept = np.flatnonzero(counts[labels] >= 2)  # one image of a class says nothing of its label
    present, targets = np.unique(labels[kept], return_inverse=True)
    if len(present) < 2:
        raise FeatureError("a search for wrong labels needs two classes with two images each")
    folds = StratifiedKFold(
        min(_MOST_FOLDS, int(counts[present].min())), shuffle=True, random_state=seed
    )
    rows = features.plain().numpy()[kept]
    # Features are of length 1, so that a weak penalty is needed for probabilities near 0 and 1.
    model = LogisticRegression(C=100.0, max_iter=2000)
    chances = cross_val_predict(model, rows, targets, cv=folds, method="predict_proba")
    issues = find_label_issues(
        targets, chances, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    found = []
    for place in issues.tolist():
        best = int(chances[place].argmax())
        if best != targets[place]:
            found.append(
                LabelError(
                    int(kept[place]),
                    features.classes[present[targets[place]]],
                    features.classes[present[best]],
                    float(chances[place, best]),
                    float(chances[place, targets[place]]),
                )
            )
    return found
