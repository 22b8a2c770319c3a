"""Choosing, on the shots alone, how far to go from the zero-shot logits to the adapted ones.

The strength of a RAda head scales its mask's deviation, which is the same as mixing logits; so
what `rada.settings.strength` does for the head is done here for any method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rada.evaluation import harmonic_mean
from rada.methods.base import Predictor, Task
from rada.settings.strength import STRENGTHS, StrengthChoice

__all__ = ["choose_by_classes", "plain_json"]


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
        The strength with the best harmonic mean of pseudo-base and pseudo-new accuracy among those
        that are not below zero-shot on the pseudo-new classes.
    """
    count = len(task.classes)
    generator = torch.Generator().manual_seed(task.seed + 7_919)
    place = _places(task, generator)
    shots = torch.bincount(task.labels, minlength=count)
    if count < 4:
        if int(shots.min()) < 2:
            return StrengthChoice(1.0, "none")
        return _over_shots(train, task, place)
    held_out = place < torch.where(shots >= 2, (shots // 4).clamp(min=1), 0)[task.labels]
    order = torch.randperm(count, generator=generator)
    base, new = torch.zeros(2, len(STRENGTHS)), torch.zeros(2, len(STRENGTHS))
    for pseudo_new in order.tensor_split(min(folds, count // 2)):
        pseudo_base = order[~torch.isin(order, pseudo_new)].sort().values
        predictor = train(task.on_classes(pseudo_base, ~held_out))
        keep = held_out if bool(held_out.any()) else None
        base += _right(predictor, task.on_classes(pseudo_base, keep))
        new += _right(predictor, task.on_classes(pseudo_new.sort().values))
    base_accuracy, new_accuracy = base[0] / base[1], new[0] / new[1]
    means = torch.tensor(
        [
            harmonic_mean(float(b), float(n))
            for b, n in zip(base_accuracy, new_accuracy, strict=True)
        ]
    )
    means[new_accuracy < new_accuracy[0]] = -1.0
    return StrengthChoice(
        STRENGTHS[int(means.argmax())],
        "classes",
        base_accuracy=tuple(base_accuracy.tolist()),
        new_accuracy=tuple(new_accuracy.tolist()),
    )


def _over_shots(train: Callable[[Task], Predictor], task: Task, place: Tensor) -> StrengthChoice:
    everything = torch.arange(len(task.classes))
    total = torch.zeros(2, len(STRENGTHS))
    for fold in range(2):
        predictor = train(task.on_classes(everything, place % 2 != fold))
        total += _right(predictor, task.on_classes(everything, place % 2 == fold))
    accuracy = total[0] / total[1]
    best = int((accuracy == accuracy.max()).nonzero().max())
    return StrengthChoice(STRENGTHS[best], "shots", base_accuracy=tuple(accuracy.tolist()))


def _places(task: Task, generator: torch.Generator) -> Tensor:
    """Number the examples of each class from 0, in a random order."""
    place = torch.zeros(len(task.labels), dtype=torch.long)
    order = torch.randperm(len(task.labels), generator=generator)
    for label in range(len(task.classes)):
        members = order[task.labels[order] == label]
        place[members] = torch.arange(len(members))
    return place


def _right(predictor: Predictor, part: Task) -> Tensor:
    """Return right answers and examples at every strength, `(2, S)`."""
    zero_shot = part.scale * part.examples.plain() @ part.classes.text_features.T
    change = predictor.predict(part.examples, part.classes) - zero_shot
    right = [
        float(((zero_shot + strength * change).argmax(1) == part.labels).sum())
        for strength in STRENGTHS
    ]
    return torch.tensor([right, [float(len(part.labels))] * len(STRENGTHS)])
