"""Options that several commands share, alone and in groups."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from rada.core.config import Config, parse_value
from rada.core.errors import ConfigError
from rada.core.printable import exact_json

C = TypeVar("C", bound=Config)

__all__ = [
    "Encoding",
    "Extracting",
    "Names",
    "Reading",
    "TakesSettings",
    "TestTime",
    "Training",
    "configured",
    "grouped",
    "named_data",
    "print_json",
]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
JsonLinesFlag = Annotated[
    bool,
    typer.Option("--json", help="Print JSON lines, one object for each image, for programs."),
]
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
OutOfDistribution = Annotated[
    list[str] | None,
    typer.Option(
        "--ood",
        metavar="NAME=DATA",
        help="Further labelled images, out of distribution; repeat.",
    ),
]


@dataclass(frozen=True)
class Encoding:
    """Where images are encoded, and whether their features are kept."""

    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither read nor write the cache.")
    ] = False
    device: Annotated[
        str | None, typer.Option(help="Where the encoder runs, such as cuda or mps.")
    ] = None

    def options(self) -> dict[str, Any]:
        """Return them as the library's arguments."""
        return {"cache": False if self.no_cache else None, "device": self.device}


@dataclass(frozen=True)
class Reading(Encoding):
    """How images are read and encoded."""

    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without images that cannot be read.")
    ] = False
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode images.")] = None

    def options(self) -> dict[str, Any]:
        """Return them as the library's arguments."""
        return super().options() | {"workers": self.workers, "skip_bad": self.skip_bad}


@dataclass(frozen=True)
class Extracting(Reading):
    """How features are made of images, where nothing else is wanted of them."""

    dtype: Annotated[
        str | None,
        typer.Option(
            help="Type that the encoder computes in: float32, bfloat16, float16, float64, or auto for "
            "bfloat16 where it is faster. A model keeps the type that it was fitted with."
        ),
    ] = None
    exact_decoding: Annotated[
        bool,
        typer.Option(
            "--exact-decoding",
            help="Decode photos of 8 megapixels and more whole, which takes several times as long.",
        ),
    ] = False

    def options(self) -> dict[str, Any]:
        """Return them as the library's arguments."""
        return super().options() | {"dtype": self.dtype, "exact_decoding": self.exact_decoding}


@dataclass(frozen=True)
class Training:
    """What a method learns from, with what configuration, and what may be replaced."""

    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="A field of the method's configuration; repeat. `rada methods NAME` lists them.",
        ),
    ] = None
    config: Annotated[
        Path | None, typer.Option(help="JSON file with fields of the method's configuration.")
    ] = None
    shots: Annotated[int | None, typer.Option(min=1, help="Images of each class.")] = None
    seed: Annotated[int, typer.Option(help="Chooses the shots and everything random.")] = 0
    allow_fewer: Annotated[
        bool, typer.Option("--allow-fewer", help="Go on where a class has too few images.")
    ] = False
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another model in the folder.")
    ] = False

    def configured(self, kind: type[C]) -> C:
        """Build the method's configuration; as `configured`."""
        return configured(kind, self.config, self.settings)


@dataclass(frozen=True)
class Names:
    """What classes are called, and the prompts that they stand in."""

    class_names: Annotated[
        str | None,
        typer.Option(
            help="JSON, or a file with it: a list of class names, which the data's are matched with by name, "
            "or {folder name: class name}; or a .txt file with one name a line."
        ),
    ] = None
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            "--templates",
            help="Prompt with {} for the class; repeat to average several. `auto` chooses among CLIP's 80 by "
            "likelihood on the labelled images of a fit.",
        ),
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
    groups: dict[str, tuple[Any, list[str]]] = {}
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


class TakesSettings(TyperCommand):
    """A command with `--set`, which says so to whoever gives a field as an option of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Look at the words before they are read."""
        known = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
        for place, word in enumerate(args):
            option, equals, value = word.partition("=")
            if word == "--":
                break
            if word.startswith("--") and option not in known:
                following = args[place + 1 : place + 2]
                _refuse_field(option, value if equals else (following or ["VALUE"])[0])
        return super().parse_args(ctx, args)


def _refuse_field(option: str, value: str) -> None:
    """Raise a `ConfigError` if an option is a field of a method's configuration."""
    from rada.methods import list_methods

    name = option.removeprefix("--").replace("-", "_")
    if any(name == field.name for method in list_methods() for field in fields(method.config)):
        raise ConfigError(
            f"there is no option {option}, but methods have a field {name!r}: use --set {name}={value}"
        )


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
            raise ConfigError(f"--set takes FIELD=VALUE, not {text!r}")
        values[name.strip().replace("-", "_")] = parse_value(value)
    return kind.from_dict(values)


def named_data(texts: list[str] | None) -> dict[str, str]:
    """Read `--ood NAME=DATA`.

    Raises:
        ConfigError: If one has another form, or a name is given twice.

    Example:
        >>> named_data(["sketch=pacs/sketch"])
        {'sketch': 'pacs/sketch'}
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, data = (part.strip() for part in text.partition("="))
        if not (equals and name and data):
            raise ConfigError(f"--ood takes NAME=DATA, not {text!r}")
        if name in found:
            raise ConfigError(f"--ood names {name!r} twice")
        found[name] = data
    return found


def print_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    typer.echo(exact_json(value, indent=2))
