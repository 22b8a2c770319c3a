"""The kinds of data sets: one file each in `rada.data.kinds`, found and registered by themselves."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rada.core.errors import DataError
from rada.core.extras import is_installed
from rada.core.registry import import_modules
from rada.data.checks import check_splits, name_classes, without_missing
from rada.data.dataset import ImageDataset
from rada.data.naming import Naming
from rada.data.prompts import ClassNamesSource, load_templates

__all__ = ["DatasetInfo", "check_spec", "list_datasets", "open_dataset", "register_dataset"]


@dataclass(frozen=True)
class DatasetInfo:
    """One kind of data, for `rada datasets`.

    Attributes:
        name: How to ask for it.
        description: What it is.
        missing: The command that installs what it needs, None if it can be opened.
    """

    name: str
    description: str
    missing: str | None = None


@dataclass(frozen=True)
class _Kind:
    name: str
    description: str
    matches: Callable[[str], bool]
    load: Callable[[str], ImageDataset]
    is_path: bool
    requires: tuple[str, str] | None

    def info(self) -> DatasetInfo:
        missing = None
        if self.requires and not is_installed(self.requires[0]):
            missing = f"pip install 'rada-vlm[{self.requires[1]}]'"
        return DatasetInfo(self.name, self.description, missing)


_KINDS: dict[str, _Kind] = {}


def register_dataset(
    name: str,
    description: str,
    *,
    matches: Callable[[str], bool],
    load: Callable[[str], ImageDataset],
    is_path: bool = False,
    requires: tuple[str, str] | None = None,
) -> None:
    """Register a kind of data set.

    Args:
        name: How users ask for it, such as `textiles` or `FILE.csv`.
        description: One line.
        matches: Whether a specification is of this kind; cheap, must not raise.
        load: Opens it; raises `DataError` if it cannot. Names of classes, missing files and
            differences between splits are dealt with by `open_dataset`.
        is_path: Whether specifications are paths. Such kinds are asked last, so that a folder called
            like a built-in set does not hide it (`./textiles` is the folder).
        requires: A module that must be installed, and the extra that brings it.

    Raises:
        ValueError: If the name is taken or blank.
    """
    if not name.strip() or name in _KINDS:
        raise ValueError(f"the kind of data set {name!r} is blank or registered already")
    _KINDS[name] = _Kind(name, description, matches, load, is_path, requires)


def _kinds() -> list[_Kind]:
    import_modules("rada.data.kinds")
    return sorted(_KINDS.values(), key=lambda kind: (kind.is_path, kind.name))


def list_datasets() -> list[DatasetInfo]:
    """Return every kind of data that `open_dataset` knows.

    Example:
        >>> "textiles" in [info.name for info in list_datasets()]
        True
    """
    return [kind.info() for kind in _kinds()]


def open_dataset(
    spec: str | Path,
    *,
    class_names: ClassNamesSource | Naming | None = None,
    templates: str | Path | Sequence[str] | None = None,
    skip_bad: bool = False,
    min_classes: int = 2,
    allow_unseen: bool = False,
) -> ImageDataset:
    """Open a data set.

    Args:
        spec: A folder, a table (`.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json`), or a name that
            `rada datasets` lists. A `Path` is always a folder or a table.
        class_names: Display names: a mapping from folder names (what it lacks keeps its name), a list of
            candidates that are matched by name (numbers are places in it, from 0), or a JSON file
            with either; see `Naming`. Default: the folder names with `_` as a space.
        templates: Prompt templates, or a JSON file with them; default: the data set's own.
        skip_bad: Leave out images whose file is missing, instead of stopping, and count them in
            `ImageDataset.skipped`. No image is opened here; see `find_bad`.
        min_classes: Fewest classes that are good enough.
        allow_unseen: Whether `val` and `test` may have classes without an image in `train`.

    Returns:
        The data set; nothing but names has been read yet.

    Raises:
        DataError: If there is no such data, or it cannot be used; the message names what is wrong.
    """
    dataset = _load(spec)
    dataset = without_missing(dataset, skip=skip_bad)
    dataset = name_classes(dataset, class_names)
    if templates is not None:
        dataset = dataclasses.replace(dataset, templates=load_templates(templates))
    check_splits(dataset, min_classes=min_classes, allow_unseen=allow_unseen)
    return dataset


def check_spec(spec: str | Path) -> None:
    """Check that there may be data of a name, without opening it: before a model is loaded for it.

    Raises:
        DataError: If there certainly is none, as `open_dataset` says it.
    """
    kind, text = _kind_of(spec), str(spec)
    if kind.is_path and not _MANY.search(text) and not _exists(text):
        raise _nothing(text)


# Patterns of shards, URLs and commands: whether they name something is seen when they are opened.
_MANY = re.compile(r"[{*?\[]|^\w+:")


def _load(spec: str | Path) -> ImageDataset:
    return _kind_of(spec).load(str(spec))


def _kind_of(spec: str | Path) -> _Kind:
    text = str(spec)
    for kind in _kinds():
        if (kind.is_path or isinstance(spec, str)) and kind.matches(text):
            return kind
    if _exists(text):
        raise DataError(
            f"{text!r} is not a folder or a table: a table ends in .csv, .tsv, .jsonl, .ndjson or .json"
        )
    raise _nothing(text)


def _exists(text: str) -> bool:
    return os.path.exists(os.path.expanduser(text))  # noqa: PTH110, PTH111 - pathlib raises for some texts


def _nothing(text: str) -> DataError:
    return DataError(f"there is no file, folder or data set {text[:200]!r}{_hint(text)}")


def _hint(text: str) -> str:
    """Return what may have been meant: a kind, or a neighbour of a path that does not exist."""
    scheme, colon, rest = text.partition(":")
    heads = {name.partition(":")[0]: name for name in _KINDS}
    near = difflib.get_close_matches(scheme.lower(), heads, n=1)
    if near and (":" in heads[near[0]]) >= bool(colon):
        return f"; did you mean {near[0] + colon + rest!r}?"
    parent, name = os.path.split(os.path.expanduser(text))  # noqa: PTH111
    try:
        found = difflib.get_close_matches(name, os.listdir(parent or "."), n=1)  # noqa: PTH208
    except (OSError, ValueError):
        found = []
    if found:
        return f"; did you mean {os.path.join(parent, found[0])!r}?"  # noqa: PTH118
    return "; `rada datasets` lists what there is"
