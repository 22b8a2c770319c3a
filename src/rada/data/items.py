"""Data sets whose items are `(image, label)`, as torchvision has them: their labels and names."""

from __future__ import annotations

import contextlib
import operator
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rada.core.errors import DataError
from rada.data.arrays import is_array

__all__ = ["item_labels", "item_names", "pixels_of_item"]

# Where torchvision's classes keep their labels and names, if they do.
_LABELS = ("targets", "_labels", "labels", "_targets", "y")
_PAIRS = ("samples", "_samples", "index")  # (file, label), or (label, file) in INaturalist
_NAMES = ("classes", "categories", "all_categories")


def item_labels(name: str, items: Any) -> NDArray[np.int64]:
    """Return the label of each item, without decoding images where the data set keeps a list.

    Args:
        name: What to call the data set in messages.
        items: A data set of torchvision.

    Raises:
        DataError: If its items are not images of one class each.
    """
    _check_item(name, items)
    kept = _kept_labels(items)
    if kept is None:
        return _as_labels(name, [items[index][1] for index in range(len(items))])
    labels = _as_labels(name, kept)
    for index in {0, len(items) - 1} if len(items) else ():
        with contextlib.suppress(Exception):  # a bad image, which is reported when it is loaded
            if _as_labels(name, [items[index][1]])[0] != labels[index]:  # an option chose others
                return _as_labels(name, [items[index][1] for index in range(len(items))])
    return labels


def _check_item(name: str, items: Any) -> None:
    """Check by its first item that a data set is one of images and classes."""
    try:
        first = items[0]
    except Exception:  # an empty set, or a bad image, which is reported when it is loaded
        return
    if (
        not isinstance(first, tuple)
        or len(first) != 2
        or not (isinstance(first[0], Image.Image) or is_array(first[0]))
        or not (first[1] is None or _is_integer(first[1]))
    ):
        kinds = [type(part).__name__ for part in first] if isinstance(first, tuple) else [first]
        shown = ", ".join(map(str, kinds)) if isinstance(first, tuple) else type(first).__name__
        raise DataError(f"{name} does not have one class for each image: its items are ({shown})")


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _kept_labels(items: Any) -> list[Any] | None:
    for attribute in _LABELS:
        values = getattr(items, attribute, None)
        if values is not None and not isinstance(values, str) and len(values) == len(items):
            return list(values.tolist() if hasattr(values, "tolist") else values)
    for attribute in _PAIRS:
        pairs = getattr(items, attribute, None)
        if _are_pairs(pairs, len(items)):
            return [pair[0] if attribute == "index" else pair[1] for pair in pairs]
    return None


def _are_pairs(values: Any, count: int) -> TypeGuard[list[tuple[Any, Any]]]:
    return (
        isinstance(values, list)
        and len(values) == count > 0
        and all(isinstance(pair, tuple) and len(pair) == 2 for pair in values)
    )


def _as_labels(name: str, values: list[Any]) -> NDArray[np.int64]:
    """Return (N,) int64; None is -1, the label of images without one."""
    try:
        labels = [-1 if value is None else operator.index(value) for value in values]
    except TypeError as error:
        raise DataError(f"{name} does not have one class for each image") from error
    return np.array(labels, dtype=np.int64)


def item_names(items: Any) -> tuple[str, ...] | None:
    """Return the class names that a data set knows, in the order of its labels."""
    for attribute in _NAMES:
        names = getattr(items, attribute, None)
        if isinstance(names, list | tuple) and names:
            return tuple(entry if isinstance(entry, str) else str(entry[0]) for entry in names)
    table = getattr(items, "class_to_idx", None)
    return tuple(sorted(table, key=table.__getitem__)) if isinstance(table, dict) else None


def pixels_of_item(value: Any) -> Any:
    """Return what can be opened as an image, of how Hugging Face keeps one that it did not decode."""
    if isinstance(value, dict) and ("bytes" in value or "path" in value):
        return value.get("bytes") or value.get("path")
    return value
