"""What every kind of data set goes through: files that exist, class names, classes of the splits."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from rada.data.align import fold_name
from rada.data.dataset import ImageDataset, ImageSplit, Skipped
from rada.data.prompts import check_class_names, load_class_names
from rada.errors import DataError

__all__ = ["check_labelled", "check_splits", "name_classes", "without_missing"]


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
            f"{len(skipped)} of the pictures of {dataset.name!r} are missing or cannot be used: "
            f"{shown}{more} "
            "(--skip-bad goes on without them)"
        )
    left = sum(split.counts() for split in splits.values())
    had = sum(split.counts() for split in dataset.splits.values())
    emptied = np.flatnonzero((left == 0) & (had > 0)).tolist()
    if emptied:
        raise DataError(
            f"the class {dataset.classes[emptied[0]]!r} of {dataset.name!r} has no picture left: "
            f"{skipped[0].reason}"
        )
    return dataclasses.replace(dataset, splits=splits, skipped=tuple(skipped))


def _why_missing(split: ImageSplit, index: int) -> str:
    explain = getattr(split.source, "explain", None)  # sources whose pictures are no files have one
    return str(explain(index)) if explain else f"{str(split.path(index))!r} does not exist"


def name_classes(
    dataset: ImageDataset,
    class_names: str | Path | Sequence[str] | Mapping[str, str] | None,
) -> ImageDataset:
    """Give the classes their display names and check them.

    A mapping may name some of the classes only, or more than there are (all of ImageNet for a part of
    it), but not both at once, which would be a misspelt key. A list is in the order of the
    classes; where these are numbers, in the order of the numbers, gaps included.

    Raises:
        DataError: If names do not fit the classes, are blank or doubled, or are needed but not given.
    """
    if class_names is None:
        if dataset.unnamed:
            raise DataError(f"{dataset.name!r}: {dataset.unnamed}")
        checked = check_class_names(dataset.classes)
        if len(checked) > 1 and all(name.isdecimal() for name in checked):
            warnings.warn(
                f"the classes of {dataset.name!r} are called by numbers ({', '.join(checked[:3])}...), "
                "which say little to a text encoder: give class_names (--class-names)",
                UserWarning,
                stacklevel=4,
            )
        return dataset
    given = load_class_names(class_names)
    if isinstance(given, Mapping):
        return _with_names(dataset, _from_mapping(dataset, given))
    if len(given) != len(dataset.classes) and _are_below(dataset.keys, len(given)):
        numbers = [str(number) for number in range(len(given))]
        splits = {
            name: split.rename(dataset.keys).align(numbers)
            for name, split in dataset.splits.items()
        }
        dataset = dataclasses.replace(dataset, splits=splits, keys=tuple(numbers))
    elif len(given) != len(dataset.classes):
        raise DataError(
            f"{len(given)} names were given for the {len(dataset.classes)} classes of "
            f"{dataset.name!r}: {_some(dataset.keys)}"
        )
    return _with_names(dataset, given)


def _are_below(keys: Sequence[str], limit: int) -> bool:
    """Whether all keys are plain numbers that count in a list of `limit` names."""
    return all(key.isdecimal() and str(int(key)) == key and int(key) < limit for key in keys)


def _from_mapping(dataset: ImageDataset, given: Mapping[str, str]) -> list[str]:
    table: dict[str, str] = {}  # by folded key, for keys that are spelt in another way
    for key, name in given.items():
        if key not in dataset.keys and table.setdefault(fold_name(key), name) != name:
            raise DataError(
                f"two class names are given for {key!r}: {table[fold_name(key)]!r}, {name!r}"
            )
    folded = {fold_name(key) for key in dataset.keys}
    strangers = [key for key in given if fold_name(key) not in folded]
    unnamed = [key for key in dataset.keys if key not in given and fold_name(key) not in table]
    if strangers and unnamed:
        raise DataError(
            f"a class name is given for {strangers[0]!r}, which is none of the classes "
            f"{_some(dataset.keys)}, and none for {unnamed[0]!r}"
        )
    return [
        given[key] if key in given else table.get(fold_name(key), name)
        for key, name in zip(dataset.keys, dataset.classes, strict=True)
    ]


def _with_names(dataset: ImageDataset, names: Sequence[str]) -> ImageDataset:
    classes = check_class_names(names)
    splits = {name: split.rename(classes) for name, split in dataset.splits.items()}
    return dataclasses.replace(dataset, classes=classes, splits=splits)


def check_splits(dataset: ImageDataset, *, min_classes: int, allow_unseen: bool) -> None:
    """Check that there are enough classes and that none is met outside `train` only.

    A class that is missing from `val` or `test` is fine.

    Raises:
        DataError: If not; the message names the class.
    """
    if len(dataset.classes) < min_classes:
        raise DataError(
            f"{dataset.name!r} has {len(dataset.classes)} class ({_some(dataset.classes)}), but at "
            f"least {min_classes} are needed"
        )
    train = dataset.splits.get("train")
    if train is None or allow_unseen:
        return
    for name, split in dataset.splits.items():
        unseen = np.flatnonzero((split.counts() > 0) & (train.counts() == 0)).tolist()
        if unseen:
            raise DataError(
                f"the class {dataset.classes[unseen[0]]!r} of {dataset.name!r} has pictures in {name} but "
                f"none in train: add some, or open {name} alone"
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(repr, names[:10])) + more
