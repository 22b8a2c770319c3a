"""Metrics of one set of logits: accuracy, balanced accuracy, calibration, confusion.

The logits are looked at a few million numbers at a time, so that nothing else is as large as they are.
(torchmetrics counts the same; importing it takes longer than counting a hundred thousand images.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rada.core.errors import FeatureError
from rada.core.finite import broken_rows

__all__ = [
    "ECE_BINS",
    "ClassAccuracy",
    "Counts",
    "Metrics",
    "checked",
    "evaluate_logits",
    "harmonic_mean",
    "wilson_interval",
]

ArrayLike: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[Any]

ECE_BINS = 15
"""Equal-width confidence bins of the expected calibration error."""

_Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution
_CHUNK = 1 << 22  # numbers of logits that are looked at at once


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy on the test images of one class.

    Attributes:
        name: The class.
        images: Its test images.
        accuracy: Fraction of them predicted right; None without test images.
        interval: 95 % Wilson interval of `accuracy`; None without test images.
    """

    name: str
    images: int
    accuracy: float | None
    interval: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the name stands under "class"."""
        interval = None if self.interval is None else list(self.interval)
        return {
            "class": self.name,
            "images": self.images,
            "accuracy": self.accuracy,
            "interval": interval,
        }


@dataclass(frozen=True, eq=False)
class Metrics:
    """What one set of logits is worth.

    Attributes:
        images: Number of test images, N.
        classes: Names of the K candidate classes.
        chance: Accuracy of guessing uniformly, 1/K.
        majority: Accuracy of always naming the most frequent class of the test images.
        accuracy: Fraction of the images whose highest logit is the true class's (the first
            of equals counts).
        interval: 95 % Wilson interval of `accuracy`.
        balanced_accuracy: Mean of the per-class accuracies over the classes that have test images.
        ece: Expected calibration error of the softmax, `ECE_BINS` equal bins, in [0, 1].
        per_class: One entry a class, in order.
        confusion: `(K, K)` int64 counts; rows are true classes, columns predicted ones.
    """

    images: int
    classes: tuple[str, ...]
    chance: float
    majority: float
    accuracy: float
    interval: tuple[float, float]
    balanced_accuracy: float
    ece: float
    per_class: tuple[ClassAccuracy, ...]
    confusion: npt.NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values.

        Example:
            >>> evaluate_logits([[2.0, 1.0]], [0], ["cat", "dog"]).to_dict()["confusion"]
            [[1, 0], [0, 0]]
        """
        return {
            "images": self.images,
            "classes": list(self.classes),
            "chance": self.chance,
            "majority": self.majority,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "balanced_accuracy": self.balanced_accuracy,
            "ece": self.ece,
            "per_class": [entry.to_dict() for entry in self.per_class],
            "confusion": self.confusion.tolist(),
        }


class Counts:
    """What predictions of K classes are counted into, part by part; memory grows with K alone.

    Args:
        classes: K.

    Attributes:
        images: Images that were counted.

    Example:
        >>> counts = Counts(2)
        >>> counts.add(torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
        >>> counts.add(torch.tensor([[0.0, 3.0]]), torch.tensor([0]))
        >>> counts.metrics(["cat", "dog"]).accuracy
        0.5
    """

    def __init__(self, classes: int) -> None:
        self.images = 0
        self._confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self._borders = torch.linspace(0, 1, ECE_BINS + 1, dtype=torch.float64)
        # of right predictions over confidence
        self._excess = torch.zeros(ECE_BINS, dtype=torch.float64)

    def add(self, scores: Tensor, truth: Tensor) -> None:
        """Count `(N, K)` finite logits and `(N,)` labels, both checked."""
        rows, classes = 0, len(self._confusion)
        counted = self._confusion.view(-1)
        for part in _parts(scores):
            labels = truth[rows : rows + len(part)]
            rows += len(part)
            predicted = part.argmax(dim=1)
            counted += torch.bincount(labels * classes + predicted, minlength=len(counted))
            confidence = part.double().softmax(dim=1).amax(dim=1).clamp(max=1)
            place = (
                torch.bucketize(confidence, self._borders) - 1
            )  # bins without their lower border
            self._excess.index_add_(0, place, (predicted == labels).double() - confidence)
        self.images += rows

    def metrics(self, classes: Sequence[str]) -> Metrics:
        """Return the metrics of at least one image, with the K class names."""
        confusion = self._confusion.numpy().copy()
        support = confusion.sum(axis=1)
        right = np.diagonal(confusion)
        per_class = tuple(
            _class_accuracy(name, int(count), int(hits))
            for name, count, hits in zip(classes, support, right, strict=True)
        )
        present = support > 0
        return Metrics(
            images=self.images,
            classes=tuple(classes),
            chance=1 / len(classes),
            majority=float(support.max() / self.images),
            accuracy=float(right.sum() / self.images),
            interval=wilson_interval(int(right.sum()), self.images),
            balanced_accuracy=float((right[present] / support[present]).mean()),
            ece=float(self._excess.abs().sum()) / self.images,
            per_class=per_class,
            confusion=confusion,
        )


def evaluate_logits(logits: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> Metrics:
    """Evaluate logits against the true labels.

    Args:
        logits: `(N, K)` finite numbers of any float type; log-probabilities do as well.
        labels: `(N,)` integers in [0, K).
        classes: K class names.

    Returns:
        The metrics.

    Raises:
        FeatureError: If there are no images, the shapes do not fit together, a logit is NaN or
            infinite, or a label is out of range.

    Example:
        >>> logits = [[2.0, 1.0], [0.0, 3.0], [1.0, 0.5], [4.0, 0.0]]
        >>> metrics = evaluate_logits(logits, [0, 1, 1, 0], ["cat", "dog"])
        >>> metrics.accuracy, metrics.balanced_accuracy
        (0.75, 0.75)
        >>> metrics.confusion.tolist()
        [[2, 0], [1, 1]]
    """
    counts = Counts(len(classes))
    counts.add(*checked(logits, labels, classes))
    return counts.metrics(classes)


def checked(logits: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return logits and labels as `Counts.add` takes them, or raise a `FeatureError`."""
    scores, truth = checked_logits(logits, classes), checked_labels(labels, classes)
    if len(scores) != len(truth):
        raise FeatureError(
            f"{len(scores)} rows of logits for {len(truth)} labels; every image needs both"
        )
    return scores, truth


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion.

    Raises:
        ValueError: Unless 0 <= hits <= total and total >= 1.

    Example:
        >>> [round(bound, 3) for bound in wilson_interval(8, 10)]
        [0.49, 0.943]
    """
    if not 0 <= hits <= total or total < 1:
        raise ValueError(f"no proportion: {hits} of {total}")
    rate, z2 = hits / total, _Z95**2
    centre = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 / (1 + z2 / total) * math.sqrt(rate * (1 - rate) / total + z2 / (4 * total**2))
    # At 0 and 1 the formula is exact, rounding is not.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == total else min(1.0, centre + half)
    return low, high


def harmonic_mean(a: float, b: float) -> float:
    """Return the harmonic mean of two accuracies, 0 where either is 0.

    Base-to-new generalisation is measured by it: it is high only if both are.

    Raises:
        ValueError: If either is negative or NaN.

    Example:
        >>> harmonic_mean(0.75, 0.5)
        0.6
    """
    if not (a >= 0 and b >= 0):
        raise ValueError(f"the harmonic mean is for numbers of 0 or more, not {a!r} and {b!r}")
    return 0.0 if a == 0 or b == 0 else 2 * a * b / (a + b)


def checked_logits(logits: ArrayLike, classes: Sequence[str]) -> Tensor:
    """Return the logits as an `(N, K)` floating CPU tensor, or raise a `FeatureError`."""
    scores = torch.as_tensor(logits).detach().cpu()
    if not scores.is_floating_point():
        scores = scores.double()
    if len(classes) == 0:
        raise FeatureError("no classes: an evaluation needs the names of the candidate classes")
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise FeatureError(
            f"logits of shape {tuple(scores.shape)} do not fit {len(classes)} classes; "
            f"they should be (images, {len(classes)})"
        )
    if len(scores) == 0:
        raise FeatureError("no images: an evaluation needs at least one row of logits")
    bad = broken_rows(scores).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        value = scores[row][~torch.isfinite(scores[row])][0].item()
        raise FeatureError(
            f"{len(bad)} of {len(scores)} rows of logits hold NaN or infinite numbers, row {row} "
            f"the value {value}; check the features that they were computed from"
        )
    return scores


def _parts(scores: Tensor) -> tuple[Tensor, ...]:
    """Return the rows in parts of a bounded size."""
    found: tuple[Tensor, ...] = scores.split(max(1, _CHUNK // scores.shape[1]))
    return found


def checked_labels(labels: ArrayLike, classes: Sequence[str]) -> Tensor:
    """Return the labels as an `(N,)` int64 CPU tensor, or raise a `FeatureError`."""
    # A split's labels are read-only; torch warns of sharing such memory.
    own = np.array(labels) if isinstance(labels, np.ndarray) else labels
    truth = torch.as_tensor(own).detach().to("cpu")
    if truth.numel() == 0:
        truth = truth.to(torch.int64)
    if truth.ndim != 1 or truth.is_floating_point() or truth.is_complex():
        raise FeatureError(
            f"labels should be a list of integers, not {truth.dtype} of shape {tuple(truth.shape)}"
        )
    truth = truth.to(torch.int64)
    bad = ((truth < 0) | (truth >= len(classes))).nonzero().flatten()
    if len(bad):
        raise FeatureError(
            f"label {int(truth[bad[0]])} of image {int(bad[0])} is out of range: there are "
            f"{len(classes)} classes, labels run from 0 to {len(classes) - 1}"
        )
    return truth


def _class_accuracy(name: str, images: int, hits: int) -> ClassAccuracy:
    if images == 0:
        return ClassAccuracy(name, 0, None, None)
    return ClassAccuracy(name, images, hits / images, wilson_interval(hits, images))
