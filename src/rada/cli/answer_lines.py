"""The lines that `rada predict` writes: a table for people and spreadsheets, or JSON for programs."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rada.core.printable import escape, exact_json
from rada.core.terminal import echo

if TYPE_CHECKING:
    from rada.predictions import StreamAnswer

__all__ = ["AnswerLines", "Explained", "cell"]


class Explained(Protocol):
    """An explanation of an image, whatever predicted it."""

    def lines(self) -> list[str]:
        """Return it in words."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""


# What a spreadsheet takes for a formula. A tab or a carriage return before it is skipped by some.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cell(text: str) -> str:
    r"""Return a text that neither a terminal nor a spreadsheet takes for a command.

    Control characters and bytes of names that are no Unicode become escapes such as `\x1b`; a text that
    would begin a formula gets a quote in front of it.

    Example:
        >>> cell("=1+1"), cell("a\x1b[2Jb"), cell("caf\udce9")
        ("'=1+1", 'a\\x1b[2Jb', 'caf\\xe9')
    """
    shown = escape(text)
    return f"'{shown}" if text.startswith(_FORMULA) else shown


class AnswerLines:
    """Writes answers as they come; the heading of the table with the first, or at the end.

    Args:
        stream: Where to.
        columns: Classes to name for each image.
        json: Whether to write JSON lines, which are exact, in place of the table.
    """

    def __init__(self, stream: TextIO, columns: int, *, json: bool) -> None:
        self._stream, self._columns, self._json = stream, columns, json
        self._begun = json
        self.skipped = 0

    def write(self, answer: StreamAnswer, explanation: Explained | None = None) -> None:
        """Write one answer."""
        name, ranked, reason = answer
        if ranked is None:
            self.skipped += 1
            echo(f"skipped: {reason}", err=True)
            return
        if self._json:
            found: dict[str, Any] = {
                "path": name,
                "predictions": [entry._asdict() for entry in ranked],
            }
            if explanation is not None:
                found["explanation"] = explanation.to_dict()
            self._stream.write(exact_json(found) + "\n")
        else:
            self.begin()
            cells = [part for entry in ranked for part in (entry.name, f"{entry.probability:.4f}")]
            self._row([name, *cells])
            if explanation is not None:
                # Beside the table, which stays one for programs.
                echo("\n".join(f"  {line}" for line in explanation.lines()), err=True)
        self._stream.flush()

    def begin(self) -> None:
        """Write the heading, if it is not there yet: an error before the first answer leaves nothing."""
        if self._begun:
            return
        self._begun = True
        names = ["class", "probability"]
        if self._columns > 1:
            names = [f"{name}_{rank}" for rank in range(1, self._columns + 1) for name in names]
        self._row(["path", *names])

    def _row(self, cells: list[str]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(map(cell, cells))
        self._stream.write(line.getvalue())
