"""Names for classes that are called by codes: WordNet ids, and words written together."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence

from rada.core.extras import needed_for
from rada.core.warn import warn
from rada.data.align import fold_name

__all__ = [
    "IMAGENET",
    "SECOND_NAMES",
    "imagenet_classes",
    "imagenet_names",
    "imagenet_synsets",
    "warn_of_codes",
    "wordnet_names",
]

IMAGENET = "imagenet"
"""What `--class-names` takes for the names of WordNet ids."""

SECOND_NAMES = {744: "projectile", 836: "sunglass"}
"""Names by label where the published list repeats another class's; they are those of torchvision's list."""

_WORDNET_ID = re.compile(r"n\d{8}")
# Parts of three letters at least: McLaren and iPhone are words.
_JOINED = re.compile(r"(?:[A-Z]?[a-z]{2,})(?:[A-Z][a-z]{2,})+")


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """Return the 1000 class names in the usual order.

    Example:
        >>> len(set(imagenet_classes())), imagenet_classes()[0]
        (1000, 'tench')
    """
    with needed_for("naming ImageNet's classes"):
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return tuple(SECOND_NAMES.get(k, name) for k, name in enumerate(IMAGENET_CLASSNAMES))


@functools.cache
def imagenet_synsets() -> tuple[str, ...]:
    """Return the WordNet id of each class."""
    with needed_for("naming ImageNet's classes"):
        from timm import data

    return tuple(data.ImageNetInfo().label_names())  # type: ignore[attr-defined,no-untyped-call]


@functools.cache
def imagenet_names() -> dict[str, str]:
    """Return the names of ImageNet's 1000 classes by WordNet id, those that OpenAI published for CLIP.

    Example:
        >>> imagenet_names()["n01855672"]
        'goose'
    """
    return dict(zip(imagenet_synsets(), imagenet_classes(), strict=True))


@functools.cache
def wordnet_names() -> dict[str, str]:
    """Return names of the 21,841 WordNet ids of the whole of ImageNet, all different.

    Those of the 1000 classes are CLIP's; of the others it is the first synonym that is not taken, and
    an id without one is left out.
    """
    with needed_for("naming ImageNet's classes"):
        from timm.data import ImageNetInfo  # type: ignore[attr-defined]

    names = dict(imagenet_names())
    taken = {fold_name(name) for name in names.values()}
    whole = ImageNetInfo(subset="imagenet-22k")
    for key in whole.label_names():  # type: ignore[no-untyped-call]
        described = whole.label_name_to_description(key)
        for name in (*described.split(", "), described):
            if key not in names and fold_name(name) not in taken:
                names[key] = name
                taken.add(fold_name(name))
    return names


def warn_of_codes(data: str, classes: Sequence[str]) -> None:
    """Warn of class names that would stand in prompts as codes, and offer names.

    Args:
        data: What the data is called.
        classes: Its class names.
    """
    codes = [name for name in classes if _WORDNET_ID.fullmatch(name)]
    joined = [name for name in classes if _JOINED.fullmatch(name)]
    if codes:
        named = {key: wordnet_names()[key] for key in codes[:3] if key in wordnet_names()}
        known = ", ".join(f"{key} is {name!r}" for key, name in named.items()) or "not of ImageNet"
        _warn(
            f"{len(codes)} classes of {data!r} are called by WordNet ids, which say little to a text "
            f"encoder ({known}): --class-names {IMAGENET} (class_names={IMAGENET!r}) gives them names"
        )
    if joined:
        apart = {name: re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() for name in joined}
        _warn(
            f"{len(joined)} classes of {data!r} have words written together ({', '.join(joined[:3])}), and "
            f"so they stand in prompts; to write them apart, give --class-names "
            f"'{json.dumps(apart, ensure_ascii=False)}'"
        )


def _warn(message: str) -> None:
    warn(message, UserWarning, stacklevel=6)
