"""The names of splits, however people spell them."""

from __future__ import annotations

__all__ = ["SPLITS", "split_name"]

SPLITS = ("train", "val", "test")
_SPELLINGS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_name(text: str) -> str | None:
    """Return "train", "val" or "test" for any usual spelling of it, None for anything else.

    Example:
        >>> split_name("Validation"), split_name("bus")
        ('val', None)
    """
    return _SPELLINGS.get(text.strip().lower())
