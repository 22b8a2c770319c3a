"""Choosing the mask strength on the training shots alone.

The mask used at inference is `M_lambda = 1 + lambda (M - 1)`. A head that learned some classes may
do worse than zero-shot on classes that it never saw; a smaller strength mends that. Here a part of
the classes is held out as pseudo-new classes, a head learns the others, and the strength with
the best harmonic mean of pseudo-base and pseudo-new accuracy is taken, among those that are not below
zero-shot on the pseudo-new classes. Where all candidates are classes that the head was trained on,
such caution would only cost: for these the strength with the best accuracy on held-out images of
learned classes is taken. With one image a class there are none; one strength then serves both, and
it may fall below zero-shot on the pseudo-new classes by one standard error, so that chance does not undo
the head. The heads of the folds learn for as many steps as the final one, whose curve theirs stands
for: a head with fewer steps has a weaker mask, and so another best strength. (Mask strength is ours;
the paper has none.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rada.core.errors import CheckpointError
from rada.core.records import FoldRecord, check_record
from rada.core.storage import read_json, write_json
from rada.evaluation import harmonic_mean
from rada.head import RAdaHead

if TYPE_CHECKING:
    from rada.training.eft import HeadTrainer

__all__ = [
    "STRENGTHS",
    "CountParts",
    "Counts",
    "Part",
    "StrengthChoice",
    "best_choice",
    "choose_by_parts",
    "choose_strength",
    "count_right",
    "largest_best",
]

STRENGTHS = tuple(round(0.05 * step, 2) for step in range(21))
"""The strengths that are compared."""


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
        trained_strength: The strength for candidates that the head was trained on, all of them; None
            where no images could be held out to choose it: then `strength` serves both.
    """

    strength: float
    method: str
    strengths: tuple[float, ...] = STRENGTHS
    base_accuracy: tuple[float, ...] = ()
    new_accuracy: tuple[float, ...] = ()
    trained_strength: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain JSON values."""
        return asdict(self)


@dataclass
class Counts:
    """Right answers at every strength, answers that became right or wrong, and the images asked."""

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

        The standard error of a paired difference of n answers, of which m changed, is sqrt(m)/n.
        """
        return self.correct >= self.correct[0] - self.changed.double().sqrt()


class Part(NamedTuple):
    """Some of the training images.

    Attributes:
        classes: The classes, `(C,)`.
        keep: Mask `(N,)` of the images that may be used; None for all of these classes.
    """

    classes: Tensor
    keep: Tensor | None = None


CountParts = Callable[[Part, Sequence[Part], str], list[Counts]]
"""Trains on a part and counts right answers on others; the text names the fold."""


def choose_strength(
    trainer: HeadTrainer, folder: Path | None, *, progress: bool | None = None
) -> StrengthChoice:
    """Choose the strength of a run by cross-validation on its training images.

    Args:
        trainer: The run; its images, labels and configuration are used.
        folder: Where the states of the folds are kept, so that a killed run goes on; None keeps
            none.
        progress: Show bars; None shows them on a terminal only.

    Returns:
        The choice with the curves that led to it.
    """

    def counts(part: Part, tests: Sequence[Part], name: str) -> list[Counts]:
        learner = trainer.on_classes(part.classes, part.keep)
        testers = [trainer.on_classes(test.classes, test.keep) for test in tests]
        return _fold(learner, testers, folder, name, progress)

    folds = trainer.config.strength_folds
    return choose_by_parts(trainer.labels, len(trainer.text), folds, trainer.seed, counts)


def choose_by_parts(
    labels: Tensor, classes: int, folds: int, seed: int, counts: CountParts
) -> StrengthChoice:
    """Choose a strength by cross-validation, whatever it is that learns.

    Args:
        labels: Labels of the training images, `(N,)`.
        classes: Number of classes, K.
        folds: Parts of the classes that take turns as pseudo-new.
        seed: Seed of the run.
        counts: Trains on one part of the images and counts right answers on others.
    """
    if classes >= 4:
        return _over_classes(labels, classes, folds, seed, counts)
    if int(torch.bincount(labels.cpu(), minlength=classes).min()) >= 2:
        return _over_shots(labels, classes, seed, counts)
    return StrengthChoice(1.0, "none")


def _over_classes(
    labels: Tensor, classes: int, folds: int, seed: int, counts: CountParts
) -> StrengthChoice:
    order = torch.randperm(classes, generator=_generator(seed))
    held_out = _last_part_of_each_class(labels, classes, seed)
    asked = held_out if bool(held_out.any()) else None
    base, new = Counts.none(), Counts.none()
    for fold, pseudo_new in enumerate(order.tensor_split(min(folds, classes // 2))):
        pseudo_base = order[~torch.isin(order, pseudo_new)].sort().values
        tests = (Part(pseudo_base, asked), Part(pseudo_new.sort().values))
        learned, unknown = counts(Part(pseudo_base, ~held_out), tests, f"classes-{fold}")
        base, new = base + learned, new + unknown
    return best_choice(base, new, held_out=asked is not None)


def _over_shots(labels: Tensor, classes: int, seed: int, counts: CountParts) -> StrengthChoice:
    part = _position_in_class(labels, seed) % 2
    everything = torch.arange(classes)
    total = Counts.none()
    for fold in range(2):
        test = Part(everything, part == fold)
        total += counts(Part(everything, part != fold), (test,), f"shots-{fold}")[0]
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
        held_out: Whether the images behind `base` were held out; what a head learned by heart says
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


def _fold(
    learner: HeadTrainer,
    testers: Sequence[HeadTrainer],
    folder: Path | None,
    name: str,
    progress: bool | None,
) -> list[Counts]:
    """Train on one part, count right answers on others; read the counts back if they are there."""
    record = folder and folder / f"strength-{name}.json"
    if record is not None and record.exists():
        saved = read_json(record, error=CheckpointError, what="the training state")
        check_record(FoldRecord, saved, error=CheckpointError, what=f"the state {str(record)!r}")
        if saved.get("key") == learner.key:
            return [Counts(torch.tensor(c), torch.tensor(m), n) for c, m, n in saved["counts"]]
    head, _ = learner.run(
        folder and folder / f"strength-{name}.safetensors",
        progress=progress,
        description="Choosing the strength",
    )
    counts = [count_correct(head, tester) for tester in testers]
    if record is not None:
        rows = [[entry.correct.tolist(), entry.changed.tolist(), entry.images] for entry in counts]
        write_json(record, {"key": learner.key, "counts": rows})
    return counts


@torch.no_grad()
def count_correct(head: RAdaHead, tester: HeadTrainer) -> Counts:
    """Count right answers at every strength; logits are linear in it, so two passes serve all."""
    total = Counts.none()
    for start in range(0, len(tester.images), 256):
        images = tester.images[start : start + 256, 0]
        labels = tester.labels[start : start + 256]
        zero_shot = tester.scale * images @ tester.text.T
        change = head(images, tester.text, tester.scale).logits - zero_shot
        total += count_right(zero_shot, change, labels)
    return total


def count_right(zero_shot: Tensor, change: Tensor, labels: Tensor) -> Counts:
    """Count right answers at every strength.

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


def _position_in_class(labels: Tensor, seed: int) -> Tensor:
    """Number the images of each class from 0, in a random order."""
    found = labels.cpu()
    position = torch.zeros(len(found), dtype=torch.long)
    order = torch.randperm(len(found), generator=_generator(seed))
    for label in found.unique():
        members = order[found[order] == label]
        position[members] = torch.arange(len(members))
    return position.to(labels.device)


def _last_part_of_each_class(labels: Tensor, classes: int, seed: int) -> Tensor:
    """Mark a quarter of the images of every class, at least one where there are two, `(N,)`."""
    position = _position_in_class(labels, seed)
    shots = torch.bincount(labels, minlength=classes)[labels]
    held_out = torch.where(shots >= 2, (shots // 4).clamp(min=1), torch.zeros_like(shots))
    return position < held_out
