"""What an adaptation learned as a whole: the words that each class gained and lost, and the mean mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rada.core import notebook
from rada.core.errors import ConfigError, EncoderError, FeatureError
from rada.explain.image import vocabulary_of
from rada.explain.words import InWords

if TYPE_CHECKING:
    from rada.classifier_base import ClassifierBase
    from rada.features import ClassSet, Features
    from rada.methods import AdaptedModel

__all__ = ["ClassChange", "ConfusedPair", "Learned", "what_was_learned"]

MOST_CLASSES = 24
"""So many classes are told of, those that changed most."""
MOST_PAIRS = 8
"""So many confused pairs of classes are told of, those with the most images."""
MOST_IMAGES = 128
"""A mask differs from image to image; the mean of so many is taken."""
_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class ClassChange:
    """What the adaptation changed in the effective class weights of a class, in the mean of some images.

    Attributes:
        name: The class.
        size: Length of the change, the length of the weights before it being 1.
        words: The change in words; None without words.
    """

    name: str
    size: float
    words: InWords | None


@dataclass(frozen=True)
class ConfusedPair:
    """A class that is taken for another one, and the concepts that tell them apart.

    Attributes:
        name: The class.
        taken_for: The class that is predicted in its place.
        images: How many of its images.
        total: Of how many.
        words: What the model's class weights have more in the first and in the second; None without words.
    """

    name: str
    taken_for: str
    images: int
    total: int
    words: InWords | None


@dataclass(frozen=True, eq=False)
class Learned:
    """What a model learned as a whole.

    Attributes:
        classes: The classes, the most changed first.
        pairs: The pairs of classes that are confused most, the most images first.
        total: Number of all classes.
        images: Images over which the mean is taken.
        mask: Mean mask `(len(classes), D)` in the same order, at full strength; None of a method without
            a head.
        notes: What is missing and why.
    """

    classes: tuple[ClassChange, ...]
    total: int
    images: int
    mask: Tensor | None
    pairs: tuple[ConfusedPair, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, the mask left out."""
        return {
            "classes": [
                {"name": entry.name, "size": entry.size} | _told(entry.words)
                for entry in self.classes
            ],
            "pairs": [
                {
                    "name": pair.name,
                    "taken_for": pair.taken_for,
                    "images": pair.images,
                    "total": pair.total,
                }
                | _told(pair.words)
                for pair in self.pairs
            ],
            "total": self.total,
            "images": self.images,
            "notes": list(self.notes),
        }

    def _repr_html_(self) -> str:
        largest = max((entry.size for entry in self.classes), default=0.0)
        rows = [
            (
                notebook.text(entry.name),
                notebook.bar(entry.size, largest, f"{entry.size:.0%}"),
                notebook.text("" if entry.words is None else entry.words.text()),
            )
            for entry in self.classes
        ]
        return notebook.fragment(
            f"What the model learned: {self.total} classes",
            notebook.table(("class", "change", "in words"), rows),
            *(notebook.paragraph(note, note=True) for note in self.notes),
        )


def _told(words: InWords | None) -> dict[str, Any]:
    if words is None:
        return {}
    numbers = {"share": words.share, "by_chance": words.by_chance}
    return {"more": list(words.more), "less": list(words.less)} | numbers


def what_was_learned(
    classifier: ClassifierBase,
    features: Features,
    *,
    words: int = 8,
    confusion: Sequence[Sequence[int]] | None = None,
) -> Learned:
    """Tell what a fitted classifier learned.

    Args:
        classifier: The classifier.
        features: Images over which masks are averaged, of the encoder in use, with class features.
        words: Words at most for a class; 0 for none.
        confusion: `(K, K)` counts among the classes of the features, rows true, for the confused pairs.

    Raises:
        ConfigError: If nothing is fitted, or the method's logits are no sum over dimensions.
        UnknownClassError: If the method cannot score one of the classes.
    """
    model, classes = classifier.fitted_.model, features.class_set()
    strength = model.strength.for_classes(classes.names)
    drawn = min(len(features), MOST_IMAGES)
    rows = features.plain()[torch.linspace(0, len(features) - 1, drawn).round().long()]
    before, after, mask = _mean_weights(model, rows, classes, strength)
    change = after - before
    sizes = change.norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-12)
    order = sizes.argsort(descending=True, stable=True)[:MOST_CLASSES].tolist()
    notes, vocabulary = [], None
    if words:
        try:
            vocabulary = vocabulary_of(classifier, classes.template)
        except (EncoderError, FeatureError) as error:
            notes.append(f"no words: {error}")

    def described(vector: Tensor) -> InWords | None:
        return None if vocabulary is None else vocabulary.describe(vector, words, signed=True)

    told = tuple(
        ClassChange(classes.names[row], float(sizes[row]), described(change[row])) for row in order
    )
    pairs = tuple(
        ConfusedPair(
            classes.names[row],
            classes.names[other],
            count,
            total,
            described(after[row] - after[other]),
        )
        for row, other, count, total in _most_confused(confusion or ())
    )
    mask = None if mask is None else mask[order]
    return Learned(told, len(classes), drawn, mask, pairs, tuple(notes))


def _most_confused(confusion: Sequence[Sequence[int]]) -> list[tuple[int, int, int, int]]:
    """Return class, other class, images and total of the pairs with the most errors.

    Example:
        >>> _most_confused([[5, 1], [3, 2]])
        [(1, 0, 3, 5), (0, 1, 1, 6)]
    """
    errors = [
        (row, other, count, sum(counts))
        for row, counts in enumerate(confusion)
        for other, count in enumerate(counts)
        if row != other and count
    ]
    return sorted(errors, key=lambda error: (-error[2], -error[2] / error[3]))[:MOST_PAIRS]


def _mean_weights(
    model: AdaptedModel, images: Tensor, classes: ClassSet, strength: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the mean effective class weights `(K, D)` before and after adaptation, and the mean mask."""
    if not len(images):
        raise ConfigError("there is no image over which the mean could be taken")
    shape = classes.text_features.shape
    before, after, mask = (torch.zeros(shape).double() for _ in range(3))
    masked = False
    for part in images.split(max(1, _AT_ONCE // shape.numel())):
        before += model.logit_terms(part, classes, strength=0.0).double().weights.sum(0)
        terms = model.logit_terms(part, classes, strength=strength).double()
        after += terms.weights.sum(0)
        if terms.mask is not None:
            mask += terms.mask.sum(0)
            masked = True
    count = len(images)
    return before / count, after / count, mask / count if masked else None
