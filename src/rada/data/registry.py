"""The kinds of data sets: one file each in `rada.data.kinds`, found and registered by themselves."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rada.data.align import fold_name
from rada.data.dataset import ImageDataset, ImageSplit, Skipped
from rada.data.prompts import check_class_names, display_name, load_class_names, load_templates
from rada.errors import DataError

__all__ = ["DatasetInfo", "list_datasets", "open_dataset", "register_dataset"]


@dataclass(frozen=True)
class DatasetInfo:
    """One kind of data, for `rada datasets`.

    Attributes:
        name: How to ask for it.
        description: What it is.
    """

    name: str
    description: str


@dataclass(frozen=True)
class _Kind:
    info: DatasetInfo
    matches: Callable[[str], bool]
    load: Callable[[str], ImageDataset]


_KINDS: dict[str, _Kind] = {}


def register_dataset(
    name: str,
    description: str,
    *,
    matches: Callable[[str], bool],
    load: Callable[[str], ImageDataset],
) -> None:
    """Register a kind of data set.

    Args:
        name: How users ask for it, such as `textiles` or `FILE.csv`.
        description: One line.
        matches: Whether a specification is of this kind; cheap, must not raise.
        load: Opens it; raises `DataError` if it cannot.

    Raises:
        ValueError: If the name is taken or blank.
    """
    if not name.strip() or name in _KINDS:
        raise ValueError(f"the kind of data set {name!r} is blank or registered already")
    _KINDS[name] = _Kind(DatasetInfo(name, description), matches, load)


def _kinds() -> Mapping[str, _Kind]:
    package = importlib.import_module("rada.data.kinds")
    for module in sorted(entry.name for entry in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"rada.data.kinds.{module}")
    return _KINDS


def list_datasets() -> list[DatasetInfo]:
    """Return every kind of data that `open_dataset` knows.

    Example:
        >>> "textiles" in [info.name for info in list_datasets()]
        True
    """
    return [kind.info for _, kind in sorted(_kinds().items())]


def open_dataset(
    spec: str | Path,
    *,
    class_names: str | Path | Sequence[str] | Mapping[str, str] | None = None,
    templates: str | Path | Sequence[str] | None = None,
    skip_bad: bool = False,
) -> ImageDataset:
    """Open a data set.

    Args:
        spec: A folder, a table (`.csv`, `.tsv`, `.jsonl`, `.ndjson`), or a name that `rada datasets`
            lists.
        class_names: Display names: a mapping from folder names, a list in the order of the classes, or
            a JSON file with either. Default: the folder names with `_` as a space.
        templates: Prompt templates, or a JSON file with them; default: the data set's own.
        skip_bad: Leave out table rows whose picture is missing instead of stopping.

    Returns:
        The data set; nothing but names has been read yet.

    Raises:
        DataError: If there is no such data, or it cannot be used; the message names what is wrong.
    """
    text = str(spec)
    for kind in _kinds().values():
        if kind.matches(text):
            return _renamed(_without_missing(kind.load(text), skip_bad), class_names, templates)
    path = Path(text).expanduser()
    if path.exists():
        raise DataError(
            f"{text!r} is not a folder or a table: a table ends in .csv, .tsv, .jsonl or .ndjson"
        )
    near = difflib.get_close_matches(text, _KINDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; `rada datasets` lists what there is"
    raise DataError(f"there is no file, folder or data set {text!r}{hint}")


def _without_missing(dataset: ImageDataset, skip: bool) -> ImageDataset:
    """Check that the files of a data set exist; leave those out that do not, if that is wanted."""
    import dataclasses

    splits: dict[str, ImageSplit] = {}
    skipped: list[Skipped] = []
    for name, split in dataset.splits.items():
        kept = []
        for index, key in enumerate(split.ids):
            path = split.path(index)
            if path is None or path.is_file():
                kept.append(index)
            else:
                skipped.append(Skipped(name, key, f"{str(path)!r} does not exist"))
        splits[name] = split if len(kept) == len(split) else split.subset(kept)
    if skipped and not skip:
        shown = "; ".join(entry.reason for entry in skipped[:5])
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        raise DataError(f"pictures are missing: {shown}{more} (--skip-bad goes on without them)")
    return dataclasses.replace(dataset, splits=splits, skipped=tuple(skipped))


def _renamed(
    dataset: ImageDataset,
    class_names: str | Path | Sequence[str] | Mapping[str, str] | None,
    templates: str | Path | Sequence[str] | None,
) -> ImageDataset:
    import dataclasses

    if templates is not None:
        dataset = dataclasses.replace(dataset, templates=load_templates(templates))
    if class_names is None:
        return dataset
    given = load_class_names(class_names)
    if isinstance(given, Mapping):
        table = {fold_name(key): value for key, value in given.items()}
        strangers = sorted(set(table) - {fold_name(key) for key in dataset.keys})
        if strangers:
            raise DataError(
                f"class names are given for {strangers[0]!r}, which is none of the classes "
                f"{', '.join(map(repr, dataset.keys[:20]))}"
            )
        names = [table.get(fold_name(key), display_name(key)) for key in dataset.keys]
    else:
        names = list(given)
        if len(names) != len(dataset.classes):
            raise DataError(f"{len(names)} names were given for {len(dataset.classes)} classes")
    classes = check_class_names(names)
    splits = {name: split.rename(classes) for name, split in dataset.splits.items()}
    return dataclasses.replace(dataset, classes=classes, splits=splits)
