"""The methods of full fine-tuning by name; every module of this package registers its own."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping

from rada.errors import ConfigError
from rada.settings.fft.methods.base import FFTMethod

__all__ = ["get_fft_method", "list_fft_methods", "register_fft_method"]

_METHODS: dict[str, FFTMethod] = {}
_ORDER = ("linear_probe", "ft", "l2_sp", "lp_ft", "flyp", "rada", "rada_ft")


def register_fft_method(method: FFTMethod) -> FFTMethod:
    """Add a method; return it.

    Raises:
        ValueError: If the name is taken or is no identifier.
    """
    if not method.name.isidentifier() or method.name in _METHODS:
        raise ValueError(f"the method name {method.name!r} is taken or no identifier")
    _METHODS[method.name] = method
    return method


def _all() -> Mapping[str, FFTMethod]:
    package = importlib.import_module("rada.settings.fft.methods")
    for entry in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{entry.name}")
    return _METHODS


def list_fft_methods() -> list[FFTMethod]:
    """Return every method, in the order of tables.

    Example:
        >>> [method.name for method in list_fft_methods()][-1]
        'rada_ft'
    """
    place = {name: index for index, name in enumerate(_ORDER)}
    return sorted(_all().values(), key=lambda method: (place.get(method.name, 99), method.name))


def get_fft_method(name: str) -> FFTMethod:
    """Return a method by name; hyphens do for underscores.

    Raises:
        ConfigError: If there is none; the message suggests one.

    Example:
        >>> get_fft_method("rada-ft").title
        'RAda-FT'
    """
    known, key = _all(), name.strip().lower().replace("-", "_")
    if key in known:
        return known[key]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"there is no method of fine-tuning {name!r}: {hint or 'there are ' + ', '.join(known)}"
    )
