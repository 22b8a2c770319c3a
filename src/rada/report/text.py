"""Words and numbers of a page: untrusted text made harmless, accuracies in one spelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rada.core.printable import clean

__all__ = [
    "ARROW",
    "DASH",
    "MAIN_ROWS",
    "MINUS",
    "count",
    "interval",
    "percent",
    "points",
    "row_name",
    "shorten",
    "signed",
    "spread",
]

DASH, MINUS, ARROW = "\u2013", "\u2212", "\u2192"

MAIN_ROWS = ("rada_probe", "adapted")
"""Keys of the rows that a page is about: the default method."""

ROW_NAMES = {
    "adapted": "RAda",
    "linear_probe": "Linear probe",
    "rada": "RAda",
    "rada_probe": "RAda + probe",
    "test_time": "RAda at test time",
    "zero_shot": "Zero-shot",
}


def shorten(text: str, length: int = 28) -> str:
    """Return one clean line of at most `length` characters; the middle of a longer one is left out.

    Class names often differ at their end alone.

    Example:
        >>> shorten("great spotted woodpecker 12", 14)
        'great spo…r 12'
    """
    line = " ".join(clean(text).split())
    if len(line) <= length:
        return line
    tail = length // 3
    return f"{line[: length - tail - 1]}…{line[-tail:]}"


def row_name(key: str, names: Mapping[str, str] | None = None) -> str:
    """Return the name under which a row or method is shown: that in `names`, or the usual one.

    Example:
        >>> row_name("adapted"), row_name("tip_adapter")
        ('RAda', 'Tip adapter')
    """
    return (
        (names or {}).get(key)
        or ROW_NAMES.get(key)
        or key.replace("_", " ").strip().capitalize()
        or DASH
    )


def percent(value: float | None, *, sign: bool = True) -> str:
    """Spell a fraction as a percentage with one decimal, with its sign if `sign`.

    Example:
        >>> percent(0.6543, sign=False), percent(None)
        ('65.4', '–')
    """
    if value is None:
        return DASH
    return f"{100 * value:.1f}" + ("\u00a0%" if sign else "")


def points(value: float) -> str:
    """Spell a difference of two accuracies in percentage points, with a true minus.

    Example:
        >>> points(-0.0312), points(0.5)
        ('−3.1', '+50.0')
    """
    text = f"{100 * value:+.1f}".replace("-", MINUS)
    return "0.0" if text in ("+0.0", f"{MINUS}0.0") else text


def signed(value: float) -> str:
    """Spell a number with its sign and two decimals, with a true minus.

    Example:
        >>> signed(-0.514), signed(0.001)
        ('−0.51', '0.00')
    """
    return "0.00" if abs(value) < 0.005 else f"{value:+.2f}".replace("-", MINUS)


def interval(bounds: Sequence[float] | None) -> str:
    """Spell a confidence interval of an accuracy in percent.

    Example:
        >>> interval([0.612, 0.694])
        '61.2–69.4'
    """
    if bounds is None:
        return DASH
    return f"{100 * bounds[0]:.1f}{DASH}{100 * bounds[1]:.1f}"


def spread(value: dict[str, Any] | None) -> str:
    """Spell mean and standard deviation over seeds in percent.

    Example:
        >>> spread({"mean": 0.634, "std": 0.021, "runs": 3})
        '63.4 ± 2.1'
    """
    if value is None:
        return DASH
    mean = percent(value["mean"], sign=False)
    return mean if value.get("std") is None else f"{mean} ± {100 * value['std']:.1f}"


def count(number: int, one: str, many: str | None = None) -> str:
    """Spell a count with its noun.

    Example:
        >>> count(1, "image"), count(1200, "class", "classes")
        ('1 image', '1,200 classes')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
