"""From what samples of shards say (numbers, class names) to labels and classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rada.core.errors import DataError
from rada.core.storage import read_json, read_lines
from rada.data.align import fold_name
from rada.data.prompts import check_class_names, display_name
from rada.data.scan import natural_key
from rada.data.shards.index import Shard, ShardSource
from rada.data.shards.sample_labels import Fault
from rada.data.shards.tar_scan import ShardIndex
from rada.data.splits import split_name

__all__ = ["ClassNames", "LabelledShards", "find_class_names", "label_shards", "places_of_shards"]

_FILES = ("classnames.txt", "classes.txt", "classnames.json", "classes.json")


@dataclass(frozen=True)
class ClassNames:
    """Class names from a file beside the shards.

    Attributes:
        path: The file.
        names: The names, as they are shown.
        keys: What samples may call the classes, besides their number: a name or a key of the file.
        numbers: The number of each class.
    """

    path: Path
    names: tuple[str, ...]
    keys: tuple[str, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LabelledShards:
    """The images of each split with their labels.

    Attributes:
        classes: Display names.
        keys: What each class is called in the data.
        splits: Labels and images of each split.
        unnamed: Why names must be given; "" if there are some.
    """

    classes: tuple[str, ...]
    keys: tuple[str, ...]
    splits: dict[str, tuple[NDArray[np.int64], ShardSource]]
    unnamed: str = ""


def find_class_names(folders: Iterable[Path]) -> ClassNames | None:
    """Look for class names in folders of shards, and above those that are called like a split.

    Raises:
        DataError: If a file is there but cannot be used.
    """
    for place in places_of_shards(folders):
        for name in _FILES:
            if (place / name).is_file():
                return _read_names(place / name)
    return None


def places_of_shards(folders: Iterable[Path]) -> list[Path]:
    """Return folders of shards, and those above the ones that are called like a split."""
    places: dict[Path, None] = {}
    for folder in dict.fromkeys(folders):
        places[folder] = None
        if split_name(folder.name):
            places[folder.parent] = None
    return list(places)


def _read_names(path: Path) -> ClassNames:
    try:
        if path.suffix == ".json":
            return _from_json(path)
        return _listed(path, read_lines(path, error=DataError, what="the file of class names"))
    except DataError as error:
        raise DataError(f"the class names in {str(path)!r} cannot be used: {error}") from error


def _listed(path: Path, names: Sequence[str]) -> ClassNames:
    shown = check_class_names(display_name(name) for name in names)
    return ClassNames(path, shown, tuple(names), tuple(range(len(names))))


def _from_json(path: Path) -> ClassNames:
    """Read a list of names, `{key or number: name}`, or `{name: number}`."""
    value = read_json(path, error=DataError, what="the file of class names")
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return _listed(path, value)
    if not isinstance(value, dict) or not value:
        raise DataError("it should hold a list of names or an object {number: name}")
    if all(isinstance(number, int) for number in value.values()):
        value = {str(number): name for name, number in value.items()}
    if not all(isinstance(name, str) for name in value.values()):
        raise DataError("it should hold a list of names or an object {number: name}")
    if all(key.isascii() and key.isdecimal() and len(key) < 10 for key in value):
        value = dict(sorted(value.items(), key=lambda pair: int(pair[0])))
        numbers = tuple(map(int, value))
    else:
        numbers = tuple(range(len(value)))
    return ClassNames(path, check_class_names(value.values()), tuple(value), numbers)


def label_shards(
    splits: Mapping[str, tuple[Sequence[Shard], Sequence[ShardIndex]]], given: ClassNames | None
) -> LabelledShards:
    """Give the images of shards their labels.

    Args:
        splits: Shards and their indexes.
        given: Class names from beside the shards.

    Returns:
        Labels that count in the class names: those given, else those of the samples, else numbers.
        Images without a label that can be used have -1 and are among the missing ones.

    Raises:
        DataError: If no sample has a label, or some say numbers and others names.
    """
    words: dict[str, int] = {}
    joined = {}
    for name, (shards, indexes) in splits.items():
        numbers = np.concatenate([index.numbers for index in indexes])
        texts = np.concatenate([_renumbered(index, words) for index in indexes])
        joined[name] = (numbers, texts, ShardSource.join(shards, indexes))
    good = [source.entries["fault"] == 0 for _, _, source in joined.values()]
    numbers = np.concatenate(
        [part[0][rows] for part, rows in zip(joined.values(), good, strict=True)]
    )
    texts = np.concatenate(
        [part[1][rows] for part, rows in zip(joined.values(), good, strict=True)]
    )
    if not len(numbers):
        first = next(source for _, _, source in joined.values() if len(source))
        raise DataError(f"no sample of the shards can be used; the first: {first.explain(0)}")
    if given is not None:
        table = _Table.of_names(given, list(words))
    else:
        table = _Table.of_samples(numbers, texts, list(words))
    return LabelledShards(
        table.classes,
        table.keys,
        {name: table.label(*part) for name, part in joined.items()},
        table.unnamed,
    )


def _renumbered(index: ShardIndex, words: dict[str, int]) -> NDArray[np.int64]:
    """Return the places of a shard's class names in a table that all shards share."""
    places = [words.setdefault(word, len(words)) for word in index.words]
    return np.array([*places, -1], dtype=np.int64)[index.texts]


@dataclass(frozen=True, eq=False)
class _Table:
    """Which label a number and a class name stand for; the last entry is for -1."""

    classes: tuple[str, ...]
    keys: tuple[str, ...]
    of_number: NDArray[np.int64]
    of_text: NDArray[np.int64]
    unnamed: str = ""

    def label(
        self, numbers: NDArray[np.int64], texts: NDArray[np.int64], source: ShardSource
    ) -> tuple[NDArray[np.int64], ShardSource]:
        good = source.entries["fault"] == 0
        known = np.where(numbers < len(self.of_number) - 1, numbers, -1)
        labels = np.where(numbers >= 0, self.of_number[known], self.of_text[texts])
        source = source.with_faults(good & (labels < 0) & (numbers >= 0), Fault.RANGE)
        source = source.with_faults(good & (labels < 0) & (numbers < 0), Fault.UNKNOWN)
        return np.where(good, labels, -1), source

    @classmethod
    def of_names(cls, given: ClassNames, words: Sequence[str]) -> _Table:
        """The classes of a file, all of them, whether they have images or not."""
        of_number = np.full(max(given.numbers) + 2, -1, dtype=np.int64)
        of_number[list(given.numbers)] = range(len(given.names))
        labels: dict[str, int] = {}
        for spelling in (given.keys, given.names):
            for label, name in enumerate(spelling):
                labels.setdefault(fold_name(display_name(name)), label)
        of_text = [labels.get(fold_name(display_name(word)), -1) for word in words]
        return cls(given.names, given.keys, of_number, np.array([*of_text, -1], dtype=np.int64))

    @classmethod
    def of_samples(
        cls, numbers: NDArray[np.int64], texts: NDArray[np.int64], words: Sequence[str]
    ) -> _Table:
        """The classes that the samples say, by number and name, by name, or by number alone."""
        if (numbers >= 0).all():
            used = np.unique(numbers)
            names = _names_of(numbers, texts, words)
            if names.keys() >= set(used.tolist()):
                return cls._paired({number: names[number] for number in used.tolist()}, words)
            return cls._numbered(int(used[-1]) + 1, words)
        if (numbers >= 0).any():
            raise DataError(
                "some samples of the shards have a number for a label and others a class name: put the "
                "names into classnames.txt beside the shards, one a line in the order of the numbers"
            )
        used_words = {words[place] for place in np.unique(texts).tolist()}
        keys = tuple(sorted(used_words, key=natural_key))
        labels = {key: label for label, key in enumerate(keys)}
        of_text = np.array([*(labels.get(word, -1) for word in words), -1], dtype=np.int64)
        return cls(tuple(map(display_name, keys)), keys, np.array([-1]), of_text)

    @classmethod
    def _paired(cls, names: Mapping[int, str], words: Sequence[str]) -> _Table:
        of_number = np.full(max(names) + 2, -1, dtype=np.int64)
        of_number[list(names)] = range(len(names))
        classes = tuple(map(display_name, names.values()))
        return cls(classes, tuple(map(str, names)), of_number, np.full(len(words) + 1, -1))

    @classmethod
    def _numbered(cls, count: int, words: Sequence[str]) -> _Table:
        keys = tuple(map(str, range(count)))
        unnamed = (
            f"the labels of these shards are the numbers 0 to {count - 1}, and nothing says what they "
            "stand for, which the text encoder needs: put classnames.txt beside the shards, one name a "
            "line in the order of the numbers, or give a JSON list of them (--class-names, class_names)"
        )
        of_number = np.array([*range(count), -1], dtype=np.int64)
        return cls(keys, keys, of_number, np.full(len(words) + 1, -1), unnamed)


def _names_of(
    numbers: NDArray[np.int64], texts: NDArray[np.int64], words: Sequence[str]
) -> dict[int, str]:
    """Return the class names of numbers, none at all if one has two or two have the same."""
    both = texts >= 0
    pairs = np.unique(np.stack([numbers[both], texts[both]]), axis=1).T.tolist()
    names = {number: words[place] for number, place in pairs}
    folded = {fold_name(display_name(name)) for name in names.values()}
    return names if len(pairs) == len(names) == len(folded) else {}
