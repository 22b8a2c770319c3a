"""Accuracy in and out of distribution."""

from __future__ import annotations

import statistics
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from rada.core.errors import DataError
from rada.data.align import fold_name
from rada.data.checks import check_labelled
from rada.evaluation import evaluate_logits
from rada.features import FeatureCache, extract_features
from rada.training.distributed import process_count, process_rank

if TYPE_CHECKING:
    from rada.data import ImageSplit
    from rada.methods.finetune.model import TunedModel

__all__ = ["IN_DISTRIBUTION", "Judge", "TestSet", "shared_classes"]

IN_DISTRIBUTION = "in_distribution"
"""Name of the test set that is not shifted."""


@dataclass(frozen=True, eq=False)
class TestSet:
    """Pictures to test on.

    Attributes:
        name: What to call it.
        split: The pictures; labels count in `classes`.
        classes: The candidates, by their names in training.
        note: What was left out; "" if nothing.
    """

    __test__ = False  # pytest would take it for a class of tests

    name: str
    split: ImageSplit
    classes: tuple[str, ...]
    note: str = ""


def shared_classes(name: str, split: ImageSplit, classes: tuple[str, ...]) -> TestSet:
    """Return the pictures of the classes that a test set shares with training.

    Names are the same but for case, underscores and hyphens. A difference is said aloud.

    Args:
        name: What to call the test set.
        split: Its pictures.
        classes: The training classes.

    Raises:
        DataError: If two of its classes have the same name, fewer than two are shared, or an image
            has no label.
    """
    check_labelled(split.labels, split.ids, f"testing on {name!r}")
    wanted = {fold_name(known): known for known in classes}
    found: dict[str, int] = {}
    for label, own in enumerate(split.classes):
        if fold_name(own) in found:
            first = split.classes[found[fold_name(own)]]
            raise DataError(
                f"{name!r} has the classes {first!r} and {own!r}, which differ by case or underscores "
                "alone: rename or join one of them"
            )
        found[fold_name(own)] = label
    shared = [key for key in wanted if key in found]
    if len(shared) < 2:
        raise DataError(
            f"{name!r} shares {len(shared)} classes with training, at least 2 are needed; it has "
            f"{', '.join(map(repr, split.classes[:5]))}, training has "
            f"{', '.join(map(repr, classes[:5]))}"
        )
    kept = split.select_classes([found[key] for key in shared])
    names = tuple(wanted[key] for key in shared)
    note = ""
    if len(shared) < max(len(wanted), len(found)):
        absent = [known for key, known in wanted.items() if key not in found]
        strange = [split.classes[label] for key, label in found.items() if key not in wanted]
        told = [f"it lacks {_some(absent)}"] if absent else []
        told += [f"its {_some(strange)} was not trained and is left out"] if strange else []
        note = f"{name}: judged among {len(shared)} shared classes; {'; '.join(told)}"
        warnings.warn(note, UserWarning, stacklevel=3)
    return TestSet(name, kept.rename(names), names, note)


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


class Judge:
    """Judges a model on test sets, each process its share of the pictures.

    Args:
        sets: The test sets; one in distribution is called `IN_DISTRIBUTION`.
        cache: Where features of the pretrained encoder are kept.
        workers: Processes that decode pictures.
        skip_bad: Leave out pictures that cannot be read.
    """

    def __init__(
        self,
        sets: list[TestSet],
        *,
        cache: FeatureCache | Literal[False] | None,
        workers: int | None,
        skip_bad: bool,
    ) -> None:
        self.sets = sets
        self.cache, self.workers, self.skip_bad = cache, workers, skip_bad

    def __call__(self, model: TunedModel, *, pretrained: bool) -> dict[str, Any]:
        """Return accuracies as plain JSON.

        Args:
            model: The model.
            pretrained: Whether the image tower is as it was, so that its features are kept.

        Returns:
            `{"in_distribution": {...} | None, "out_of_distribution": {NAME: {...}, "mean": ...}}`.
        """
        found = {test.name: self.judge(model, test, pretrained=pretrained) for test in self.sets}
        inside = found.pop(IN_DISTRIBUTION, None)
        outside: dict[str, Any] = dict(found)
        if found:
            outside["mean"] = statistics.fmean(entry["accuracy"] for entry in found.values())
        return {"in_distribution": inside, "out_of_distribution": outside}

    def judge(self, model: TunedModel, test: TestSet, *, pretrained: bool) -> dict[str, Any]:
        """Return the metrics of one test set."""
        rows = np.arange(len(test.split))[process_rank() :: process_count()]
        features, labels = self._features(model, test.split.subset(rows), pretrained)
        logits = model.logits(features, model.candidates(test.classes))
        logits, labels = gather_rows(logits), gather_rows(labels)
        metrics = evaluate_logits(logits, labels, test.classes)
        return {
            "accuracy": metrics.accuracy,
            "balanced_accuracy": metrics.balanced_accuracy,
            "ece": metrics.ece,
            "interval": list(metrics.interval),
            "images": metrics.images,
            "classes": len(test.classes),
        } | ({"note": test.note} if test.note else {})

    def _features(
        self, model: TunedModel, split: ImageSplit, pretrained: bool
    ) -> tuple[Tensor, Tensor]:
        if len(split) == 0:
            return torch.empty(0, model.encoder.dim), torch.empty(0, dtype=torch.long)
        model.eval()
        features = extract_features(
            model.encoder,
            split,
            cache=self.cache if pretrained else False,
            # Weights that changed would have to be sent to every worker anew.
            workers=self.workers if pretrained else 0,
            skip_bad=self.skip_bad,
            progress=False,
        )
        return features.plain(), features.labels


def gather_rows(values: Tensor) -> Tensor:
    """Concatenate the rows of all processes, which may have different numbers of them."""
    if process_count() == 1:
        return values
    parts: list[Tensor] = [torch.empty(0)] * process_count()
    torch.distributed.all_gather_object(parts, values.cpu())
    return torch.cat([part.to(values.dtype) for part in parts])
