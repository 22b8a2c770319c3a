"""The one meaning of the class names that a user gives for some data.

A mapping goes from names of the data (folder names, labels, WordNet ids) to class names; what it does
not mention keeps its name. A list holds the candidates: a class of the data is the entry of the same
name but for case, underscores, hyphens and Unicode form, and a number is a place in the list, from 0.
Nothing else is guessed: what does not match is an error that shows the mapping to give.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rada.core.errors import DataError
from rada.data.align import fold_name
from rada.data.prompts import ClassNamesSource, check_class_names, load_class_names
from rada.data.wordnet import IMAGENET, wordnet_names

__all__ = ["Matched", "Naming", "align_classes", "some_names"]

_SHOWN = 10


@dataclass(frozen=True)
class Matched:
    """What the classes of some data are called.

    Attributes:
        classes: The candidates.
        places: For each class of the data its place among them, all different.
        aliases: Candidates by what the data calls them.
    """

    classes: tuple[str, ...]
    places: list[int]
    aliases: dict[str, str]


@dataclass(frozen=True)
class Naming:
    """Class names that are wanted for some data.

    Attributes:
        classes: The candidates; None for those of the data.
        aliases: Candidates by names of the data.
        lenient: Whether `aliases` may hold names that the data does not have, and lack others: they come
            from other data.

    Example:
        >>> Naming(("cat", "hot dog")).match(["Hot_Dog", "cat"]).places
        [1, 0]
        >>> Naming(aliases={"n01": "cat"}).match(["n01", "dog"]).classes
        ('cat', 'dog')
    """

    classes: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    lenient: bool = False

    @classmethod
    def of(cls, given: ClassNamesSource | Naming | None) -> Naming:
        """Read what a user gave: a list, a mapping, or a file or JSON text with either.

        Raises:
            DataError: If it cannot be read, or holds blank or doubled names.
        """
        if given is None or isinstance(given, Naming):
            return given or cls()
        if str(given) == IMAGENET and not Path(IMAGENET).exists():
            return cls(aliases=wordnet_names())
        names = load_class_names(given)
        return cls(aliases=names) if isinstance(names, Mapping) else cls(names)

    @property
    def wanted(self) -> bool:
        """Whether any names are given."""
        return self.classes is not None or bool(self.aliases)

    def match(self, found: Sequence[str], keys: Sequence[str] = ()) -> Matched:
        """Return what the classes of some data are called.

        Args:
            found: Their display names.
            keys: What the data calls them, where that is something else.

        Raises:
            DataError: If a class of the data has no counterpart, two have the same, or a mapping holds a
                name that the data does not have; the message names it.
        """
        keys = tuple(keys) or tuple(found)
        if self.classes is not None:
            classes = self.classes
            places = align_classes(found, classes, self.aliases, keys=keys)
        else:
            if not self.lenient:
                _check_mapping(found, keys, self.aliases)
            folded = {fold_name(key): name for key, name in self.aliases.items()}
            classes = check_class_names(
                self.aliases.get(key)
                or folded.get(fold_name(key))
                or folded.get(fold_name(name), name)
                for key, name in zip(keys, found, strict=True)
            )
            places = list(range(len(classes)))
        aliases = {key: classes[place] for key, place in zip(keys, places, strict=True)}
        return Matched(classes, places, aliases)


def align_classes(
    found: Sequence[str],
    wanted: Sequence[str],
    aliases: Mapping[str, str] | None = None,
    *,
    keys: Sequence[str] = (),
) -> list[int]:
    """Return for every class of the data its index among the classes wanted.

    By the aliases (names of the data to names wanted), else by the same name but for case, underscores,
    hyphens and Unicode form; where the data calls all its classes by numbers, these count in the list
    from 0. Nothing is matched by resemblance or by order.

    Args:
        found: Class names of the data.
        wanted: Class names of the classifier.
        aliases: Display names by class names of the data.
        keys: What the data calls its classes, where that is something else.

    Returns:
        One index into `wanted` for each entry of `found`, all different.

    Raises:
        DataError: If a class of the data has no counterpart, or two have the same; the message names it
            and shows the mapping to give.

    Example:
        >>> align_classes(["Local_Defect", "hole"], ["nominal fabric", "local defect", "hole"])
        [1, 2]
    """
    keys = tuple(keys) or tuple(found)
    position = {fold_name(name): index for index, name in enumerate(wanted)}
    renamed = {fold_name(key): fold_name(value) for key, value in (aliases or {}).items()}
    counted = all(map(_is_number, keys)) and all(
        position.get(value) == int(key) for key, value in renamed.items() if _is_number(key)
    )
    places: list[int | None] = []
    for key, name in zip(keys, found, strict=True):
        own = (fold_name(key), fold_name(name))
        spellings = [*(renamed[part] for part in own if part in renamed), *reversed(own)]
        place = next((position[part] for part in spellings if part in position), None)
        if place is None and counted and int(key) < len(wanted):
            place = int(key)
        places.append(place)
    _check_places(found, keys, wanted, places)
    return [place for place in places if place is not None]


def _is_number(key: str) -> bool:
    """Whether a key is a plain number; 007 is a name."""
    return key.isascii() and key.isdecimal() and len(key) < 10 and str(int(key)) == key


def _check_places(
    found: Sequence[str], keys: Sequence[str], wanted: Sequence[str], places: Sequence[int | None]
) -> None:
    lost = [index for index, place in enumerate(places) if place is None]
    if lost and all(map(_is_number, keys)):
        start = dict(zip("123", wanted, strict=False))
        raise DataError(
            f"the data has the label {keys[lost[0]]}, but {len(wanted)} class names were given, so labels "
            f"are 0 to {len(wanted) - 1}: a number is a place in the list, counted from 0. Give the "
            f"missing names, or, where the labels count in another way, a mapping such as "
            f"{json.dumps(start, ensure_ascii=False)}"
        )
    if lost:
        raise DataError(
            f"the data has the class {keys[lost[0]]!r}, which is none of the {len(wanted)} names given "
            f"({some_names(wanted)}): names match up to case, underscores and hyphens only. Name the "
            f"classes as in the data, or give a mapping from its names to yours, such as "
            f"{_suggestion(found, keys, wanted, places)}"
        )
    first: dict[int | None, str] = {}
    for key, place in zip(keys, places, strict=True):
        if place in first and place is not None:
            raise DataError(
                f"two classes of the data, {first[place]!r} and {key!r}, would both be {wanted[place]!r}: "
                "give each its own name"
            )
        first[place] = key


def _suggestion(
    found: Sequence[str], keys: Sequence[str], wanted: Sequence[str], places: Sequence[int | None]
) -> str:
    """Return a mapping as JSON, with what may be meant for the classes that have no counterpart."""
    taken = {wanted[place] for place in places if place is not None}
    free = [name for name in wanted if name not in taken]
    mapping = {}
    for key, name, place in list(zip(keys, found, places, strict=True))[:_SHOWN]:
        mapping[key] = wanted[place] if place is not None else _resembling(name, free) or "..."
    return json.dumps(mapping, ensure_ascii=False)


def _resembling(name: str, others: Sequence[str]) -> str:
    """Return the only name that shares all words with `name`, or one of nearly its letters, or ""."""
    words = set(fold_name(name).split())
    near = [
        other
        for other in others
        if words <= set(fold_name(other).split()) or set(fold_name(other).split()) <= words
    ]
    if len(near) == 1:
        return near[0]
    close = difflib.get_close_matches(name, others, n=1, cutoff=0.7)
    return close[0] if close else ""


def _check_mapping(found: Sequence[str], keys: Sequence[str], given: Mapping[str, str]) -> None:
    """Check that each key is a class, and no class has two names.

    A mapping may name some of the classes only, or more than there are (all of ImageNet for a part of
    it), but not both at once, which would be a misspelt key.
    """
    table: dict[str, str] = {}  # by folded key, for keys that are spelt in another way
    for key, name in given.items():
        if key not in keys and table.setdefault(fold_name(key), name) != name:
            raise DataError(
                f"two class names are given for {key!r}: {table[fold_name(key)]!r}, {name!r}"
            )
    named = {fold_name(key) for key in given}
    own = [(fold_name(key), fold_name(name)) for key, name in zip(keys, found, strict=True)]
    known = {part for pair in own for part in pair}
    unknown = [key for key in given if fold_name(key) not in known]
    unnamed = [key for key, pair in zip(keys, own, strict=True) if not named & set(pair)]
    if unknown and unnamed:
        close = difflib.get_close_matches(unknown[0], unnamed, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise DataError(
            f"a class name is given for {unknown[0]!r}, which is none of the classes "
            f"{some_names(keys)}{hint}, and none for {unnamed[0]!r}"
        )


def some_names(names: Sequence[str]) -> str:
    """Return the first names, quoted, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
