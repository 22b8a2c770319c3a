"""When two class names are the same."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["fold_name"]


def fold_name(name: str) -> str:
    r"""Return a name without case, underscores, hyphens, doubled spaces and invisible characters.

    Example:
        >>> fold_name("Golden_Retriever"), fold_name("cat\u200b")
        ('golden retriever', 'cat')
    """
    text = unicodedata.normalize("NFC", name)  # file systems spell accented letters in two ways
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    return re.sub(r"[\s_\-]+", " ", text).strip().casefold()
