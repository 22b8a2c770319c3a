"""Accuracy in and out of distribution, of any adapted model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from rada.core.processes import gather_rows, process_count, process_rank
from rada.evaluation.metrics import evaluate_logits
from rada.evaluation.sets import IN_DISTRIBUTION, TestSet
from rada.features import ClassSet, FeatureCache, extract_features

if TYPE_CHECKING:
    from rada.data import ImageSplit
    from rada.encoders import DualEncoder

__all__ = ["RobustnessEvaluator"]


class _Method(Protocol):
    @property
    def train_encoder(self) -> bool: ...


class Evaluated(Protocol):
    """What is evaluated: `rada.methods.AdaptedModel` of any method."""

    @property
    def method(self) -> _Method:
        """Its method, which says whether the model has an encoder of its own."""

    @property
    def encoder(self) -> DualEncoder | None:
        """The encoder that it owns or asks, or None."""

    def logits(self, images: Tensor, classes: ClassSet, *, strength: float | None = None) -> Tensor:
        """Return logits `(N, K)` of features `(N, D)`."""


class RobustnessEvaluator:
    """Evaluates models on test sets, each process its share of the images.

    Args:
        sets: The test sets; one in distribution is called `IN_DISTRIBUTION`.
        encoder: The pretrained encoder, whose features serve models that train none.
        classes: The training classes, with the pretrained encoder's class features.
        cache: Where features of the pretrained encoder are kept.
        workers: Processes that decode images.
        skip_bad: Leave out images that cannot be read.
    """

    def __init__(
        self,
        sets: Sequence[TestSet],
        encoder: DualEncoder,
        classes: ClassSet,
        *,
        cache: FeatureCache | Literal[False] | None = None,
        workers: int | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.sets, self.encoder, self.classes = tuple(sets), encoder, classes
        self.cache, self.workers, self.skip_bad = cache, workers, skip_bad

    def __call__(self, model: Evaluated, *, strength: float | None = None) -> dict[str, Any]:
        """Return accuracies as plain JSON.

        Args:
            model: The model.
            strength: 0 for zero-shot, 1 for the full adaptation; None for the model's own.

        Returns:
            `{"in_distribution": {...} | None, "out_of_distribution": {NAME: {...}, "mean": ...}}`.
        """
        found = {test.name: self.evaluate(model, test, strength=strength) for test in self.sets}
        inside = found.pop(IN_DISTRIBUTION, None)
        outside: dict[str, Any] = dict(found)
        if found:
            outside["mean"] = statistics.fmean(entry["accuracy"] for entry in found.values())
        return {"in_distribution": inside, "out_of_distribution": outside}

    def evaluate(
        self, model: Evaluated, test: TestSet, *, strength: float | None = None
    ) -> dict[str, Any]:
        """Return the metrics of one test set."""
        rows = np.arange(len(test.split))[process_rank() :: process_count()]
        features, labels = self._features(model, test.split.subset(rows))
        place = {name: row for row, name in enumerate(self.classes.names)}
        candidates = self.classes.take([place[name] for name in test.classes])
        logits = gather_rows(model.logits(features, candidates, strength=strength))
        metrics = evaluate_logits(logits, gather_rows(labels), test.classes)
        left_out = len(test.split) - metrics.images  # bad ones
        return {
            "accuracy": metrics.accuracy,
            "balanced_accuracy": metrics.balanced_accuracy,
            "ece": metrics.ece,
            "interval": list(metrics.interval),
            "images": metrics.images,
            "classes": len(test.classes),
        } | {key: value for key, value in (("note", test.note), ("left_out", left_out)) if value}

    def _features(self, model: Evaluated, split: ImageSplit) -> tuple[Tensor, Tensor]:
        """Return features and labels; of the model's own encoder where its method trains one."""
        if len(split) == 0:
            return torch.empty(0, self.encoder.dim), torch.empty(0, dtype=torch.long)
        own = model.encoder if model.method.train_encoder else None
        features = extract_features(
            own or self.encoder,
            split,
            # Weights that change at every epoch would fill the cache, and go to every worker anew.
            cache=self.cache if own is None else False,
            workers=self.workers if own is None else 0,
            skip_bad=self.skip_bad,
            progress=False,
        )
        return features.plain(), features.labels
