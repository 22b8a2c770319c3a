"""What every kind of data set goes through: files that exist, class names, classes of the splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rada.core.errors import DataError
from rada.core.warn import warn
from rada.data.dataset import ImageDataset, ImageSplit, Skipped
from rada.data.naming import Matched, Naming, some_names
from rada.data.prompts import ClassNamesSource, check_class_names
from rada.data.wordnet import warn_of_codes

__all__ = ["check_labelled", "check_splits", "name_classes", "place_labels", "without_missing"]


def check_labelled(labels: ArrayLike, ids: Sequence[str], purpose: str) -> None:
    """Check that every image has a label.

    A label of -1 used as an index would silently be the last class.

    Args:
        labels: `(N,)` integers, -1 for "no label".
        ids: N keys.
        purpose: What needs the labels, for the message.

    Raises:
        DataError: If an image has none; the message counts them and names the first.
    """
    missing = np.flatnonzero(np.asarray(labels) < 0)
    if len(missing):
        raise DataError(
            f"{purpose} needs a label for every image, but {len(missing)} of {len(ids)} images have "
            f"none (the first: {ids[int(missing[0])]!r}): label them, leave them out, or name "
            "another split"
        )


def without_missing(dataset: ImageDataset, *, skip: bool) -> ImageDataset:
    """Check that the files of a data set exist; leave those out that do not, if that is wanted.

    Raises:
        DataError: If files are missing and `skip` is off, or a class has none left.
    """
    splits: dict[str, ImageSplit] = {}
    skipped: list[Skipped] = []
    for name, split in dataset.splits.items():
        missing = split.source.missing()
        for index in missing:
            skipped.append(Skipped(name, split.ids[index], _why_missing(split, index)))
        kept = np.setdiff1d(np.arange(len(split)), missing)
        splits[name] = split.subset(kept) if missing else split
    if not skipped:
        return dataset
    if not skip:
        shown = "; ".join(entry.reason for entry in skipped[:5])
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        raise DataError(
            f"{len(skipped)} of the images of {dataset.name!r} are missing or cannot be used: "
            f"{shown}{more} "
            "(--skip-bad goes on without them)"
        )
    left = sum(split.counts() for split in splits.values())
    had = sum(split.counts() for split in dataset.splits.values())
    emptied = np.flatnonzero((left == 0) & (had > 0)).tolist()
    if emptied:
        raise DataError(
            f"the class {dataset.classes[emptied[0]]!r} of {dataset.name!r} has no image left: "
            f"{skipped[0].reason}"
        )
    return dataclasses.replace(dataset, splits=splits, skipped=tuple(skipped))


def _why_missing(split: ImageSplit, index: int) -> str:
    explain = getattr(split.source, "explain", None)  # sources whose images are no files have one
    return str(explain(index)) if explain else f"{str(split.path(index))!r} does not exist"


def name_classes(
    dataset: ImageDataset, class_names: ClassNamesSource | Naming | None
) -> ImageDataset:
    """Give the classes of a data set the names that are wanted, and check them; see `Naming`.

    Raises:
        DataError: If names do not fit the classes, are blank or doubled, or are needed but not given.
    """
    naming = Naming.of(class_names)
    if not naming.wanted:
        _check_own_names(dataset)
        return dataset
    matched = naming.match(dataset.classes, dataset.keys)
    if dataset.unnamed and set(matched.classes) & set(dataset.classes):  # some are numbers still
        raise DataError(f"{dataset.name!r}: {dataset.unnamed}")
    keys = list(matched.classes)
    for key, place in zip(dataset.keys or dataset.classes, matched.places, strict=True):
        keys[place] = key
    splits = {name: place_labels(split, matched) for name, split in dataset.splits.items()}
    named = dataclasses.replace(
        dataset, classes=matched.classes, splits=splits, keys=tuple(keys), unnamed=""
    )
    groups = getattr(dataset, "groups", ())
    if groups:
        moved = tuple(matched.places[group] for group in groups)
        named = dataclasses.replace(named, groups=moved)  # type: ignore[call-arg]
    return named


def place_labels(split: ImageSplit, matched: Matched) -> ImageSplit:
    """Return the same images with labels that count in the matched class names."""
    lookup = np.array([*matched.places, -1], dtype=np.int64)  # the last stands for -1
    return dataclasses.replace(split, classes=matched.classes, labels=lookup[split.labels])


def _check_own_names(dataset: ImageDataset) -> None:
    """Check the names that the data brings itself, and warn of those that say little."""
    if dataset.unnamed:
        raise DataError(f"{dataset.name!r}: {dataset.unnamed}")
    check_class_names(dataset.keys or dataset.classes)  # as the data spells them, for the message
    checked = check_class_names(dataset.classes)
    warn_of_codes(dataset.name, checked)
    if len(checked) > 1 and all(name.isdecimal() for name in checked):
        warn(
            f"the classes of {dataset.name!r} are called by numbers ({', '.join(checked[:3])}...), "
            "which say little to a text encoder: give class_names (--class-names)",
            UserWarning,
            stacklevel=5,
        )


def check_splits(dataset: ImageDataset, *, min_classes: int, allow_unseen: bool) -> None:
    """Check that there are enough classes and that none is met outside `train` only.

    A class that is missing from `val` or `test` is fine.

    Raises:
        DataError: If not; the message names the class.
    """
    if len(dataset.classes) < min_classes:
        raise DataError(
            f"{dataset.name!r} has {len(dataset.classes)} class ({some_names(dataset.classes)}), but at "
            f"least {min_classes} are needed"
        )
    train = dataset.splits.get("train")
    if train is None or allow_unseen:
        return
    for name, split in dataset.splits.items():
        unseen = np.flatnonzero((split.counts() > 0) & (train.counts() == 0)).tolist()
        if unseen:
            raise DataError(
                f"the class {dataset.classes[unseen[0]]!r} of {dataset.name!r} has images in {name} but "
                f"none in train: add some, or open {name} alone"
            )
