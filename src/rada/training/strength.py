"""The strength of an adapted model: how far to go from the zero-shot logits to the adapted ones.

For a RAda head it is the mask used at inference, `M_lambda = 1 + lambda (M - 1)`; since logits are
linear in the mask, that is the same as mixing logits, so one rule serves every method. A model that
learned some classes may do worse than zero-shot on classes that it never saw; a smaller strength mends
that. Here a part of the classes is held out as pseudo-new classes, the others are learned, and the
strength with the best harmonic mean of pseudo-base and pseudo-new accuracy is taken, among those that are
not below zero-shot on the pseudo-new classes. Where all candidates are classes that were trained on,
such caution would only cost: for these the strength with the best accuracy on held-out images of
learned classes is taken. With one image a class there are none; one strength then serves both, and
it may fall below zero-shot on the pseudo-new classes by one standard error, so that chance does not undo
the adaptation. The models of the folds learn for as many steps as the final one, whose curve theirs
stands for: a model with fewer steps has another best strength. (The strength is ours; the paper has
none.)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rada.core.config import Config
from rada.core.errors import CheckpointError
from rada.core.hashing import fingerprint_tensors
from rada.core.processes import process_rank
from rada.core.records import FoldRecord, check_record
from rada.core.storage import read_json, write_json
from rada.evaluation import harmonic_mean
from rada.features import ClassSet, Features

__all__ = [
    "STRENGTHS",
    "Strength",
    "StrengthChoice",
    "best_choice",
    "choose_strength",
    "count_right",
    "largest_best",
    "position_in_class",
]

STRENGTHS = tuple(round(0.05 * step, 2) for step in range(21))
"""The strengths that are compared."""


@dataclass(frozen=True)
class Strength(Config):
    """The strengths of an adapted model.

    Attributes:
        value: Where some of the candidates are new to the model, in [0, 1].
        trained: Where it was trained on all of them; None for `value` there too.
        classes: Names of the classes that it was trained on.

    Example:
        >>> strength = Strength(0.3, trained=0.9, classes=("cat", "dog"))
        >>> strength.for_classes(["cat"]), strength.for_classes(["cat", "owl"])
        (0.9, 0.3)
    """

    value: float = 1.0
    trained: float | None = None
    classes: tuple[str, ...] = ()

    def validate(self) -> None:
        """Check that both are in [0, 1]."""
        self.require(0 <= self.value <= 1, "value", "in [0, 1]")
        trained = self.trained
        self.require(trained is None or 0 <= trained <= 1, "trained", "None or in [0, 1]")

    def for_classes(self, names: Iterable[str]) -> float:
        """Return the strength among candidates: another where all of them were trained on."""
        if self.trained is None or not set(names) <= set(self.classes):
            return self.value
        return self.trained


@dataclass(frozen=True)
class StrengthChoice:
    """How a strength was chosen.

    Attributes:
        strength: The strength chosen, for candidates of which some are new.
        method: "classes" (cross-validation over classes), "shots" (over shots, for fewer than four
            classes) or "none" (one shot of fewer than four classes: nothing to validate on).
        strengths: The strengths compared.
        base_accuracy: Accuracy on held-out images of learned classes, one a strength.
        new_accuracy: Accuracy on held-out classes, one a strength; empty for "shots" and "none".
        trained_strength: The strength for candidates that were all trained on; None where no images
            could be held out to choose it: then `strength` serves both.
    """

    strength: float
    method: str
    strengths: tuple[float, ...] = STRENGTHS
    base_accuracy: tuple[float, ...] = ()
    new_accuracy: tuple[float, ...] = ()
    trained_strength: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON would give them back: lists for tuples."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


class Adapted(Protocol):
    """What a fold's training returns."""

    def features_of(self, data: Features) -> Tensor:
        """Return the features `(N, D)` that it scores of some data."""

    def adapted_logits(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return logits `(N, K)` at full strength."""

    def zero_shot_logits(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return logits `(N, K)` at strength 0."""


@dataclass
class Counts:
    """Right predictions at every strength, those that became right or wrong, and the images asked."""

    correct: Tensor
    changed: Tensor
    images: int

    @classmethod
    def none(cls) -> Counts:
        """Return the count of no images."""
        nothing = torch.zeros(len(STRENGTHS), dtype=torch.long)
        return cls(nothing, nothing, 0)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.correct + other.correct, self.changed + other.changed, self.images + other.images
        )

    def accuracy(self) -> Tensor:
        """Return the accuracy at every strength, `(S,)`."""
        return self.correct.double() / max(1, self.images)

    def not_below_zero_shot(self) -> Tensor:
        """Mark the strengths whose loss against zero-shot is within one standard error.

        The standard error of a paired difference of n predictions, of which m changed, is sqrt(m)/n.
        """
        return self.correct >= self.correct[0] - self.changed.double().sqrt()


def choose_strength(
    train: Callable[[Features, Path | None], Adapted],
    data: Features,
    seed: int,
    *,
    folds: int = 3,
    key: object = None,
    folder: Path | None = None,
) -> StrengthChoice:
    """Choose the strength by cross-validation on the training images.

    Args:
        train: Adapts to a part of the data, at full strength; the path is the file for its state.
        data: The training images with their class features.
        seed: Draws the folds.
        folds: Parts of the classes that take turns as pseudo-new classes.
        key: A JSON value that tells runs on the same data apart.
        folder: Where the states of the folds are kept, so that a killed run goes on; None keeps none.

    Returns:
        The choice with the curves that led to it.
    """
    classes = len(data.classes)
    shots = torch.bincount(data.labels.cpu(), minlength=classes)
    runs = _Folds(train, folder, [seed, key])
    if classes >= 4:
        return _over_classes(runs, data, seed, min(folds, classes // 2))
    if int(shots.min()) >= 2:
        return _over_shots(runs, data, seed)
    return StrengthChoice(1.0, "none")


@dataclass(frozen=True)
class _Folds:
    """Trains on one part and counts right predictions on others; reads the counts back if they are there."""

    train: Callable[[Features, Path | None], Adapted]
    folder: Path | None
    key: object

    def counts(
        self, learned: Features, asked: tuple[Features | None, ...], name: str
    ) -> list[Counts]:
        folder = self.folder
        record = folder and folder / f"strength-{name}.json"
        parts = [part and part.fingerprint for part in asked]
        identity = fingerprint_tensors(extra=[self.key, learned.fingerprint, parts])
        if record is not None and record.exists():
            saved = read_json(record, error=CheckpointError, what="the training state")
            what = f"the state {str(record)!r}"
            check_record(FoldRecord, saved, error=CheckpointError, what=what)
            if saved.get("key") == identity:
                return [Counts(torch.tensor(c), torch.tensor(m), n) for c, m, n in saved["counts"]]
        state = folder and folder / f"strength-{name}.safetensors"
        model = self.train(learned, state)
        counts = [Counts.none() if part is None else _counted(model, part) for part in asked]
        if record is not None:
            rows = [
                [entry.correct.tolist(), entry.changed.tolist(), entry.images] for entry in counts
            ]
            if process_rank() == 0:
                write_json(record, {"key": identity, "counts": rows})
                _forget(state)
        return counts


def _forget(state: Path | None) -> None:
    """Delete the state of a fold that is counted: a file, or a folder of the same name."""
    if state is not None:
        state.unlink(missing_ok=True)
        shutil.rmtree(state.with_suffix(""), ignore_errors=True)


def _over_classes(runs: _Folds, data: Features, seed: int, folds: int) -> StrengthChoice:
    order = torch.randperm(len(data.classes), generator=_generator(seed))
    held_out = _last_part_of_each_class(data, seed)
    some = bool(held_out.any())
    base, new = Counts.none(), Counts.none()
    for fold, part in enumerate(order.tensor_split(folds)):
        pseudo_new = part.sort().values.tolist()
        pseudo_base = order[~torch.isin(order, part)].sort().values.tolist()
        learned = _part(data, ~held_out, pseudo_base)
        if learned is None:
            continue
        everything = torch.ones_like(held_out)
        asked = (
            _part(data, held_out if some else everything, pseudo_base),
            _part(data, everything, pseudo_new),
        )
        base_counts, new_counts = runs.counts(learned, asked, f"classes-{fold}")
        base, new = base + base_counts, new + new_counts
    return best_choice(base, new, held_out=some)


def _part(data: Features, rows: Tensor, classes: list[int]) -> Features | None:
    """Return the marked images of some classes, relabelled; None if there are none."""
    found = (rows & torch.isin(data.labels.cpu(), torch.tensor(classes))).nonzero()
    return data.subset(found).select_classes(classes) if len(found) else None


def _over_shots(runs: _Folds, data: Features, seed: int) -> StrengthChoice:
    part = position_in_class(data, seed) % 2
    total = Counts.none()
    for fold in range(2):
        learned = data.subset((part != fold).nonzero())
        asked = data.subset((part == fold).nonzero())
        total += runs.counts(learned, (asked,), f"shots-{fold}")[0]
    accuracy = total.accuracy()
    strength = largest_best(accuracy)
    return StrengthChoice(
        strength, "shots", base_accuracy=tuple(accuracy.tolist()), trained_strength=strength
    )


def best_choice(base: Counts, new: Counts, *, held_out: bool) -> StrengthChoice:
    """Choose from what cross-validation over classes counted.

    Args:
        base: On learned classes.
        new: On held-out classes.
        held_out: Whether the images behind `base` were held out; what a model learned by heart says
            nothing of how it does on others.
    """
    base_accuracy, new_accuracy = base.accuracy(), new.accuracy()
    means = torch.tensor(
        [harmonic_mean(b, n) for b, n in zip(base_accuracy, new_accuracy, strict=True)]
    )
    allowed = new.correct >= new.correct[0] if held_out else new.not_below_zero_shot()
    means[~allowed] = -1.0
    return StrengthChoice(
        STRENGTHS[int(means.argmax())],
        "classes",
        base_accuracy=tuple(base_accuracy.tolist()),
        new_accuracy=tuple(new_accuracy.tolist()),
        trained_strength=largest_best(base_accuracy) if held_out else None,
    )


def largest_best(accuracy: Tensor) -> float:
    """Return the largest of the strengths with the best accuracy, `(S,)`."""
    return STRENGTHS[int((accuracy == accuracy.max()).nonzero().max())]


@torch.no_grad()
def _counted(model: Adapted, part: Features) -> Counts:
    """Count right predictions at every strength; logits are linear in it, so two passes serve all."""
    images, classes = model.features_of(part), part.class_set()
    zero_shot = model.zero_shot_logits(images, classes)
    return count_right(zero_shot, model.adapted_logits(images, classes) - zero_shot, part.labels)


def count_right(zero_shot: Tensor, change: Tensor, labels: Tensor) -> Counts:
    """Count right predictions at every strength.

    Args:
        zero_shot: Logits without adaptation, `(N, K)`.
        change: What adaptation adds to them at full strength.
        labels: `(N,)`.
    """
    right = torch.stack(
        [(zero_shot + strength * change).argmax(1) == labels for strength in STRENGTHS]
    )
    return Counts(right.sum(1).cpu(), (right != right[0]).sum(1).cpu(), len(labels))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed + 7_919)


def position_in_class(data: Features, seed: int) -> Tensor:
    """Number the images of each class from 0, in a random order."""
    labels = data.labels.cpu()
    position = torch.zeros(len(labels), dtype=torch.long)
    order = torch.randperm(len(labels), generator=_generator(seed))
    for label in labels.unique():
        members = order[labels[order] == label]
        position[members] = torch.arange(len(members))
    return position


def _last_part_of_each_class(data: Features, seed: int) -> Tensor:
    """Mark a quarter of the images of every class, at least one where there are two, `(N,)`."""
    labels, position = data.labels.cpu(), position_in_class(data, seed)
    shots = torch.bincount(labels, minlength=len(data.classes))[labels]
    held_out = torch.where(shots >= 2, (shots // 4).clamp(min=1), torch.zeros_like(shots))
    return position < held_out
