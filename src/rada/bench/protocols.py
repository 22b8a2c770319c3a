"""The protocols: what is learned from, and which parts are tested among which candidates.

The candidates of a part are chosen before the predictor sees them; logits are never cut afterwards,
since a head's logits depend on what stands beside a class.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rada.bench.cells import SOURCE, Cell, told_apart
from rada.bench.sources import Source
from rada.core.errors import DataError
from rada.features import ClassSet, Features
from rada.features.store_rows import StoreRows
from rada.features.template_choice import TemplateChoice, choose_templates
from rada.methods import Method
from rada.test_time import ViewConfig

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["Part", "Setup", "base_and_new", "set_up"]


@dataclass(frozen=True, eq=False)
class Part:
    """Something to test on.

    Attributes:
        name: "test", "base", "new", "source", or what tells a target from the others.
        data: The images, all in memory or to be read part by part; their labels count in `data.classes`.
        classes: The candidates.
        groups: For each candidate its class, where several share one.
    """

    name: str
    data: Features | StoreRows
    classes: ClassSet
    groups: tuple[int, ...] | None = None

    def with_templates(self, encoder: DualEncoder, templates: tuple[str, ...]) -> Part:
        """Return the part with class features of other templates."""
        if self.classes.templates == templates:
            return self
        names = self.classes.names
        classes = ClassSet(names, encoder.encode_classes(names, templates), templates)
        return dataclasses.replace(self, classes=classes)

    def merge(self, logits: Tensor) -> Tensor:
        """Turn logits over candidates into logits over classes: the largest of each group."""
        if self.groups is None:
            return logits
        owners = torch.tensor(self.groups).expand(len(logits), -1)
        merged = torch.full((len(logits), len(self.data.classes)), -torch.inf)
        return merged.scatter_reduce(1, owners, logits, "amax")


@dataclass(frozen=True, eq=False)
class Setup:
    """What is learned from, and the parts to test on."""

    train: Features
    parts: tuple[Part, ...]

    def choose_templates(self, encoder: DualEncoder, seed: int) -> tuple[Setup, TemplateChoice]:
        """Choose templates on what is learned from; whatever is tested on gets the chosen ones."""
        train, choice = choose_templates(self.train, encoder, seed)
        parts = tuple(part.with_templates(encoder, choice.templates) for part in self.parts)
        return Setup(train, parts), choice


def base_and_new(labels: list[int]) -> tuple[list[int], list[int]]:
    """Split class labels in order: the first ceil(n / 2) are base, the rest new.

    Example:
        >>> base_and_new([0, 1, 2])
        ([0, 1], [2])
    """
    middle = math.ceil(len(labels) / 2)
    return labels[:middle], labels[middle:]


def set_up(
    cell: Cell,
    method: Method,
    config: Any,
    sources: dict[str, Source],
    views: ViewConfig | None = None,
) -> Setup:
    """Return what a cell learns from and is tested on.

    Args:
        cell: The cell.
        method: Its method.
        config: The method's configuration.
        sources: The data sets by specification.
        views: How a test-time method wants the views of the test images; None without one.

    Raises:
        DataError: If the data does not fit the protocol.
    """
    return _PROTOCOLS[cell.protocol](cell, method.views(config), sources, views)


def _train(cell: Cell, views: int, source: Source, classes: list[int]) -> Features:
    if not cell.shots:  # the method learns nothing: it takes scale and classes alone from these
        return source.complete(next(source.test().select_classes(classes).parts()))
    return source.draw(classes, cell.shots, cell.seed, views=views, allow_fewer=cell.allow_fewer)


def _part(name: str, source: Source, classes: list[int], views: ViewConfig | None) -> Part:
    found = source.test(views=views).select_classes(classes)
    return Part(name, found, source.class_set().take(classes))


def _few_shot(
    cell: Cell, wanted: int, sources: dict[str, Source], views: ViewConfig | None
) -> Setup:
    source = sources[cell.dataset]
    classes = source.trained()
    return Setup(_train(cell, wanted, source, classes), (_part("test", source, classes, views),))


def _base_to_new(
    cell: Cell, wanted: int, sources: dict[str, Source], views: ViewConfig | None
) -> Setup:
    source = sources[cell.dataset]
    base, new = base_and_new(source.trained())
    if not new:
        raise DataError(f"{source.name!r} has the one class {source.classes[base[0]]!r}")
    parts = [
        _part(name, source, classes, views) for name, classes in (("base", base), ("new", new))
    ]
    return Setup(_train(cell, wanted, source, base), tuple(parts))


def _transfer(
    cell: Cell, wanted: int, sources: dict[str, Source], views: ViewConfig | None
) -> Setup:
    source = sources[cell.dataset]
    classes = source.trained()
    train = _train(cell, wanted, source, classes)
    parts = [_part(SOURCE, source, classes, views)]
    names = told_apart({spec: sources[spec].name for spec in (cell.dataset, *cell.targets)})
    for spec in cell.targets:
        target = sources[spec]
        candidates = target.class_set()
        _check_width(train, source, target)
        if cell.protocol == "domain":
            _check_known(source, target)
        labels = range(len(target.classes))
        found = target.test(whole=True, views=views).select_classes(labels)
        parts.append(Part(names[spec], found, candidates, target.groups))
    return Setup(train, tuple(parts))


def _shift(cell: Cell, wanted: int, sources: dict[str, Source], views: ViewConfig | None) -> Setup:
    target = sources[cell.targets[0]]
    candidates = target.class_set()
    if cell.shots:
        source = sources[cell.dataset]
        train = _train(cell, wanted, source, source.trained())
        _check_width(train, source, target)
    else:  # the method learns nothing: it takes scale and classes alone from these
        some = next(target.test(whole=True).parts())
        train = dataclasses.replace(
            some,
            labels=torch.full((len(some),), -1),
            classes=candidates.names,
            text_features=candidates.text_features,
            templates=candidates.templates,
            scale=target.scale,
        )
    found = target.test(whole=True, views=views).select_classes(range(len(target.classes)))
    return Setup(train, (Part(target.name, found, candidates, target.groups),))


def _check_width(train: Features, source: Source, target: Source) -> None:
    if target.class_set().text_features.shape[1] != train.dim:
        raise DataError(
            f"{source.name!r} and {target.name!r} have features of different widths: encode both "
            "with one model"
        )


def _check_known(source: Source, target: Source) -> None:
    strangers = [name for name in target.class_set().names if name not in source.classes]
    if strangers:
        raise DataError(
            f"the domains differ in their classes: {target.name!r} has {strangers[0]!r}, which "
            f"{source.name!r} lacks; for other classes there is the protocol cross-dataset"
        )


_PROTOCOLS: dict[str, Callable[[Cell, int, dict[str, Source], ViewConfig | None], Setup]] = {
    "few-shot": _few_shot,
    "base-to-new": _base_to_new,
    "cross-dataset": _transfer,
    "domain": _transfer,
    "shift": _shift,
}
