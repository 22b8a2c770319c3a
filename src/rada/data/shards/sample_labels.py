"""The label of a sample in a shard, and what may be wrong with a sample."""

from __future__ import annotations

import json
import re

from rada.data.align import no_label

__all__ = ["FAULTS", "LABEL_SUFFIXES", "LARGEST_LABEL", "MAX_LABEL", "Fault", "read_label"]

MAX_LABEL = 10**6
"""Largest label that is taken for one: there is a class name for each below it."""

LARGEST_LABEL = 1 << 20
"""Most bytes that a file with a label may have."""

LABEL_SUFFIXES = ("cls", "cls.txt", "json", "txt")
"""What the names of files with labels end with, the first that is asked first."""

_LONGEST_NAME = 200
_NUMBER = re.compile(r"[+-]?\d{1,18}")


class Fault:
    """Numbers for what is wrong with a sample; `FAULTS` has the words."""

    NO_IMAGE = 1
    NO_LABEL = 2
    DUPLICATE = 3
    BAD_LABEL = 4
    SEVERAL = 5
    LINK = 6
    RANGE = 7
    UNKNOWN = 8


FAULTS = {
    Fault.NO_IMAGE: "has no image (.jpg, .png, .webp, ...) beside its other files",
    Fault.NO_LABEL: "has no label: add a .cls with its number, a .txt with its class name, or a "
    ".json with 'label'",
    Fault.DUPLICATE: "is there twice, or its files do not follow each other: write each sample once, "
    "its files together",
    Fault.BAD_LABEL: "has a label that cannot be read: a .cls or .txt should hold a number or a class "
    "name of at most 200 characters, a .json an object with 'label'",
    Fault.SEVERAL: "has several images: a key ends at the first dot of the file name, so names of "
    "images should have one dot only",
    Fault.LINK: "is a link or a sparse file, which cannot be read from a shard: write the tar with "
    "--dereference and without --sparse",
    Fault.RANGE: "has a label that is out of range: there is no class name for it",
    Fault.UNKNOWN: "has a label that is not among the class names",
}
"""What each fault says after the name of the sample."""


def read_label(files: dict[str, bytes]) -> tuple[int, str | None, int]:
    """Read the label of a sample.

    Args:
        files: What the sample has under the suffixes of `LABEL_SUFFIXES`.

    Returns:
        The number, or -1; the class name, or None; the fault, 0 if there is none.

    Example:
        >>> read_label({"cls": b"3"}), read_label({"json": b'{"label": 3, "class_name": "cat"}'})
        ((3, None, 0), (3, 'cat', 0))
    """
    number, text, found = -1, None, False
    for suffix in LABEL_SUFFIXES:
        # A .txt beside another label is a caption.
        if suffix not in files or (suffix == "txt" and (number >= 0 or text is not None)):
            continue
        found = True
        for value in _values(suffix, files[suffix]):
            if isinstance(value, int):
                number = value if number < 0 else number
            else:
                text = value if text is None else text
    if number > MAX_LABEL:
        return -1, text, Fault.RANGE
    if number >= 0 or text is not None:
        return number, text, 0
    return -1, None, Fault.BAD_LABEL if found else Fault.NO_LABEL


def _values(suffix: str, content: bytes) -> list[int | str]:
    """Return the numbers and class names in the file of a label; none if it cannot be used."""
    if len(content) > LARGEST_LABEL:
        return []
    try:
        text = content.decode("utf-8-sig")
        record = json.loads(text) if suffix == "json" else None
    except (ValueError, RecursionError):
        return []
    if suffix != "json":
        return [value for value in [_value(text)] if value is not None]
    if not isinstance(record, dict):
        return []
    keys = ("label", "class", "cls", "class_name", "classname", "label_name")
    found = [_value(record.get(key)) for key in keys]
    return [value for value in found if value is not None]


def _value(value: object) -> int | str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < 10**18 else None
    if not isinstance(value, str):
        return None
    text = " ".join(value.split())
    if _NUMBER.fullmatch(text):
        return int(text) if int(text) >= 0 else None
    return text if 0 < len(text) <= _LONGEST_NAME and not no_label(text) else None
