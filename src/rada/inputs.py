"""From what a user hands over to labelled images or features under the class names that are wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rada.convert import convert_data
from rada.core.printable import escape
from rada.data import ImageDataset, ImageSplit, Naming, announce, fold_name, open_dataset
from rada.data.checks import name_classes, place_labels
from rada.data.naming import Matched
from rada.data.registry import check_spec
from rada.evaluation.sharing import shown_name
from rada.features import Features

__all__ = [
    "FEATURE_FILES",
    "TEST_SPLITS",
    "TRAIN_SPLITS",
    "Data",
    "Opened",
    "check_named",
    "data_name",
    "open_labelled",
]

Data = Any
"""A path or the name of a data set, or what `rada.convert.ACCEPTED` says."""
FEATURE_FILES = (".safetensors", ".npz")
TRAIN_SPLITS = ("train", "all")
TEST_SPLITS = ("test", "val", "all", "train")


class Opened(NamedTuple):
    """Opened data.

    Attributes:
        found: Images or features; their labels count in the names that are wanted.
        aliases: Class names by what the data calls the classes.
        templates: Prompt templates of the data, or None where it has none.
    """

    found: ImageSplit | Features
    aliases: dict[str, str]
    templates: tuple[str, ...] | None


def open_labelled(
    data: Data,
    splits: Sequence[str],
    naming: Naming,
    *,
    skip_bad: bool,
    embed: bool = False,
    known: Sequence[str] | None = None,
) -> Opened:
    """Open the first of `splits` that the data has.

    Args:
        data: A path, the name of a data set, a features file, any of these opened, or data of another
            library (`rada.convert.ACCEPTED`).
        splits: Names of splits.
        naming: The class names that are wanted.
        skip_bad: Leave out images whose file is missing.
        embed: Whether class features of a features file are dropped where the names are others than
            the file's, since they are to be computed anew.
        known: Class names that integer labels are places in where neither `naming` nor the data has any.

    Raises:
        DataError: If the data cannot be used or the names do not fit it.
        FeatureError: If features cannot be used.
    """
    if isinstance(data, str | Path) and str(data).lower().endswith(FEATURE_FILES):
        data = Features.load(data)
    if isinstance(data, str | Path):
        data = open_dataset(data, class_names=naming, skip_bad=skip_bad)
    else:
        data = convert_data(data, naming.classes or known, skip_bad=skip_bad)
        if isinstance(data, ImageDataset):
            data = name_classes(data, naming)
    if isinstance(data, ImageDataset):
        aliases = dict(zip(data.keys or data.classes, data.classes, strict=True))
        found = data.split(*splits)
        announce(data.name, next(name for name in splits if name in data.splits), found)
        return Opened(found, aliases, data.templates)
    templates = (data.templates or None) if isinstance(data, Features) else None
    if not naming.wanted:
        return Opened(data, dict(zip(data.classes, data.classes, strict=True)), templates)
    matched = naming.match(data.classes)
    if isinstance(data, Features):
        return Opened(_place_features(data, matched, embed), matched.aliases, templates)
    return Opened(place_labels(data, matched), matched.aliases, templates)


def check_named(data: str) -> None:
    """Check that there may be data of a name, without opening it: before a model is loaded for it.

    Raises:
        DataError: If there certainly is none.
        FeatureError: If it is a features file that does not exist.
    """
    if not data.lower().endswith(FEATURE_FILES):
        check_spec(data)
    elif not Path(data).is_file():
        Features.load(data)  # says what is wrong


def data_name(data: Data) -> str | None:
    """Return what to call data in the record of a run, None where it has no name.

    The folders above it are left out: a record is handed on with the model. Bytes of a name that are no
    Unicode are shown with escapes, which every JSON file can hold.
    """
    name = data if isinstance(data, str | Path) else getattr(data, "name", None)
    return escape(shown_name(str(name))) if isinstance(name, str | Path) else None


def _place_features(features: Features, matched: Matched, embed: bool) -> Features:
    """Return the same features with labels, and rows of class features, in the order of the names."""
    lookup = torch.tensor([*matched.places, -1])  # the last stands for -1
    text = features.text_features
    others = [
        name
        for name, place in zip(features.classes, matched.places, strict=True)
        if fold_name(name) != fold_name(matched.classes[place])
    ]
    if len(matched.places) != len(matched.classes) or (embed and others):
        text = None  # class features of other names, or of some of the candidates only
    elif text is not None:
        text = torch.empty_like(text).index_copy(0, lookup[:-1], text)
    return dataclasses.replace(
        features, labels=lookup[features.labels], classes=matched.classes, text_features=text
    )
