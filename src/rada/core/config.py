"""The frozen configuration classes: the one source of defaults.

A configuration validates itself on construction, turns into plain JSON with `Config.to_dict` and back
with `Config.from_dict`, and stands whole in every result.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, Self

from rada.core.errors import ConfigError
from rada.core.printable import shortened

__all__ = ["Config", "parse_value"]

_WORDS: dict[Any, str] = {
    float: "a finite number",
    int: "an integer",
    bool: "true or false",
    str: "a word",
    dict: "an object",
    type(None): "null",
}


def _matches(value: object, annotation: Any) -> bool:
    """Whether `value` is of the annotated type; integers count as floats, bools never as numbers."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(annotation))
    if origin is Literal:
        return value in typing.get_args(annotation) and not isinstance(value, bool)
    if annotation is Any:
        return True
    if origin is dict:
        _, item = typing.get_args(annotation)
        return isinstance(value, dict) and all(
            isinstance(key, str) and _matches(entry, item) for key, entry in value.items()
        )
    if origin is tuple:
        item = typing.get_args(annotation)[0]
        return isinstance(value, tuple) and all(_matches(entry, item) for entry in value)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is None or annotation is type(None):
        return value is None
    return isinstance(value, annotation)


def _in_words(annotation: Any) -> str:
    """Say what values a type stands for, in the words of the command line."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        return f"a list, each entry {_in_words(parts[0])}"
    return _WORDS.get(origin or annotation) or str(annotation)


def _without_lists(value: Any) -> Any:
    """Return lists, also in lists, as tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(_without_lists, value))
    return value


def _with_defaults(kind: type[Config]) -> set[str]:
    nothing = dataclasses.MISSING
    return {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is not nothing or field.default_factory is not nothing
    }


def parse_value(text: str) -> Any:
    """Read the value of a field from a command line: JSON, or else a word.

    Example:
        >>> parse_value("1e-3"), parse_value("false"), parse_value("best")
        (0.001, False, 'best')
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@dataclass(frozen=True)
class Config:
    """Base of all configurations: typed fields, checked on construction, JSON both ways."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # JSON has no tuples
                value = _without_lists(value)
                object.__setattr__(self, field.name, value)
            name = self.label(field.name)
            if not _matches(value, hints[field.name]):
                wanted = _in_words(hints[field.name])
                raise ConfigError(f"{name} should be {wanted}, not {shortened(value)}")
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ConfigError(f"{name} should be below 2**63, not {str(value)[:40]}...")
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{name} should be a finite number, not {value!r}")
        self.validate()

    def validate(self) -> None:
        """Check ranges; subclasses raise `ConfigError` through `require`."""

    def label(self, field: str) -> str:
        """Return what errors call a field; subclasses may say what its user knows it by."""
        return field

    def require(self, condition: bool, field: str, expected: str) -> None:
        """Raise a `ConfigError` that names the field, its value and what was expected."""
        if not condition:
            raise ConfigError(
                f"{self.label(field)} should be {expected}, "
                f"but the value passed is {getattr(self, field)!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Build a configuration from plain JSON values.

        Raises:
            ConfigError: If `values` is not an object, or a field is unknown, missing, ill-typed or out
                of range; the message names it.
        """
        if not isinstance(values, dict):
            raise ConfigError(
                f"{cls.__name__} should be a JSON object, not {type(values).__name__}"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(map(str, set(values) - known))
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.7)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
            raise ConfigError(f"there is no field {', '.join(map(repr, unknown))}: {hint}")
        missing = sorted(known - values.keys() - _with_defaults(cls))
        if missing:
            raise ConfigError(f"{cls.__name__}: missing field {', '.join(map(repr, missing))}")
        return cls(**values)
