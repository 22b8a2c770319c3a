"""Teaching: a cross-validation that says how good it is, then the model, in a thread of its own."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rada.classifier import Classifier
from rada.core.errors import DataError, RadaError
from rada.evaluation import Evaluation, compare
from rada.features import ClassSet, Features

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Job", "StoppedError", "Taught", "folds_of", "teach"]


class StoppedError(Exception):
    """Training was stopped."""


@dataclass(frozen=True, eq=False)
class Taught:
    """What teaching came to.

    Attributes:
        classifier: The fitted classifier, its candidates all class names.
        method: Title of the method.
        labels: Number of labelled images.
        folds: Parts of the cross-validation; 0 where there are too few labels for one.
        evaluation: Zero-shot and adapted on images that were held out in turn; None without one.
    """

    classifier: Classifier
    method: str
    labels: int
    folds: int
    evaluation: Evaluation | None

    @property
    def accuracy(self) -> float | None:
        """Accuracy on held-out images."""
        return None if self.evaluation is None else float(self.evaluation["adapted"]["accuracy"])


def folds_of(labels: NDArray[np.int64], most: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the rows to hold out in turn; none where no class has two images.

    An image whose class has no other one is never held out: without it the class would be unknown.

    Args:
        labels: `(N,)` class numbers.
        most: Most parts.
        seed: Chooses the parts.

    Example:
        >>> [len(rows) for rows in folds_of(np.array([0, 0, 1, 1, 2]), 5, 0)]
        [2, 2]
    """
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(labels)
    rows = np.flatnonzero(counts[labels] >= 2)
    if not len(rows):
        return []
    parts = min(most, int(counts[labels[rows]].min()))
    split = StratifiedKFold(max(2, parts), shuffle=True, random_state=seed)
    return [rows[test] for _, test in split.split(rows, labels[rows])]


def teach(
    make: Callable[[], Classifier],
    data: Features,
    candidates: ClassSet,
    *,
    folds: int,
    seed: int,
    advance: Callable[[float, str], None] = lambda part, text: None,
) -> Taught:
    """Teach a classifier and measure it by cross-validation.

    Args:
        make: Returns an unfitted classifier.
        data: Labelled images; its classes are those that have labels.
        candidates: All classes, with their features.
        folds: Parts of the cross-validation, at most.
        seed: Seed of everything random.
        advance: Called between the steps with the part that is done and what comes next; what it raises
            stops the work.

    Raises:
        DataError: If fewer than two classes have labels.
        RadaError: As `Classifier.fit`.
    """
    if len(data.classes) < 2:
        raise DataError(
            f"label images of at least two classes first; so far it is {len(data.classes)}"
        )
    labels = data.labels.numpy()
    held_out = folds_of(labels, folds, seed)
    steps = len(held_out) + 1
    logits = torch.zeros(len(data), len(candidates.names))
    for number, rows in enumerate(held_out):
        advance(number / steps, f"checking, part {number + 1} of {len(held_out)}")
        rest = np.setdiff1d(np.arange(len(data)), rows)
        model = make().fit(data.subset(rest), seed=seed)
        logits[torch.from_numpy(rows)] = model.model_logits(data.plain()[rows], candidates)
    advance(len(held_out) / steps, "learning from all labels")
    classifier = make().fit(data, seed=seed)
    classifier.classes = list(candidates.names)
    title = classifier.fitted_.model.method.title
    evaluation = None
    if held_out:
        rows = np.sort(np.concatenate(held_out))
        evaluation = _evaluation(
            data.subset(rows), logits[torch.from_numpy(rows)], candidates, title
        )
    return Taught(classifier, title, len(data), len(held_out), evaluation)


def _evaluation(data: Features, adapted: Tensor, candidates: ClassSet, title: str) -> Evaluation:
    places = [candidates.names.index(name) for name in data.classes]
    labels = torch.tensor(places)[data.labels]
    assert data.scale is not None
    rows = {
        "zero_shot": candidates.zero_shot_logits(data.plain(), data.scale),
        "adapted": adapted,
    }
    result: dict[str, Any] = compare(rows["zero_shot"], rows["adapted"], labels, candidates.names)
    result |= {"row_names": {"adapted": title}}
    images = None
    if data.images is not None:
        images = dataclasses.replace(
            data.images, classes=candidates.names, labels=labels.numpy().astype(np.int64)
        )
    features = dataclasses.replace(
        data,
        labels=labels,
        classes=candidates.names,
        text_features=candidates.text_features,
        images=images,
    )
    return Evaluation(result, features, candidates.names, rows, images, features)


class Job:
    """Teaching in a thread: it goes on when the page is closed, and what it came to is kept.

    Args:
        work: Does it; gets a function to call between the steps.
        done: Called with what came of it, in the thread.
    """

    def __init__(
        self,
        work: Callable[[Callable[[float, str], None]], Taught],
        done: Callable[[Taught], None],
    ) -> None:
        self.part, self.text = 0.0, "starting"
        self.error: str | None = None
        self._work, self._done = work, done
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rada-teach", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ask it to stop after the step that it is in; the model before stays."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Wait for its end, and return whether it came."""
        self._thread.join(seconds)
        return not self.running

    def _advance(self, part: float, text: str) -> None:
        if self._stop.is_set():
            raise StoppedError
        self.part, self.text = part, text

    def _run(self) -> None:
        try:
            found = self._work(self._advance)
            self._advance(1.0, "done")
            self._done(found)
        except StoppedError:
            self.text, self.error = "stopped", "Training was stopped; the model before it is kept."
        except RadaError as error:
            self.text, self.error = "failed", str(error)
        except Exception as error:
            self.text, self.error = "failed", f"training failed: {type(error).__name__}: {error}"
            raise
