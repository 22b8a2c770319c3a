"""Numbers that a user hands over: one rule for each, wherever it enters."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

from rada.core.errors import ConfigError, RadaError
from rada.core.warn import warn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "DEFAULT_METHOD",
    "LARGEST_SCALE",
    "LARGEST_SEED",
    "check_count",
    "check_indices",
    "check_scale",
    "check_seed",
]

DEFAULT_METHOD = "rada_probe"
"""How `Classifier` and `rada fit` adapt where no method is named."""

LARGEST_SEED = 2**32 - 1
"""The largest seed of NumPy's generators; times the step numbers it stays within torch's 64 bits."""
LARGEST_SCALE = 1e6
"""Models have scales near 100; far above this, float32 logits overflow and say nothing."""

_LOGARITHMS = (2.0, 5.0)
"""Between the logarithms of 7.4 and 148; the scales of trained models are near 100."""


def check_seed(seed: Any, name: str = "seed") -> int:
    """Return a seed.

    Raises:
        ConfigError: If it is no integer from 0 to `LARGEST_SEED`.

    Example:
        >>> check_seed(7)
        7
        >>> check_seed(-1)
        Traceback (most recent call last):
        ...
        rada.core.errors.ConfigError: seed should be an integer from 0 to 4294967295, not -1
    """
    number = _integer(seed)
    if number is None or not 0 <= number <= LARGEST_SEED:
        raise ConfigError(
            f"{name} should be an integer from 0 to {LARGEST_SEED}, not {_shown(seed)}"
        )
    return number


def check_count(value: Any, name: str, *, error: type[RadaError] = ConfigError) -> int:
    """Return a number of things, 1 or more; True is none.

    Raises:
        RadaError: Of type `error`, if it is no positive integer.

    Example:
        >>> check_count(16, "shots")
        16
    """
    number = _integer(value)
    if number is None or number < 1:
        raise error(f"{name} should be a positive integer, not {_shown(value)}")
    return number


def check_indices(indices: Any, count: int, *, error: type[RadaError]) -> NDArray[np.int64]:
    """Return the numbers of rows that are meant, `(n,)`; whether they are in range is not asked.

    Args:
        indices: Integers, or as many booleans as there are rows, which say what to keep.
        count: How many rows there are.
        error: Of which type to raise an error.

    Raises:
        RadaError: If a mask has another length, or they are no integers.

    Example:
        >>> check_indices([False, True, True], 3, error=RadaError).tolist()
        [1, 2]
    """
    import numpy as np

    values = indices.cpu() if hasattr(indices, "cpu") else indices
    rows = np.asarray(values).reshape(-1)
    if rows.dtype == bool:
        if len(rows) != count:
            raise error(f"a mask of {len(rows)} does not fit {count} images")
        rows = np.flatnonzero(rows)
    if len(rows) and rows.dtype.kind not in "iu":
        raise error(f"rows are numbers or a mask, not of the type {rows.dtype}: {_shown(indices)}")
    return rows.astype(np.int64)


def check_scale(scale: Any, *, error: type[RadaError] = ConfigError) -> float:
    """Return an exponentiated logit scale; warn where it looks like its logarithm.

    The parameter `logit_scale` of a CLIP checkpoint is 4.6052, for a scale of 100. Taken as it is, all
    probabilities come out nearly equal.

    Raises:
        RadaError: Of type `error`, if it is no number above 0 and at most `LARGEST_SCALE`.

    Example:
        >>> check_scale(100)
        100.0
    """
    if not isinstance(scale, bool | str | bytes):
        try:
            number = float(scale)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan
        if 0 < number <= LARGEST_SCALE:
            if _LOGARITHMS[0] < number < _LOGARITHMS[1]:
                warn(
                    f"scale={number:g} looks like a logarithm (the `logit_scale` of a checkpoint), but "
                    f"the exponentiated scale is taken: if it is one, pass scale={math.exp(number):.4g}",
                    stacklevel=1,  # one text, one warning, however many parts look at the number
                )
            return number
    raise error(
        f"scale should be a finite number above 0, at most {LARGEST_SCALE:g}, not {_shown(scale)}: "
        "100 is usual for CLIP models"
    )


def _integer(value: Any) -> int | None:
    """Return an integer of any library, but no bool."""
    if isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b":
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
