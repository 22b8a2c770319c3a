"""The one way to a reader's terminal: no text is taken for markup, no text steers the terminal.

Class names, folders, paths and model names are the user's, or those of whoever made the data. Everything
that is printed for people goes through `screen` or `echo`; JSON and CSV for programs do not, since they
must be exact.
"""

from __future__ import annotations

import errno
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from rada.core.printable import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["bold", "echo", "screen"]


def echo(text: object, *, err: bool = False) -> None:
    """Print a plain line.

    Args:
        text: What to print.
        err: On standard error.
    """
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{clean(str(text))}\n")
    stream.flush()


def bold(text: object) -> Text:
    """Return text in bold, for `Console.print` and for the cells of tables."""
    from rich.text import Text

    return Text(clean(str(text)), style="bold")


def screen(*, err: bool = False) -> Console:
    """Return the console of standard output, or of standard error.

    Example:
        >>> screen().print("[red]a class :smile:")
        [red]a class :smile:
    """
    return _console_class()(stderr=err, markup=False, emoji=False, highlight=False)


@cache
def _console_class() -> type[Console]:
    # rich is imported only by what prints: `rada --help` should answer at once.
    from rich.console import Console

    class Screen(Console):
        """A console on which every string is text."""

        def render_str(self, text: str, **options: Any) -> Text:
            # rich turns every string, be it a line, a cell or a title, into text here.
            return super().render_str(clean(text), **options)

        def on_broken_pipe(self) -> None:
            # rich would end the program as failed; `rada.cli.app` knows that nothing has.
            raise BrokenPipeError(errno.EPIPE, "the reader of the output has gone away")

    return Screen
