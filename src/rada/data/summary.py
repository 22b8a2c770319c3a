"""One line on what was understood of some data, before anything is spent on it."""

from __future__ import annotations

import logging

from rada.core.printable import escape
from rada.data.dataset import ImageSplit

__all__ = ["announce", "summarise"]

_LOGGER = logging.getLogger("rada.data")
_SHOWN = 8


def summarise(name: str, part: str, split: ImageSplit) -> str:
    """Return the number of images, and the classes with theirs.

    Args:
        name: What the data is called.
        part: Name of the split; "all" for data without splits.
        split: Its images.

    Example:
        >>> split = ImageSplit.from_files(".", ["1.jpg", "2.jpg"], labels=[0, 0], classes=["cat", "dog"])
        >>> summarise("pets", "train", split)
        'pets, train: 2 images, 2 classes (cat 2, dog 0)'
    """
    counts = split.counts().tolist()
    shown = [f"{key} {count}" for key, count in zip(split.classes, counts, strict=True)][:_SHOWN]
    if len(counts) > _SHOWN:
        shown.append(f"and {len(counts) - _SHOWN} more")
    where = "no splits" if part == "all" else part
    unlabelled = len(split) - sum(counts)
    left = f", {unlabelled:,} without a label" if unlabelled else ""
    return escape(
        f"{name}, {where}: {len(split):,} images{left}, {len(counts):,} classes ({', '.join(shown)})"
    )


def announce(name: str, part: str, split: ImageSplit) -> None:
    """Log what was understood; the command line shows it on standard error."""
    _LOGGER.info("%s", summarise(name, part, split))
