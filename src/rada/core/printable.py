"""Untrusted text made fit to be shown: class names and paths may hold any characters."""

from __future__ import annotations

import re

__all__ = ["clean"]

# What XML and UTF-8 cannot hold (class names come from file names, which may be any bytes), what steers a
# terminal (escape sequences, a carriage return that overwrites its line), and the marks that turn the
# direction of the text around them.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
    "|\r(?!\n)"
)


def clean(text: str) -> str:
    r"""Replace characters that HTML, SVG and terminals cannot show by the replacement character.

    Example:
        >>> clean("a\x00b"), clean("\x1b[31mred")
        ('a\ufffdb', '\ufffd[31mred')
    """
    return _UNPRINTABLE.sub("\ufffd", text)
