"""The methods of full fine-tuning by name; every module of this package registers its own."""

from __future__ import annotations

from rada.core.registry import NamedRegistry
from rada.methods.finetune.base import FFTMethod

__all__ = ["get_fft_method", "list_fft_methods", "register_fft_method"]

_METHODS: NamedRegistry[FFTMethod] = NamedRegistry(
    "rada.methods.finetune",
    "method of fine-tuning",
    ("linear_probe", "ft", "l2_sp", "lp_ft", "flyp", "rada", "rada_ft"),
)


def register_fft_method(method: FFTMethod) -> FFTMethod:
    """Add a method; return it.

    Raises:
        ValueError: If the name is taken or is no identifier.
    """
    return _METHODS.register(method)


def list_fft_methods() -> list[FFTMethod]:
    """Return every method, in the order of tables.

    Example:
        >>> [method.name for method in list_fft_methods()][-1]
        'rada_ft'
    """
    return _METHODS.all()


def get_fft_method(name: str) -> FFTMethod:
    """Return a method by name; hyphens do for underscores.

    Raises:
        ConfigError: If there is none; the message suggests one.

    Example:
        >>> get_fft_method("rada-ft").title
        'RAda-FT'
    """
    return _METHODS.get(name)
