"""Warnings of rada: file names in them may hold any bytes, which no stream of UTF-8 takes."""

from __future__ import annotations

import warnings

from rada.core.printable import escape

__all__ = ["warn"]


def warn(message: str, category: type[Warning] = UserWarning, *, stacklevel: int = 2) -> None:
    r"""Warn as `warnings.warn` does, with what cannot be shown escaped.

    Args:
        message: What is wrong, and what to do.
        category: Kind of the warning.
        stacklevel: As for `warnings.warn`, counted from the caller.

    Example:
        >>> with warnings.catch_warnings(record=True) as found:
        ...     warn("caf\udce9 is left out")
        >>> print(found[0].message)
        caf\xe9 is left out
    """
    warnings.warn(escape(message), category, stacklevel=stacklevel + 1)
