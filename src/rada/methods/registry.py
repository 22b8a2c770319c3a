"""The methods by name; every module of this package that registers one is found by itself."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping

from rada.errors import ConfigError
from rada.methods.base import Method

__all__ = ["get_method", "list_methods", "register_method"]

_METHODS: dict[str, Method] = {}
_ORDER = (
    "zero_shot",
    "zero_shot_ensemble",
    "linear_probe",
    "cross_modal_probe",
    "clip_adapter",
    "tip_adapter",
    "tip_adapter_f",
    "coop",
    "rada_released",
    "rada",
    "rada_adapter",
    "ft",
    "l2_sp",
    "lp_ft",
    "flyp",
    "rada_ft",
)


def register_method(method: Method) -> Method:
    """Add a method; return it.

    Raises:
        ValueError: If the name is taken or is no identifier.
    """
    if not method.name.isidentifier() or method.name in _METHODS:
        raise ValueError(f"the method name {method.name!r} is taken or no identifier")
    _METHODS[method.name] = method
    return method


def _all() -> Mapping[str, Method]:
    package = importlib.import_module("rada.methods")
    for entry in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"rada.methods.{entry.name}")
    return _METHODS


def list_methods() -> list[Method]:
    """Return every method, in the order of tables.

    Example:
        >>> list_methods()[0].name
        'zero_shot'
    """
    place = {name: index for index, name in enumerate(_ORDER)}
    return sorted(_all().values(), key=lambda method: (place.get(method.name, 99), method.name))


def get_method(name: str) -> Method:
    """Return a method by name; hyphens do for underscores.

    Raises:
        ConfigError: If there is none; the message suggests one.

    Example:
        >>> get_method("tip-adapter").title
        'Tip-Adapter'
    """
    known, key = _all(), name.strip().lower().replace("-", "_")
    if key in known:
        return known[key]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"there is no method {name!r}: {hint or 'there are ' + ', '.join(known)}")
