"""Options that several commands share, alone and in groups."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from rada.core.config import Config, parse_value
from rada.core.errors import ConfigError
from rada.core.printable import exact_json

if TYPE_CHECKING:
    from rada.features import FeatureCache

C = TypeVar("C", bound=Config)

__all__ = ["Names", "Reading", "TestTime", "cache_option", "configured", "grouped", "print_json"]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Model = Annotated[str, typer.Option(help="The dual encoder; `rada models` lists them.")]
ModelFolder = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder of a saved model, or an encoder without one. Leave it out with --model.",
    ),
]
OnlyModel = Annotated[
    str | None, typer.Option("--model", help="Use this encoder as it is; see `rada models`.")
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="Load the model's encoder from this folder or name, such as where it was moved to; it must "
        "be the one that the model was trained with.",
    ),
]
Strength = Annotated[
    float | None, typer.Option(help="Strength in [0, 1] instead of the model's own.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="FIELD=VALUE of the method's configuration; repeat. `rada methods NAME` lists them.",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option(help="JSON file with fields of the method's configuration.")
]


@dataclass(frozen=True)
class Reading:
    """How images are read and encoded."""

    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without images that cannot be read.")
    ] = False
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither read nor write the cache.")
    ] = False
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode images.")] = None
    device: Annotated[
        str | None, typer.Option(help="Where the encoder runs, such as cuda or mps.")
    ] = None

    def options(self) -> dict[str, Any]:
        """Return them as the library's arguments."""
        return {
            "cache": cache_option(self.no_cache),
            "workers": self.workers,
            "skip_bad": self.skip_bad,
            "device": self.device,
        }


@dataclass(frozen=True)
class Names:
    """What classes are called, and the prompts that they stand in."""

    class_names: Annotated[
        str | None,
        typer.Option(
            help="JSON, or a file with it: a list of class names, which the data's are matched with by name, "
            "or {folder name: class name}."
        ),
    ] = None
    template: Annotated[
        list[str] | None,
        typer.Option(help="Prompt with {} for the class; repeat to average several."),
    ] = None


@dataclass(frozen=True)
class TestTime:
    """Predicting each image from views of it."""

    __test__ = False  # pytest: this is no test

    test_time: Annotated[
        str | None,
        typer.Option(
            "--test-time",
            metavar="NAME",
            help="Predict each image from random views of it; `rada methods` lists the ways.",
        ),
    ] = None
    views: Annotated[
        int | None, typer.Option(min=1, help="Views of each image, with --test-time.")
    ] = None
    online: Annotated[
        bool, typer.Option("--online", help="With --test-time rada: go on from image to image.")
    ] = False
    test_time_config: Annotated[
        Path | None, typer.Option(help="JSON file with fields of the test-time configuration.")
    ] = None
    test_time_set: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=VALUE of the test-time configuration; repeat."),
    ] = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: parameters whose type is a dataclass of options.

    Typer sees each field of a group as an option of its own.
    """
    signature = inspect.signature(command, eval_str=True)
    flat: list[inspect.Parameter] = []
    groups: dict[str, tuple[type[Any], list[str]]] = {}
    for name, parameter in signature.parameters.items():
        kind = parameter.annotation
        if not is_dataclass(kind):
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = typing.get_type_hints(kind, include_extras=True)
        found: list[Field[Any]] = list(fields(kind))
        groups[name] = (kind, [entry.name for entry in found])
        flat += [
            inspect.Parameter(
                entry.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if entry.default is MISSING else entry.default,
                annotation=hints[entry.name],
            )
            for entry in found
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, (kind, names) in groups.items():
            given[name] = kind(**{key: given.pop(key) for key in names})
        command(**given)

    run.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run


def configured(kind: type[C], path: Path | None, settings: list[str] | None) -> C:
    """Build a configuration: the file's fields, then `FIELD=VALUE` over them.

    Raises:
        ConfigError: If the file cannot be read, or a field is unknown, ill-typed or out of range.
    """
    from rada.core.storage import read_json

    values: Any = {}
    if path is not None:
        values = read_json(path, error=ConfigError, what="the configuration")
        if not isinstance(values, dict):
            raise ConfigError(f"{str(path)!r} should hold a JSON object")
    for text in settings or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set reads FIELD=VALUE, not {text!r}")
        values[name.strip().replace("-", "_")] = parse_value(value)
    return kind.from_dict(values)


def cache_option(no_cache: bool) -> FeatureCache | Literal[False] | None:
    """Return the `cache` argument of the library for the `--no-cache` flag."""
    return False if no_cache else None


def print_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    typer.echo(exact_json(value, indent=2))
