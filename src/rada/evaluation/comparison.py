"""Comparing predictors on the same images: the result of `rada evaluate`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from rada.core.errors import FeatureError
from rada.evaluation.metrics import ArrayLike, Counts, checked

__all__ = [
    "Comparison",
    "PairedDifference",
    "compare",
    "paired_difference",
    "pooled_difference",
]

_Z95 = 1.959963984540054
_TAKEN = {
    *("images", "classes", "chance", "majority", "rows", "changed", "changed_classes"),
    *("zero_shot", "adapted"),
}


@dataclass(frozen=True)
class PairedDifference:
    """How two predictors differ on the same images.

    Attributes:
        wrong_to_right: Images that only the second predictor has right.
        right_to_wrong: Images that only the first predictor has right.
        difference: Accuracy of the second minus accuracy of the first.
        interval: 95 % interval of `difference`.
        p_value: Exact McNemar test of "no difference", two-sided.
    """

    wrong_to_right: int
    right_to_wrong: int
    difference: float
    interval: tuple[float, float]
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "wrong_to_right": self.wrong_to_right,
            "right_to_wrong": self.right_to_wrong,
            "difference": self.difference,
            "interval": list(self.interval),
            "p_value": self.p_value,
        }


def paired_difference(first_right: ArrayLike, second_right: ArrayLike) -> PairedDifference:
    """Compare two predictors that were evaluated on the same images.

    With b images that only the second has right, c that only the first has right and n in all, the
    interval is the adjusted Wald interval of Agresti and Min (2005, Statistics in Medicine 24),
    which adds half an image to each cell of the 2x2 table: with b' = b + 1/2, c' = c + 1/2,
    n' = n + 2 it is `(b' - c')/n' +- 1.96 sqrt(b' + c' - (b' - c')^2/n') / n'`, cut at -1 and 1.
    The p-value is the exact binomial form of McNemar's test on b of b + c.

    Args:
        first_right: `(N,)` booleans, whether the first predictor has each image right.
        second_right: `(N,)` booleans, the same for the second.

    Returns:
        The difference, second minus first.

    Raises:
        FeatureError: If the lengths differ or there are no images.

    Example:
        >>> paired_difference([1, 0, 0, 0], [1, 1, 1, 0]).difference
        0.5
    """
    first, second = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise FeatureError(
            f"a paired comparison needs both predictions of the same images, "
            f"not shapes {first.shape} and {second.shape}"
        )
    return _difference(int((second & ~first).sum()), int((first & ~second).sum()), len(first))


def pooled_difference(classes: Sequence[Mapping[str, Any]]) -> PairedDifference | None:
    """Return the difference over the images of several classes; None where they have no images.

    Args:
        classes: Entries of "changed_classes" in the result of `compare`.

    Example:
        >>> one = {"images": 4, "wrong_to_right": 2, "right_to_wrong": 0}
        >>> pooled_difference([one, one]).difference
        0.5
    """
    gained, lost, images = (
        sum(entry[key] for entry in classes)
        for key in ("wrong_to_right", "right_to_wrong", "images")
    )
    return _difference(gained, lost, images) if images else None


def _difference(gained: int, lost: int, images: int) -> PairedDifference:
    # scipy.stats has the test under its name, and takes a second to import
    from scipy.special import bdtr  # type: ignore[import-untyped,unused-ignore]

    return PairedDifference(
        wrong_to_right=gained,
        right_to_wrong=lost,
        difference=(gained - lost) / images,
        interval=_agresti_min(gained, lost, images),
        p_value=min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5))),
    )


class Comparison:
    """Predictors side by side on the same images, which may come part by part.

    Args:
        classes: K class names.

    Example:
        >>> both = Comparison(["a", "b"])
        >>> both.add({"zero_shot": [[1.0, 0.0]], "adapted": [[1.0, 0.0]]}, [0])
        >>> both.add({"zero_shot": [[1.0, 0.0]], "adapted": [[0.0, 1.0]]}, [1])
        >>> both.result()["changed"]["wrong_to_right"]
        1
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._counts: dict[str, Counts] = {}
        self._gained: dict[str, Tensor] = {}  # by class
        self._lost: dict[str, Tensor] = {}

    def add(self, rows: Mapping[str, ArrayLike], labels: ArrayLike) -> None:
        """Count some images.

        Args:
            rows: `(N, K)` logits by the name of the predictor, the same ones every time; the first is
                what the others are compared with.
            labels: `(N,)` integers in [0, K).

        Raises:
            FeatureError: As `evaluate_logits`.
        """
        before = None
        for name, logits in rows.items():
            scores, truth = checked(logits, labels, self.classes)
            self._counts.setdefault(name, Counts(len(self.classes))).add(scores, truth)
            right = scores.argmax(dim=1) == truth
            before = right if before is None else before
            for moved, changed in ((self._gained, right & ~before), (self._lost, before & ~right)):
                by_class = truth[changed].bincount(minlength=len(self.classes))
                moved[name] = moved[name] + by_class if name in moved else by_class

    def result(self) -> dict[str, Any]:
        """Return what `compare` says."""
        found: dict[str, Any] = {}
        result: dict[str, Any] = {"images": 0, "classes": list(self.classes)}
        for name, counts in self._counts.items():
            metrics = counts.metrics(self.classes).to_dict()
            shared = {key: metrics.pop(key) for key in ("images", "chance", "majority")}
            result |= shared
            del metrics["classes"]
            if found:
                gained, lost = int(self._gained[name].sum()), int(self._lost[name].sum())
                difference = _difference(gained, lost, counts.images)
                metrics["against_zero_shot"] = difference.to_dict()
            found[name] = metrics
        adapted = found.get("adapted")
        changed = None if adapted is None else dict(adapted["against_zero_shot"])
        moved = [] if adapted is None else self._class_changes("adapted")
        return result | {"rows": list(found), "changed": changed, "changed_classes": moved} | found

    def _class_changes(self, row: str) -> list[dict[str, Any]]:
        """Return the difference of a row and the first one for each class that has images."""
        images = [entry.images for entry in self._counts[row].metrics(self.classes).per_class]
        numbers = zip(self._gained[row].tolist(), self._lost[row].tolist(), images, strict=True)
        return [
            {"class": name, "images": count} | _difference(gained, lost, count).to_dict()
            for name, (gained, lost, count) in zip(self.classes, numbers, strict=True)
            if count
        ]


def compare(
    zero_shot_logits: ArrayLike,
    adapted_logits: ArrayLike | None,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    extra: Mapping[str, ArrayLike] | None = None,
) -> dict[str, Any]:
    """Evaluate the zero-shot and the adapted model side by side, as plain JSON values.

    Args:
        zero_shot_logits: `(N, K)` logits before adaptation.
        adapted_logits: `(N, K)` logits after adaptation; None where there was none.
        labels: `(N,)` integers in [0, K).
        classes: K class names.
        extra: Further rows by name, such as {"linear_probe": logits}, each `(N, K)`.

    Returns:
        `{"images", "classes", "chance", "majority", "rows", "zero_shot", "adapted", "changed"}` and
        the extra rows: for each name in "rows" an entry of `Metrics.to_dict` (without images,
        classes, chance and majority, which all rows share), and in "changed" the
        `PairedDifference` of adapted and zero-shot. Without adaptation there is no row "adapted", and
        "changed" is None. Every row but zero_shot holds
        its own comparison with zero-shot under "against_zero_shot". "changed_classes" has, for each
        class with images, the same as "changed" for its images alone.

    Raises:
        FeatureError: As `evaluate_logits`.
        ValueError: If a name of `extra` is taken.

    Example:
        >>> result = compare([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [0, 1], ["a", "b"])
        >>> result["zero_shot"]["accuracy"], result["adapted"]["accuracy"]
        (0.5, 1.0)
        >>> result["changed"]["wrong_to_right"], result["changed"]["right_to_wrong"]
        (1, 0)
    """
    rows = {"zero_shot": zero_shot_logits}
    if adapted_logits is not None:
        rows["adapted"] = adapted_logits
    taken = sorted(_TAKEN & set(extra or {}))
    if taken:
        raise ValueError(f"the name {taken[0]!r} of an extra row is taken")
    comparison = Comparison(classes)
    comparison.add(rows | dict(extra or {}), labels)
    return comparison.result()


def _agresti_min(gained: int, lost: int, images: int) -> tuple[float, float]:
    b, c, n = gained + 0.5, lost + 0.5, images + 2
    centre = (b - c) / n
    half = _Z95 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)
