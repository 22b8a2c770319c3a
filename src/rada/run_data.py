"""The images of a run: what is learned, what selects, and what tests in and out of distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rada.convert import convert_data
from rada.core.errors import ConfigError, DataError
from rada.core.processes import process_rank
from rada.core.warn import warn
from rada.data import (
    ImageDataset,
    ImageSplit,
    Naming,
    announce,
    few_shot,
    open_dataset,
    readable_shots,
)
from rada.data.bad import warn_of_bad
from rada.data.checks import check_labelled, name_classes, place_labels
from rada.data.prompts import DEFAULT_TEMPLATE, ClassNamesSource, check_class_names
from rada.evaluation.sets import IN_DISTRIBUTION, TestSet, shared_classes
from rada.inputs import TEST_SPLITS, Data, data_name, refuse_features

__all__ = ["PURPOSE", "Data", "RunData", "open_sets"]

PURPOSE = "fine-tuning"
"""What the images are for, in messages."""


@dataclass(frozen=True)
class RunData:
    """The images of a run.

    Attributes:
        train: Images to learn.
        tests: Test sets, the one in distribution first if there is one.
        validation: Images that select the epoch, which are in none of the test sets; or None.
        templates: The data's prompt templates.
        aliases: Class names by what the data calls the classes.
        skipped: `(id, reason)` of each training image that was left out.
    """

    train: ImageSplit
    tests: list[TestSet]
    validation: TestSet | None
    templates: tuple[str, ...]
    aliases: Mapping[str, str]
    skipped: tuple[tuple[str, str], ...] = ()


def open_sets(
    data: Data,
    ood: Mapping[str, Data],
    names: ClassNamesSource | None = None,
    *,
    shots: int | None = None,
    seed: int = 0,
    allow_fewer: bool = False,
    skip_bad: bool = False,
    select: bool = False,
) -> RunData:
    """Open all images of a run; test sets are matched to the training classes by name.

    Args:
        data: As for `FineTuner.fit`.
        ood: Further test sets by name.
        names: Class names or a mapping, as for `open_dataset`; None takes the data's.
        shots: Images of each class to learn; None for all.
        seed: Chooses them.
        allow_fewer: Go on where a class has fewer.
        skip_bad: Go on without images that cannot be read.
        select: Whether the split `val` selects; then it never tests. Else it tests where there is no split
            `test`.

    Raises:
        DataError: If images, labels or classes are missing; the message names them.
        ConfigError: If a test set's name is taken.
    """
    naming = Naming.of(names)
    found, aliases = _opened(data, skip_bad, naming)
    splits = found.splits if isinstance(found, ImageDataset) else {"train": found}
    train = splits.get("train", splits.get("all"))
    if train is None:
        raise DataError(f"{data!r} has no training images; it has {', '.join(splits)}")
    classes = check_class_names(train.classes)
    shifted = _for_other_data(naming)
    missing: list[tuple[str, str]] = []

    def matched(name: str, split: ImageSplit) -> TestSet:
        return shared_classes(name, split, classes)

    validation = splits.get("val") if select else None
    test = splits.get("test", None if select else splits.get("val"))
    tests = [] if test is None else [matched(IN_DISTRIBUTION, test)]
    if test is not None and isinstance(found, ImageDataset):
        missing += found.skipped_of("test" if test is splits.get("test") else "val")
    if test is None:
        warn(
            "the data has no test split"
            + (" beside the one that selects" if validation is not None else "")
            + ", so the accuracy in distribution is not measured",
            UserWarning,
            stacklevel=3,
        )
    for name, spec in ood.items():
        if name in ("mean", IN_DISTRIBUTION):
            raise ConfigError(f"a test set cannot be called {name!r}: the result uses the word")
        other, _ = _opened(spec, skip_bad, shifted, classes)
        if isinstance(other, ImageDataset):
            split = other.split(*TEST_SPLITS)
            missing += other.skipped_of(next(name for name in TEST_SPLITS if name in other.splits))
            other = split
        tests.append(matched(name, other))
    if process_rank() == 0:
        named = data_name(data) or "the data"
        announce(named, "train" if "train" in splits else "all", train)
        for found_set in tests:
            announce(named, found_set.name.replace("_", " "), found_set.split)
        warn_of_bad(missing, "test images", stacklevel=4)
    skipped: tuple[tuple[str, str], ...] = ()
    if isinstance(found, ImageDataset):
        skipped = found.skipped_of("train" if "train" in splits else "all")
    if shots is not None and skip_bad:
        train, bad = readable_shots(train, shots, seed, allow_fewer=allow_fewer)
        skipped += tuple((entry.id, entry.reason) for entry in bad)
    elif shots is not None:
        train = few_shot(train, shots, seed, allow_fewer=allow_fewer)
    check_labelled(train.labels, train.ids, "training")
    if len({*train.labels.tolist()}) < 2:
        raise DataError("training needs images of at least 2 classes")
    return RunData(
        train,
        tests,
        None if validation is None else matched("val", validation),
        found.templates if isinstance(found, ImageDataset) else (DEFAULT_TEMPLATE,),
        aliases,
        skipped,
    )


def _opened(
    data: Data, skip_bad: bool, naming: Naming, known: Sequence[str] | None = None
) -> tuple[ImageDataset | ImageSplit, Mapping[str, str]]:
    """Return images under the names that are wanted, and these names by what the data calls them.

    Integer labels are places in `known` where neither `naming` nor the data has class names.
    """
    refuse_features(data, PURPOSE)
    if isinstance(data, str | Path):
        data = open_dataset(data, class_names=naming, skip_bad=skip_bad)
        return data, data.aliases
    data = convert_data(data, naming.classes or known, skip_bad=skip_bad)
    refuse_features(data, PURPOSE)  # a pair of arrays
    if isinstance(data, ImageDataset):
        data = name_classes(data, naming)
        return data, data.aliases
    if not naming.wanted:
        return data, dict(zip(data.classes, data.classes, strict=True))
    matched = naming.match(data.classes)
    return place_labels(data, matched), matched.aliases


def _for_other_data(naming: Naming) -> Naming:
    """Return the names for a test set that may have other classes than were trained.

    A list has its meaning for numbers only, and not for those that are names in it; `shared_classes`
    matches names.
    """
    names = naming.classes or ()
    places = {str(place): name for place, name in enumerate(names) if str(place) not in names}
    return Naming(aliases=naming.aliases or places, lenient=True)
