"""The protocols: what is learned from, and which parts are tested among which candidates.

The candidates of a part are chosen before the predictor sees them; logits are never cut afterwards,
since a head's logits depend on what stands beside a class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rada.bench.cells import Cell
from rada.bench.sources import Labelled, Source
from rada.core.errors import DataError
from rada.methods import ClassSet, Examples, Method, Task

__all__ = ["Part", "Setup", "base_and_new", "set_up"]


@dataclass(frozen=True, eq=False)
class Part:
    """Something to test on.

    Attributes:
        name: "test", "base", "new", or the name of a data set.
        examples: The pictures.
        labels: Their labels among the part's classes.
        classes: The candidates.
        names: The classes that the labels count in.
        groups: For each candidate its class, where several share one.
    """

    name: str
    examples: Examples
    labels: Tensor
    classes: ClassSet
    names: tuple[str, ...]
    groups: tuple[int, ...] | None = None

    def merge(self, logits: Tensor) -> Tensor:
        """Turn logits over candidates into logits over classes: the largest of each group."""
        if self.groups is None:
            return logits
        owners = torch.tensor(self.groups).expand(len(logits), -1)
        merged = torch.full((len(logits), len(self.names)), -torch.inf)
        return merged.scatter_reduce(1, owners, logits, "amax")


@dataclass(frozen=True, eq=False)
class Setup:
    """A task and the parts to test on; `source` is the part of the source domain, if any."""

    task: Task
    parts: tuple[Part, ...]


def base_and_new(labels: list[int]) -> tuple[list[int], list[int]]:
    """Split class labels in order: the first ceil(n / 2) are base, the rest new.

    Example:
        >>> base_and_new([0, 1, 2])
        ([0, 1], [2])
    """
    middle = math.ceil(len(labels) / 2)
    return labels[:middle], labels[middle:]


def set_up(cell: Cell, method: Method, config: Any, sources: dict[str, Source]) -> Setup:
    """Return what a cell learns from and is tested on.

    Args:
        cell: The cell.
        method: Its method.
        config: Its settings.
        sources: The data sets by specification.

    Raises:
        DataError: If the data does not fit the protocol.
    """
    return _PROTOCOLS[cell.protocol](cell, method.views(config), sources)


def _task(cell: Cell, views: int, source: Source, classes: list[int]) -> Task:
    candidates = source.class_set().take(classes)
    if cell.shots:
        drawn = source.draw(
            classes, cell.shots, cell.seed, views=views, allow_fewer=cell.allow_fewer
        )
    else:
        drawn = source.nothing()
    return Task(
        drawn.examples,
        drawn.labels,
        candidates,
        source.scale,
        seed=cell.seed,
        encoder=source.encoder,
    )


def _part(name: str, found: Labelled, classes: ClassSet) -> Part:
    return Part(name, found.examples, found.labels, classes, classes.names)


def _few_shot(cell: Cell, views: int, sources: dict[str, Source]) -> Setup:
    source = sources[cell.dataset]
    classes = source.trained()
    task = _task(cell, views, source, classes)
    return Setup(task, (_part("test", source.test().of_classes(classes), task.classes),))


def _base_to_new(cell: Cell, views: int, sources: dict[str, Source]) -> Setup:
    source = sources[cell.dataset]
    base, new = base_and_new(source.trained())
    if not new:
        raise DataError(f"{source.name!r} has the one class {source.classes[base[0]]!r}")
    test = source.test()
    parts = [
        _part(name, test.of_classes(classes), source.class_set().take(classes))
        for name, classes in (("base", base), ("new", new))
    ]
    return Setup(_task(cell, views, source, base), tuple(parts))


def _transfer(cell: Cell, views: int, sources: dict[str, Source]) -> Setup:
    source = sources[cell.dataset]
    classes = source.trained()
    task = _task(cell, views, source, classes)
    parts = [_part("source", source.test().of_classes(classes), task.classes)]
    for spec in cell.targets:
        target = sources[spec]
        if target.class_set().text_features.shape[1] != task.classes.text_features.shape[1]:
            raise DataError(
                f"{source.name!r} and {target.name!r} have features of different widths: encode both "
                "with one model"
            )
        if cell.protocol == "domain":
            _check_known(source, target)
        found = target.test(whole=True)
        labels = range(len(target.classes))
        part = _part(target.name, found.of_classes(labels), target.class_set())
        if target.groups is not None:
            part = Part(
                part.name, part.examples, part.labels, part.classes, target.classes, target.groups
            )
        parts.append(part)
    return Setup(task, tuple(parts))


def _check_known(source: Source, target: Source) -> None:
    strangers = [name for name in target.class_set().names if name not in source.classes]
    if strangers:
        raise DataError(
            f"the domains differ in their classes: {target.name!r} has {strangers[0]!r}, which "
            f"{source.name!r} lacks; for other classes there is the protocol cross-dataset"
        )


_PROTOCOLS: dict[str, Callable[[Cell, int, dict[str, Source]], Setup]] = {
    "few-shot": _few_shot,
    "base-to-new": _base_to_new,
    "cross-dataset": _transfer,
    "domain": _transfer,
}
