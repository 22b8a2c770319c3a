"""The pictures of a run: what is learned, what selects, and what judges in and out of distribution."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rada.data import ImageDataset, ImageSplit, few_shot, open_dataset, readable_shots
from rada.data.checks import check_labelled
from rada.data.prompts import DEFAULT_TEMPLATE, check_class_names
from rada.errors import ConfigError, DataError
from rada.settings.fft.judging import IN_DISTRIBUTION, TestSet, shared_classes

__all__ = ["Data", "RunData", "open_sets"]

Data = str | Path | ImageDataset | ImageSplit
Names = Sequence[str] | Mapping[str, str] | None


@dataclass(frozen=True)
class RunData:
    """The pictures of a run.

    Attributes:
        train: Pictures to learn.
        tests: Test sets, the one in distribution first if there is one.
        validation: Pictures that select the epoch, which are in none of the test sets; or None.
        templates: The data's prompt templates.
    """

    train: ImageSplit
    tests: list[TestSet]
    validation: TestSet | None
    templates: tuple[str, ...]


def open_sets(
    data: Data,
    ood: Mapping[str, Data],
    names: Names = None,
    *,
    shots: int | None = None,
    seed: int = 0,
    allow_fewer: bool = False,
    skip_bad: bool = False,
    select: bool = False,
) -> RunData:
    """Open all pictures of a run; test sets are matched to the training classes by name.

    Args:
        data: As for `FineTuner.fit`.
        ood: Further test sets by name.
        names: Class names, or a mapping from the data's names to them; None takes the data's.
        shots: Pictures of each class to learn; None for all.
        seed: Chooses them.
        allow_fewer: Go on where a class has fewer.
        skip_bad: Go on without pictures that cannot be read.
        select: Whether the split `val` selects; then it never judges. Else it judges where there is no
            split `test`.

    Raises:
        DataError: If pictures, labels or classes are missing; the message names them.
        ConfigError: If a test set's name is taken.
    """
    found = _opened(data, skip_bad)
    splits = found.splits if isinstance(found, ImageDataset) else {"train": found}
    train = splits.get("train", splits.get("all"))
    if train is None:
        raise DataError(f"{data!r} has no training pictures; it has {', '.join(splits)}")
    train = train.rename(check_class_names(_named(names, train.classes)))
    classes = train.classes

    def matched(name: str, split: ImageSplit) -> TestSet:
        return shared_classes(name, split.rename(_named(names, split.classes)), classes)

    validation = splits.get("val") if select else None
    test = splits.get("test", None if select else splits.get("val"))
    tests = [] if test is None else [matched(IN_DISTRIBUTION, test)]
    if test is None:
        warnings.warn(
            "the data has no test split"
            + (" beside the one that selects" if validation is not None else "")
            + ", so the accuracy in distribution is not measured",
            UserWarning,
            stacklevel=3,
        )
    for name, spec in ood.items():
        if name in ("mean", IN_DISTRIBUTION):
            raise ConfigError(f"a test set cannot be called {name!r}: the result uses the word")
        other = _opened(spec, skip_bad)
        if isinstance(other, ImageDataset):
            other = other.split("test", "val", "all", "train")
        tests.append(matched(name, other))
    if shots is not None and skip_bad:
        train, _ = readable_shots(train, shots, seed, allow_fewer=allow_fewer)
    elif shots is not None:
        train = few_shot(train, shots, seed, allow_fewer=allow_fewer)
    check_labelled(train.labels, train.ids, "training")
    if len({*train.labels.tolist()}) < 2:
        raise DataError("training needs pictures of at least 2 classes")
    return RunData(
        train,
        tests,
        None if validation is None else matched("val", validation),
        found.templates if isinstance(found, ImageDataset) else (DEFAULT_TEMPLATE,),
    )


def _opened(data: Data, skip_bad: bool) -> ImageDataset | ImageSplit:
    return open_dataset(data, skip_bad=skip_bad) if isinstance(data, str | Path) else data


def _named(given: Names, names: Sequence[str]) -> tuple[str, ...]:
    """Return the class names that the user wants for the data's."""
    if given is None:
        return tuple(names)
    if isinstance(given, Mapping):
        return tuple(given.get(name, name) for name in names)
    if len(given) != len(names):
        raise DataError(f"{len(given)} class names were given for {len(names)} classes")
    return tuple(given)
