"""The test-time methods by name; every module of this package that registers one is found by itself."""

from __future__ import annotations

from rada.core.registry import NamedRegistry
from rada.test_time.base import TestTimeMethod
from rada.test_time.config import ViewConfig

__all__ = [
    "get_test_time_method",
    "list_test_time_methods",
    "register_test_time_method",
    "test_time_method_of",
]

_ORDER = ("mean_of_views", "confident_views", "zero", "mta", "tda", "tpt", "prompt_align", "rada")
_METHODS: NamedRegistry[TestTimeMethod] = NamedRegistry(
    "rada.test_time", "test-time method", _ORDER
)


def register_test_time_method(method: TestTimeMethod) -> TestTimeMethod:
    """Add a method; return it.

    Raises:
        ValueError: If the name is taken or is no identifier.
    """
    return _METHODS.register(method)


def list_test_time_methods() -> list[TestTimeMethod]:
    """Return every test-time method, in the order of tables.

    Example:
        >>> [method.name for method in list_test_time_methods()][:2]
        ['mean_of_views', 'confident_views']
    """
    return _METHODS.all()


def get_test_time_method(name: str) -> TestTimeMethod:
    """Return a test-time method by name; hyphens do for underscores.

    Raises:
        ConfigError: If there is none; the message suggests one.
    """
    return _METHODS.get(name)


def test_time_method_of(config: ViewConfig) -> TestTimeMethod:
    """Return the test-time method that a configuration belongs to.

    Raises:
        ConfigError: If it belongs to none, or to several.
    """
    return _METHODS.of_config(config)


test_time_method_of.__test__ = False  # type: ignore[attr-defined]  # pytest: this is no test
