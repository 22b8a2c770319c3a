"""Bringing the class names of a data set and those of a classifier together."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence

from rada.core.errors import DataError

__all__ = ["align_classes", "fold_name"]


def fold_name(name: str) -> str:
    """Return a name without case, underscores, hyphens and doubled spaces.

    Example:
        >>> fold_name("Golden_Retriever")
        'golden retriever'
    """
    text = unicodedata.normalize("NFC", name)  # file systems spell accented letters in two ways
    return re.sub(r"[\s_\-]+", " ", text).strip().casefold()


def align_classes(
    found: Sequence[str], wanted: Sequence[str], aliases: Mapping[str, str] | None = None
) -> list[int]:
    """Return for every class of the data its index among the classes wanted.

    Tried in this order: the aliases (folder name to display name); the same name but for case and
    underscores; a one-to-one match by words ("local" and "local defect"); and, where no name
    resembles any other and the numbers agree, the order, with a warning that shows the pairs.

    Args:
        found: Class names of the data.
        wanted: Class names of the classifier.
        aliases: Display names by class names of the data.

    Returns:
        One index into `wanted` for each entry of `found`, all different.

    Raises:
        DataError: If a class of the data has no counterpart; the message names it.

    Example:
        >>> align_classes(["local", "nominal"], ["nominal fabric", "local defect", "hole"])
        [1, 0]
    """
    position = {fold_name(name): index for index, name in enumerate(wanted)}
    renamed = {fold_name(key): fold_name(value) for key, value in (aliases or {}).items()}
    exact = [
        position.get(renamed.get(fold_name(name), ""), position.get(fold_name(name)))
        for name in found
    ]
    near = [
        _near_by_words(name, wanted) if index is None else [index]
        for name, index in zip(found, exact, strict=True)
    ]
    result = [indices[0] for indices in near if len(indices) == 1]
    if len(result) == len(found) and len(set(result)) == len(found):
        return result
    words = [set(fold_name(name).split()) for name in (*found, *wanted)]
    strangers = not any(one & other for one in words[: len(found)] for other in words[len(found) :])
    if strangers and len(found) == len(wanted):
        pairs = ", ".join(f"{a!r} = {b!r}" for a, b in zip(found, wanted, strict=True))
        warnings.warn(f"classes matched by their order: {pairs}", UserWarning, stacklevel=3)
        return list(range(len(found)))
    lost = [name for name, indices in zip(found, near, strict=True) if len(indices) != 1]
    lost = lost or [name for name, index in zip(found, exact, strict=True) if index is None]
    lost = lost or list(found)
    raise DataError(
        f"the data has the class {lost[0]!r}, which is none of {', '.join(map(repr, wanted))}: "
        "name the classes as in the data, or give a mapping from its names to yours"
    )


def _near_by_words(name: str, wanted: Sequence[str]) -> list[int]:
    """Return the names that hold all words of `name`, or all of whose words it holds."""
    words = set(fold_name(name).split())
    others = [set(fold_name(other).split()) for other in wanted]
    return [index for index, other in enumerate(others) if words <= other or other <= words]
