"""When two class names are the same, and which labels are none."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["fold_name", "no_label", "without_invisible"]

# What text copied from pages holds; joiners, which some scripts need, are not among them.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
# What pandas, NumPy and spreadsheets write for a value that is missing.
_MISSING = frozenset("nan NaN NAN NA N/A n/a <NA> #N/A NULL null Null None -nan NaT".split())
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][+-]?\d+)")


def without_invisible(text: str) -> str:
    """Return a text without characters of no width that mean nothing."""
    return _INVISIBLE.sub("", text)


def no_label(text: str) -> str:
    """Say why a text is no label; "" if it can be one.

    Example:
        >>> no_label("1.0"), no_label("cat")
        ('is a decimal number, but labels are whole numbers (in pandas: astype(int)) or names', '')
    """
    if _DECIMAL.fullmatch(text):
        return "is a decimal number, but labels are whole numbers (in pandas: astype(int)) or names"
    if text in _MISSING:
        return (
            "is what programs write for a missing value: fill it or leave the row out; if a class is "
            "called so, write it in another way"
        )
    return ""


def fold_name(name: str) -> str:
    r"""Return a name without case, underscores, hyphens, doubled spaces and invisible characters.

    Example:
        >>> fold_name("Golden_Retriever"), fold_name("cat\u200b")
        ('golden retriever', 'cat')
    """
    text = unicodedata.normalize("NFC", name)  # file systems spell accented letters in two ways
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    return re.sub(r"[\s_\-]+", " ", text).strip().casefold()
