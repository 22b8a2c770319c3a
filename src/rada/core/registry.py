"""Registries of objects with a name, one file of a package (or of a package in it) each."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from rada.core.errors import ConfigError

__all__ = ["Named", "NamedRegistry", "import_modules"]


@cache
def import_modules(package: str) -> None:
    """Import all modules of a package, and of the packages in it, that do not begin with `_`, once.

    What they define registers itself as they are imported.
    """
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, f"{package}."):
        if not module.name.rpartition(".")[2].startswith("_"):
            importlib.import_module(module.name)


class Named(Protocol):
    """Something with a name and a configuration class."""

    config: ClassVar[type[Any]]

    @property
    def name(self) -> str:
        """How to ask for it."""


Entry = TypeVar("Entry", bound=Named)


class NamedRegistry(Generic[Entry]):
    """The objects that the modules of a package register.

    Args:
        package: The package; its modules are imported when the registry is first asked.
        what: What an object is, for messages.
        order: Names in the order of tables; others follow by the alphabet.

    Attributes:
        entries: What is registered so far, by name.
    """

    def __init__(self, package: str, what: str, order: Sequence[str]) -> None:
        self.package, self.what = package, what
        self._place = {name: index for index, name in enumerate(order)}
        self.entries: dict[str, Entry] = {}

    def register(self, entry: Entry) -> Entry:
        """Add an object; return it.

        Raises:
            ValueError: If the name is taken or is no identifier.
        """
        if not entry.name.isidentifier() or entry.name in self.entries:
            raise ValueError(f"the name {entry.name!r} of {self.what} is taken or no identifier")
        self.entries[entry.name] = entry
        return entry

    def all(self) -> list[Entry]:
        """Return every object, in the order of tables."""
        import_modules(self.package)
        last = len(self._place)
        return sorted(self.entries.values(), key=lambda e: (self._place.get(e.name, last), e.name))

    def get(self, name: str) -> Entry:
        """Return an object by name; hyphens do for underscores.

        Raises:
            ConfigError: If there is none; the message suggests one.
        """
        known = {entry.name: entry for entry in self.all()}
        key = name.strip().lower().replace("-", "_")
        if key in known:
            return known[key]
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"there is no {self.what} {name!r}: {hint}")

    def of_config(self, config: object) -> Entry:
        """Return the object that a configuration belongs to.

        Raises:
            ConfigError: If it belongs to none, or to several.
        """
        found = [entry for entry in self.all() if entry.config is type(config)]
        if len(found) != 1:
            names = ", ".join(entry.name for entry in found) or f"no {self.what}"
            raise ConfigError(
                f"{type(config).__name__} belongs to {names}: name the method, and give the "
                "configuration as config="
            )
        return found[0]
