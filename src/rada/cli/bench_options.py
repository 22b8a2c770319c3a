"""Options that the commands of `rada bench` share, as values of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rada.core.terminal import screen

if TYPE_CHECKING:
    from rada.bench.tables import ResultTable

__all__ = [
    "Listed",
    "Seeds",
    "Settings",
    "Shots",
    "listed",
    "numbers",
    "print_table",
    "read_settings",
]

Listed = Annotated[
    list[str] | None, typer.Option(help="Separated by commas, or the option repeated.")
]
Seeds = Annotated[str | None, typer.Option(help="Seeds, separated by commas.")]
Shots = Annotated[str | None, typer.Option(help="Images a class, by commas.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="METHOD.FIELD=VALUE; repeat for several.")
]


def listed(values: list[str] | None) -> tuple[str, ...] | None:
    """Split at commas, but leave a path that has one alone."""
    if not values:
        return None
    found: list[str] = []
    for value in values:
        found += [value] if Path(value).exists() else value.split(",")
    return tuple(entry.strip() for entry in found if entry.strip())


def numbers(name: str, text: str | None) -> tuple[int, ...] | None:
    """Read numbers separated by commas; `name` is the option's."""
    from rada.core.errors import ConfigError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--{name} should be numbers separated by commas, not {text!r}"
        ) from error


def read_settings(texts: list[str] | None) -> dict[str, dict[str, Any]] | None:
    """Read METHOD.FIELD=VALUE, as fields by method."""
    from rada.bench.plan import parse_setting

    if not texts:
        return None
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        label, field, value = parse_setting(text)
        found.setdefault(label, {})[field] = value
    return found


def print_table(found: ResultTable) -> None:
    """Print a table of results."""
    from rada.cli.tables import plain_table

    table = plain_table(found.title, found.columns[0], *found.columns[1:])
    for row in found.rows:
        table.add_row(*row)
    screen().print(table)
