"""Why one class and not another: the exact sum behind two logits, before and after adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rada.explain.words import Vocabulary
from rada.methods.terms import Terms

__all__ = [
    "ClassScore",
    "Contribution",
    "Evidence",
    "best_classes",
    "class_scores",
    "compare_terms",
]


@dataclass(frozen=True)
class ClassScore:
    """Logit and probability of a class before and after adaptation.

    Attributes:
        name: The class.
        zero_shot: Its logit without the adaptation.
        adapted: Its logit.
        zero_shot_probability: Its probability without the adaptation, among all candidates.
        probability: Its probability.
    """

    name: str
    zero_shot: float
    adapted: float
    zero_shot_probability: float
    probability: float


@dataclass(frozen=True)
class Contribution:
    """A part of the sum behind the difference of two logits.

    Attributes:
        name: A dimension, a group of dimensions, a word, or what is no dimension, such as a bias.
        zero_shot: What it adds without the adaptation.
        change: What the adaptation adds to that.
        dimension: The number of the dimension; None of anything else.
    """

    name: str
    zero_shot: float
    change: float
    dimension: int | None = None

    @property
    def total(self) -> float:
        """What it adds to the adapted model's difference."""
        return self.zero_shot + self.change


@dataclass(frozen=True)
class Evidence:
    """Why a class and not another; the parts add up to the differences exactly.

    Attributes:
        target: The class.
        against: The other one.
        zero_shot: Logit of `target` minus that of `against`, without the adaptation.
        adapted: The same of the adapted model.
        parts: The sum: single dimensions, the largest first, then the others in groups.
        words: The same sum by words: what the difference of the class weights is made of, and all that
            the words leave over. None without words.
    """

    target: str
    against: str
    zero_shot: float
    adapted: float
    parts: tuple[Contribution, ...]
    words: tuple[Contribution, ...] | None = None


def best_classes(zero_shot: Tensor, adapted: Tensor, count: int) -> list[int]:
    """Return the classes with the highest adapted logits `(K,)`, and the best one before adaptation.

    Example:
        >>> best_classes(torch.tensor([9.0, 1.0, 0.0]), torch.tensor([1.0, 3.0, 2.0]), 2)
        [1, 2, 0]
    """
    best: list[int] = adapted.topk(min(count, len(adapted))).indices.tolist()
    first = int(zero_shot.argmax())
    return best if first in best else [*best, first]


def class_scores(
    zero_shot: Tensor,
    adapted: Tensor,
    names: Sequence[str],
    rows: Sequence[int],
    temperature: float = 1.0,
) -> tuple[ClassScore, ...]:
    """Return the scores of the classes at `rows` from all logits `(K,)`.

    All are divided by the temperature already, which the probabilities without the adaptation have not.
    """
    before, after = (temperature * zero_shot).softmax(-1), adapted.softmax(-1)
    return tuple(
        ClassScore(
            names[row], *(float(values[row]) for values in (zero_shot, adapted, before, after))
        )
        for row in rows
    )


def compare_terms(
    zero_shot: Terms,
    adapted: Terms,
    names: Sequence[str],
    target: int,
    against: int,
    most: int,
    vocabulary: Vocabulary | None = None,
    words: int = 8,
) -> Evidence:
    """Take the difference of two logits of the first image apart.

    Args:
        zero_shot: Terms without the adaptation.
        adapted: Terms with it.
        names: K class names.
        target: Number of the class.
        against: Number of the other one.
        most: Dimensions that are named one by one; the others are two groups, those that speak for the
            class and those that speak against it.
        vocabulary: Words in which the difference is told as well.
        words: How many.

    Example:
        >>> weights = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
        >>> terms = Terms.of(torch.ones(1, 3), weights)
        >>> found = compare_terms(terms, 2 * terms, ("cat", "dog"), 0, 1, most=1)
        >>> [(part.name, part.zero_shot, part.change) for part in found.parts]
        [('dimension 0', 3.0, 3.0), ('1 other against', -2.0, -2.0)]
        >>> found.zero_shot, found.adapted
        (1.0, 2.0)
    """
    before, after = (
        terms.values[0, target] - terms.values[0, against] for terms in (zero_shot, adapted)
    )
    order = after.abs().argsort(descending=True, stable=True)
    parts = [
        Contribution(f"dimension {row}", float(before[row]), float(after[row] - before[row]), row)
        for row in order[:most].tolist()
    ]
    others = order[most:]
    for side, chosen in (("for", after[others] > 0), ("against", after[others] < 0)):
        rows = others[chosen]
        if len(rows):
            noun = "other" if len(rows) == 1 else "others"
            total = float(before[rows].sum())
            name = f"{len(rows)} {noun} {side}"
            parts.append(Contribution(name, total, float(after[rows].sum()) - total))
    silent = others[after[others] == 0]  # a mask of zero takes what they said away
    if len(silent) and bool(before[silent].any()):
        total = float(before[silent].sum())
        parts.append(Contribution(f"{len(silent)} that are masked out", total, -total))
    rest = []
    for name in dict.fromkeys((*zero_shot.rest, *adapted.rest)):
        first, last = (
            0.0 if name not in terms.rest else _difference(terms.rest[name], target, against)
            for terms in (zero_shot, adapted)
        )
        rest.append(Contribution(name, first, last - first))
    first, last = (_difference(terms.logits(), target, against) for terms in (zero_shot, adapted))
    by_word = None
    if vocabulary is not None and words:
        by_word = _by_words(zero_shot, adapted, target, against, vocabulary, words)
    return Evidence(
        names[target],
        names[against],
        first,
        last,
        (*parts, *rest),
        None if by_word is None else (*by_word, *rest),
    )


def _difference(values: Tensor, target: int, against: int) -> float:
    return float(values[0, target] - values[0, against])


def _by_words(
    zero_shot: Terms, adapted: Terms, target: int, against: int, vocabulary: Vocabulary, most: int
) -> list[Contribution] | None:
    """Return what each word in the difference of the class weights adds, and the others together."""
    sides = [
        (terms.images[0], terms.weights[0, target] - terms.weights[0, against])
        for terms in (zero_shot, adapted)
    ]
    found = vocabulary.describe(sides[1][1], most, signed=True)
    if not found.concepts:
        return None
    words = [concept.word for concept in found.concepts]
    rows = vocabulary.vectors(words)
    told = [
        torch.linalg.lstsq(rows.T, weights[:, None]).solution[:, 0] * (rows @ image)
        for image, weights in sides
    ]
    whole = [
        float((terms.values[0, target] - terms.values[0, against]).sum())
        for terms in (zero_shot, adapted)
    ]
    left = [total - float(part.sum()) for total, part in zip(whole, told, strict=True)]
    parts = [
        Contribution(
            concept.word if concept.weight > 0 else f"not {concept.word}",
            float(first),
            float(last - first),
        )
        for concept, first, last in zip(found.concepts, *told, strict=True)
    ]
    parts.sort(key=lambda part: -abs(part.total))
    return [*parts, Contribution("what no word says", left[0], left[1] - left[0])]
