"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rada.core.errors import ConfigError
from rada.core.printable import exact_json

if TYPE_CHECKING:
    from rada.features import FeatureCache

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Model = Annotated[str, typer.Option(help="The dual encoder; `rada models` lists them.")]
Device = Annotated[str | None, typer.Option(help="Where the encoder runs, such as cuda or mps.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that decode pictures.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Go on without pictures that cannot be read.")
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        help="JSON, or a file with it: a list of class names, which the data's are matched with by name, "
        "or {folder name: class name}."
    ),
]
Templates = Annotated[
    list[str] | None,
    typer.Option("--template", help="Prompt with {} for the class; repeat to average several."),
]
HeadOrModel = Annotated[
    str,
    typer.Argument(
        metavar="HEAD_OR_MODEL",
        help="Folder of a saved head, or a model without one. Leave it out with --model.",
    ),
]
OnlyModel = Annotated[
    str | None, typer.Option("--model", help="Use this model, without a head; see `rada models`.")
]
Encoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="Load the head's encoder from this folder or name, such as where it was moved to; it must "
        "be the one that the head was trained with.",
    ),
]
TestTime = Annotated[
    bool, typer.Option("--test-time", help="Adapt to each picture from random views of it.")
]
TestTimeViews = Annotated[
    int | None, typer.Option("--views", min=1, help="Views of each picture, with --test-time.")
]
TestTimeOnline = Annotated[
    bool, typer.Option("--online", help="With --test-time: go on from picture to picture.")
]
TestTimeConfig = Annotated[
    Path | None,
    typer.Option("--test-time-config", help="JSON file with fields of TTTConfig."),
]


def cache_option(no_cache: bool) -> FeatureCache | Literal[False] | None:
    """Return the `cache` argument of the library for the `--no-cache` flag."""
    return False if no_cache else None


def parse_strength(text: str) -> float | str:
    """Read `--strength`: a number or "auto".

    Raises:
        ConfigError: If it is neither.
    """
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(
            f"--strength should be a number in [0, 1] or auto, not {text!r}"
        ) from error


def print_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    typer.echo(exact_json(value, indent=2))
