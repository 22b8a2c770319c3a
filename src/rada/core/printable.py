"""Untrusted text made fit to be shown: class names and paths may hold any characters."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["clean", "escape", "exact_json", "shortened"]

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


def escape(text: str) -> str:
    r"""Replace the same characters by escapes that tell them apart; bytes that are no Unicode as bytes.

    Example:
        >>> print(escape("\x1b[31mred"), escape("caf\udce9"), escape("a\u202eb"))
        \x1b[31mred caf\xe9 a\u202eb
    """

    def shown(match: re.Match[str]) -> str:
        code = ord(match[0])
        if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a file name that is no Unicode
            code -= 0xDC00
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return _UNPRINTABLE.sub(shown, text)


def exact_json(value: Any, *, indent: int | None = None) -> str:
    r"""Return JSON that any stream of UTF-8 takes and that no terminal obeys, and that is read back exactly.

    Raises:
        ValueError: If `value` holds NaN or an infinity, which JSON does not have.

    Example:
        >>> print(exact_json(["é", "caf\udce9", "\x9b2J"]))
        ["é", "caf\udce9", "\u009b2J"]
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    # Such characters can only stand within strings, where an escape means the same.
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def shortened(value: object, most: int = 80) -> str:
    """Return a value as Python writes it; of a long one its beginning.

    Example:
        >>> shortened("a long name", most=5)
        "'a lo..."
    """
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
