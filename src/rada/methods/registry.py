"""The methods by name; every module of this package that registers one is found by itself."""

from __future__ import annotations

from rada.core.config import Config
from rada.core.registry import NamedRegistry
from rada.methods.base import Method

__all__ = ["get_method", "list_methods", "method_of", "register_method"]

_ORDER = (
    "zero_shot",
    "zero_shot_ensemble",
    "linear_probe",
    "svm_probe",
    "cross_modal_probe",
    "lp_plus_plus",
    "clap",
    "taskres",
    "gda",
    "prior_probe",
    "clip_adapter",
    "rla",
    "tip_adapter",
    "tip_adapter_f",
    "coop",
    "cocoop",
    "kgcoop",
    "prograd",
    "tcp",
    "dept_coop",
    "dept_cocoop",
    "dept_kgcoop",
    "rada_released",
    "rada",
    "rada_adapter",
    "rada_probe",
    "rada_coop",
    "rada_kgcoop",
    "prolip",
    "clip_lora",
    "maple",
    "promptsrc",
    "mma",
    "mmrl",
    "dept_maple",
    "dept_promptsrc",
    "rada_promptsrc",
    "ft",
    "l2_sp",
    "lp_ft",
    "flyp",
    "rada_ft",
)
_METHODS: NamedRegistry[Method] = NamedRegistry("rada.methods", "method", _ORDER)


def register_method(method: Method) -> Method:
    """Add a method; return it.

    Raises:
        ValueError: If the name is taken or is no identifier.
    """
    return _METHODS.register(method)


def list_methods() -> list[Method]:
    """Return every method, in the order of tables.

    Example:
        >>> list_methods()[0].name
        'zero_shot'
    """
    return _METHODS.all()


def get_method(name: str) -> Method:
    """Return a method by name; hyphens do for underscores.

    Raises:
        ConfigError: If there is none; the message suggests one.

    Example:
        >>> get_method("tip-adapter").title
        'Tip-Adapter'
    """
    return _METHODS.get(name)


def method_of(config: Config) -> Method:
    """Return the method that a configuration belongs to.

    Raises:
        ConfigError: If it belongs to none, or to several.

    Example:
        >>> from rada.methods.rada import EFTConfig
        >>> method_of(EFTConfig()).name
        'rada'
    """
    return _METHODS.of_config(config)
