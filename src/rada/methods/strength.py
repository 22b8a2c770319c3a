"""Choosing, on the shots alone, how far to go from the zero-shot logits to the adapted ones.

The strength of a RAda head scales its mask's deviation, which is the same as mixing logits; so
what `rada.training.strength` does for the head is done here for any method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from rada.methods.base import ClassSet, Predictor, Task
from rada.training.strength import (
    Counts,
    StrengthChoice,
    best_choice,
    count_right,
    largest_best,
)

__all__ = [
    "Chosen",
    "choose_by_classes",
    "keep_choice",
    "places",
    "plain_json",
    "strength_for",
]


class Chosen(Protocol):
    """A predictor with a strength."""

    facts: dict[str, Any]
    record: dict[str, Any]
    strength: Tensor


def keep_choice(
    predictor: Chosen, task: Task, strength: float, choice: StrengthChoice | None
) -> None:
    """Write a strength, and how it was chosen, into a predictor.

    Args:
        predictor: Changed in place.
        task: What it was trained on.
        strength: The strength; where all candidates were trained on, the choice may have another.
        choice: How it was chosen; None if it was given.
    """
    predictor.strength.fill_(strength)
    predictor.record["strength"] = strength
    if choice is None:
        return
    predictor.record["strength_choice"] = plain_json(choice.to_dict())
    if choice.trained_strength is not None:
        names = [task.classes.names[label] for label in task.labels.unique().tolist()]
        predictor.facts["trained"] = {"strength": choice.trained_strength, "classes": names}


def strength_for(predictor: Chosen, classes: ClassSet) -> float:
    """Return the strength for candidates: another where all of them were trained on."""
    trained = predictor.facts.get("trained")
    if trained is not None and set(classes.names) <= set(trained["classes"]):
        return float(trained["strength"])
    return float(predictor.strength)


def plain_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return a dictionary as JSON would give it back: lists for tuples."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def choose_by_classes(
    train: Callable[[Task], Predictor], task: Task, folds: int = 3
) -> StrengthChoice:
    """Choose the strength by cross-validation over classes, or over shots for under four classes.

    Args:
        train: Adapts to a part of the task, at full strength.
        task: The whole of it.
        folds: Parts that take turns as pseudo-new classes.

    Returns:
        The choice, by the same rules as for the head alone.
    """
    count = len(task.classes)
    generator = torch.Generator().manual_seed(task.seed + 7_919)
    place = places(task, generator)
    shots = torch.bincount(task.labels, minlength=count)
    if count < 4:
        if int(shots.min()) < 2:
            return StrengthChoice(1.0, "none")
        return _over_shots(train, task, place)
    held_out = place < torch.where(shots >= 2, (shots // 4).clamp(min=1), 0)[task.labels]
    order = torch.randperm(count, generator=generator)
    base, new = Counts.none(), Counts.none()
    for pseudo_new in order.tensor_split(min(folds, count // 2)):
        pseudo_base = order[~torch.isin(order, pseudo_new)].sort().values
        predictor = train(task.on_classes(pseudo_base, ~held_out))
        keep = held_out if bool(held_out.any()) else None
        base += _right(predictor, task.on_classes(pseudo_base, keep))
        new += _right(predictor, task.on_classes(pseudo_new.sort().values))
    return best_choice(base, new, held_out=bool(held_out.any()))


def _over_shots(train: Callable[[Task], Predictor], task: Task, place: Tensor) -> StrengthChoice:
    everything = torch.arange(len(task.classes))
    total = Counts.none()
    for fold in range(2):
        predictor = train(task.on_classes(everything, place % 2 != fold))
        total += _right(predictor, task.on_classes(everything, place % 2 == fold))
    accuracy = total.accuracy()
    strength = largest_best(accuracy)
    return StrengthChoice(
        strength, "shots", base_accuracy=tuple(accuracy.tolist()), trained_strength=strength
    )


def places(task: Task, generator: torch.Generator) -> Tensor:
    """Number the examples of each class from 0, in a random order."""
    place = torch.zeros(len(task.labels), dtype=torch.long)
    order = torch.randperm(len(task.labels), generator=generator)
    for label in range(len(task.classes)):
        members = order[task.labels[order] == label]
        place[members] = torch.arange(len(members))
    return place


def _right(predictor: Predictor, part: Task) -> Counts:
    zero_shot = part.scale * part.examples.plain() @ part.classes.text_features.T
    change = predictor.predict(part.examples, part.classes) - zero_shot
    return count_right(zero_shot, change, part.labels)
