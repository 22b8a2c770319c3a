"""The frozen configuration classes: the one source of defaults.

A configuration validates itself on construction, turns into plain JSON with `Config.to_dict` and back
with `Config.from_dict`, and stands whole in every result.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, Self

from rada.core.errors import ConfigError

__all__ = ["Config", "EFTConfig", "parse_value"]


def _matches(value: object, annotation: Any) -> bool:
    """Whether `value` is of the annotated type; integers count as floats, bools never as numbers."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(annotation))
    if origin is Literal:
        return value in typing.get_args(annotation) and not isinstance(value, bool)
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
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            if not _matches(value, hints[field.name]):
                raise ConfigError(
                    f"{type(self).__name__}.{field.name} should be of type {field.type}, "
                    f"but the value passed is {value!r} of type {type(value).__name__}"
                )
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ConfigError(
                    f"{type(self).__name__}.{field.name} should be below 2**63, not {str(value)[:40]}..."
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(
                    f"{type(self).__name__}.{field.name} should be finite, not {value!r}"
                )
        self.validate()

    def validate(self) -> None:
        """Check ranges; subclasses raise `ConfigError` through `require`."""

    def require(self, condition: bool, field: str, expected: str) -> None:
        """Raise a `ConfigError` that names the field, its value and what was expected."""
        if not condition:
            raise ConfigError(
                f"{type(self).__name__}.{field} should be {expected}, "
                f"but the value passed is {getattr(self, field)!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain JSON values.

        Example:
            >>> EFTConfig(epochs=3).to_dict()["epochs"]
            3
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Build a configuration from plain JSON values.

        Raises:
            ConfigError: If `values` is not an object, or a field is unknown, ill-typed or out of
                range; the message names it.
        """
        if not isinstance(values, dict):
            raise ConfigError(
                f"{cls.__name__} should be a JSON object, not {type(values).__name__}"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(map(str, set(values) - known))
        if unknown:
            raise ConfigError(
                f"{cls.__name__} has no field {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(sorted(known))}"
            )
        return cls(**values)


@dataclass(frozen=True)
class EFTConfig(Config):
    """Training of the head with frozen encoders (efficient fine-tuning).

    The paper publishes no hyper-parameters; these defaults are ours, chosen by few-shot validation
    (`benchmarks/eft_defaults.py`).

    Attributes:
        epochs: Passes over the training images.
        min_steps: Least number of steps; few images get more epochs until there are so many.
        batch_size: Images a step.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Part of all steps during which the learning rate rises linearly, in [0, 1); a cosine
            to zero follows.
        alpha: Weight of the smoothness term `mean_b max |M - 1|` (paper, the regulariser).
        num_heads: Attention heads; must divide the width of the features.
        temperature: Temperature of the joint softmax, above 0.
        views: Cached random views of each training picture; 1 means the plain picture alone.
        classes_per_step: Classes drawn for a step (they hold the batch's labels as far as they go; images
            of other classes sit the step out); None for a half of them, at least 2 and at most 64,
            0 for all of them.
        strength: Mask strength at inference in [0, 1], or "auto" to choose it on the training shots
            by cross-validation over classes.
        strength_folds: Folds of that cross-validation, at least 2.
    """

    epochs: int = 10
    min_steps: int = 300
    batch_size: int = 32
    learning_rate: float = 3.5e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    alpha: float = 1.0
    num_heads: int = 8
    temperature: float = 1.0
    views: int = 1
    classes_per_step: int | None = None
    strength: float | Literal["auto"] = "auto"
    strength_folds: int = 3

    def validate(self) -> None:
        """Check that every field is in its range."""
        for name in ("epochs", "batch_size", "num_heads", "views"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        self.require(self.min_steps >= 0, "min_steps", "0 or more")
        self.require(self.learning_rate > 0, "learning_rate", "above 0")
        self.require(self.weight_decay >= 0, "weight_decay", "0 or more")
        self.require(0 <= self.warmup < 1, "warmup", "in [0, 1)")
        self.require(self.alpha >= 0, "alpha", "0 or more")
        self.require(self.temperature > 0, "temperature", "above 0")
        self.require(
            self.classes_per_step is None
            or self.classes_per_step == 0
            or self.classes_per_step > 1,
            "classes_per_step",
            "None, 0 or at least 2",
        )
        self.require(
            self.strength == "auto" or 0 <= float(self.strength) <= 1,
            "strength",
            "'auto' or in [0, 1]",
        )
        self.require(self.strength_folds >= 2, "strength_folds", "at least 2")
