"""Registries of objects with a name, one file of a package each."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from rada.core.errors import ConfigError

__all__ = ["Named", "NamedRegistry"]


class Named(Protocol):
    """Something with a name."""

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
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
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
