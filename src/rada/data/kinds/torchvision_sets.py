"""Any image data set of torchvision, by name: `torchvision:CIFAR10?root=DIR`."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import operator
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rada.core.errors import DataError
from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.prompts import display_name
from rada.data.registry import register_dataset
from rada.data.scan import is_folder
from rada.data.sources import FileSource, IndexedSource, Source

__all__ = ["load_torchvision"]

_PREFIX = "torchvision:"
_ROOT = "data"
# What torchvision's classes call their splits.
_SPELLINGS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
# Where they keep their files and their labels, if they do.
_FILES = ("samples", "_samples", "_image_files", "_images", "_image_paths", "imgs")
_LABELS = ("targets", "_labels", "labels", "_targets", "y")
_PAIRS = ("samples", "_samples", "index")  # (file, label), or (label, file) in INaturalist
_NAMES = ("classes", "categories", "all_categories")
_ABSTRACT = ("VisionDataset", "DatasetFolder")
# Options that are functions cannot be written in a specification.
_FUNCTIONS = {"transform", "target_transform", "transforms", "loader", "is_valid_file"}


def load_torchvision(spec: str) -> ImageDataset:
    """Open `torchvision:NAME?root=DIR[&download=true]`; other options go to torchvision's class.

    Nothing is downloaded unless `download=true` says so.

    Raises:
        DataError: If there is no such set, its files are not under `root`, or its pictures have no
            single class each.
    """
    name, _, query = spec.removeprefix(_PREFIX).partition("?")
    make = _find(name)
    parameters = _parameters(make)
    options = _options(name, parameters, query)
    opened = _open(name, make, parameters, options)
    labels = {split: _labels(name, items) for split, items in opened.items()}
    keys, classes = _classes(name, opened, labels)
    root = Path(options.get("root", _ROOT)).absolute()
    splits = {
        split: ImageSplit(classes, labels[split], _source(items, root, f"{name}/{split}"))
        for split, items in opened.items()
    }
    return ImageDataset(name, classes, splits, keys=keys)


def _find(name: str) -> Callable[..., Any]:
    from torchvision import datasets

    known = [
        key
        for key in datasets.__all__
        if key not in _ABSTRACT and hasattr(getattr(datasets, key), "__getitem__")
    ]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise DataError(f"torchvision has no data set {name!r}{hint}")
    return getattr(datasets, name)  # type: ignore[no-any-return]


def _parameters(make: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class, those included that it hands on as `**kwargs`."""
    merged: dict[str, inspect.Parameter] = {}
    for base in inspect.getmro(make):
        found = inspect.signature(base).parameters
        merged = {**found, **merged}
        if all(entry.kind is not entry.VAR_KEYWORD for entry in found.values()):
            break
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {key: entry for key, entry in merged.items() if entry.kind in named}


def _options(name: str, parameters: Mapping[str, inspect.Parameter], query: str) -> dict[str, Any]:
    """Read the options of a specification as the types that the class has by default."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    allowed = [key for key in parameters if key not in _FUNCTIONS]
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise DataError(
            f"torchvision's {name} has no option {unknown[0]!r}; it has {', '.join(allowed)}"
        )
    # Some classes would download by themselves.
    options: dict[str, Any] = {"download": False} if "download" in parameters else {}
    for key, text in given.items():
        default = parameters[key].default
        if isinstance(default, bool) or key in ("download", "train"):
            options[key] = text.lower() in ("1", "true", "yes")
        elif isinstance(default, int) or (default is None and text.isdecimal()):
            options[key] = _number(name, key, text)
        else:
            options[key] = text
    if "root" in parameters:
        options["root"] = str(Path(options.get("root", _ROOT)).expanduser())
    return options


def _number(name: str, key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise DataError(
            f"torchvision's {name}: {key} should be an integer, not {text!r}"
        ) from error


def _open(
    name: str,
    make: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Open every split that is there."""
    root = options.get("root")
    if root is not None and not options.get("download") and not is_folder(root):
        # Some classes make the folder, as if this were of any use.
        _refuse(name, options, {"": FileNotFoundError("there is no such folder.")})
    needed = [
        key
        for key, entry in parameters.items()
        if entry.default is entry.empty and key not in {*options, "train"}
    ]
    if needed and not (needed == ["split"] and "train" not in parameters):
        raise DataError(f"torchvision's {name} needs the option {needed[0]!r}: ?{needed[0]}=...")
    opened: dict[str, Any] = {}
    failures: dict[str, Exception] = {}
    for split, arguments in _arguments(parameters, options):
        if split in opened:
            continue
        try:
            opened[split] = make(**options, **arguments)
        except Exception as error:  # whatever the reader of another library raises for its files
            if not ("split" in arguments and "Unknown value" in str(error)):
                failures[split] = error
    if not opened:
        _refuse(name, options, failures)
    for split, failure in failures.items():
        warnings.warn(f"torchvision's {name} has no split {split!r} here: {failure}", stacklevel=2)
    return opened


def _arguments(
    parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """Return what to try for each split of a class."""
    if "train" in parameters and "train" not in options:
        return [("train", {"train": True}), ("test", {"train": False})]
    if "split" in parameters and "split" not in options:
        return [(split, {"split": name}) for split, names in _SPELLINGS.items() for name in names]
    return [("all", {})]


def _refuse(name: str, options: Mapping[str, Any], failures: Mapping[str, Exception]) -> None:
    root = options.get("root")
    reason = next(
        iter(failures.values()), "it knows none of the usual splits: name one, ?split=..."
    )
    text = " ".join((str(reason) or type(reason).__name__).split()).rstrip(".") + "."
    if "root" not in options or not failures:
        raise DataError(f"torchvision's {name} cannot be opened: {text}")
    raise DataError(
        f"torchvision's {name} cannot be opened in {root!r}: {text} Put its files there, name another "
        f"folder ('{_PREFIX}{name}?root=DIR'), or add '&download=true' where the network allows it"
    )


def _labels(name: str, items: Any) -> NDArray[np.int64]:
    """Return the label of each item, without decoding pictures where the data set keeps a list."""
    _check_item(name, items)
    kept = _kept_labels(items)
    if kept is None:
        return _as_labels(name, [items[index][1] for index in range(len(items))])
    labels = _as_labels(name, kept)
    for index in {0, len(items) - 1} if len(items) else ():
        with contextlib.suppress(Exception):  # a bad picture, which is reported when it is loaded
            if _as_labels(name, [items[index][1]])[0] != labels[index]:  # an option chose others
                return _as_labels(name, [items[index][1] for index in range(len(items))])
    return labels


def _check_item(name: str, items: Any) -> None:
    """Check by its first item that a data set is one of pictures and classes."""
    try:
        first = items[0]
    except Exception:  # an empty set, or a bad picture, which is reported when it is loaded
        return
    if (
        not isinstance(first, tuple)
        or len(first) != 2
        or not isinstance(first[0], Image.Image)
        or not (first[1] is None or _is_integer(first[1]))
    ):
        kinds = [type(part).__name__ for part in first] if isinstance(first, tuple) else [first]
        shown = ", ".join(map(str, kinds)) if isinstance(first, tuple) else type(first).__name__
        raise DataError(
            f"torchvision's {name} does not have one class for each picture: its items are ({shown})"
        )


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _kept_labels(items: Any) -> list[Any] | None:
    for attribute in _LABELS:
        values = getattr(items, attribute, None)
        if values is not None and not isinstance(values, str) and len(values) == len(items):
            return list(values.tolist() if hasattr(values, "tolist") else values)
    for attribute in _PAIRS:
        pairs = getattr(items, attribute, None)
        if _are_pairs(pairs, len(items)):
            return [pair[0] if attribute == "index" else pair[1] for pair in pairs]
    return None


def _are_pairs(values: Any, count: int) -> TypeGuard[list[tuple[Any, Any]]]:
    return (
        isinstance(values, list)
        and len(values) == count > 0
        and all(isinstance(pair, tuple) and len(pair) == 2 for pair in values)
    )


def _as_labels(name: str, values: list[Any]) -> NDArray[np.int64]:
    """Return (N,) int64; None is -1, the label of pictures without one."""
    try:
        labels = [-1 if value is None else operator.index(value) for value in values]
    except TypeError as error:
        raise DataError(f"torchvision's {name} does not have one class for each picture") from error
    return np.array(labels, dtype=np.int64)


def _classes(
    name: str, opened: Mapping[str, Any], labels: Mapping[str, NDArray[np.int64]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return keys and display names; numbers where the data set says no names."""
    count = 1 + max(int(values.max(initial=-1)) for values in labels.values())
    found = {split: _names(items) for split, items in opened.items()}
    split, names = next(iter(found.items()))
    differing = [other for other, entry in found.items() if entry != names]
    if differing:
        raise DataError(
            f"torchvision's {name} has other classes in {differing[0]} than in {split}: the files of "
            "one of them are incomplete"
        )
    if names is None or len(names) < count:
        numbers = tuple(map(str, range(count)))
        return numbers, numbers
    # Those of ImageNet are no keys: it has two cranes.
    wnids = getattr(opened[split], "wnids", None)
    keys = tuple(wnids) if isinstance(wnids, list) and len(wnids) == len(names) else names
    return keys, tuple(display_name(entry) for entry in names)


def _names(items: Any) -> tuple[str, ...] | None:
    for attribute in _NAMES:
        names = getattr(items, attribute, None)
        if isinstance(names, list | tuple) and names:
            return tuple(entry if isinstance(entry, str) else str(entry[0]) for entry in names)
    table = getattr(items, "class_to_idx", None)
    return tuple(sorted(table, key=table.__getitem__)) if isinstance(table, dict) else None


def _source(items: Any, root: Path, prefix: str) -> Source:
    """Read files ourselves where the data set keeps a list of them: they can be named and hashed."""
    for attribute in _FILES:
        files = getattr(items, attribute, None)
        if not isinstance(files, list) or len(files) != len(items) or not files:
            continue
        paths = [entry[0] if isinstance(entry, tuple) else entry for entry in files]
        texts = all(isinstance(path, str | Path) for path in paths)
        if texts and any(Path(path).is_file() for path in paths[:100]):  # some may be missing
            return FileSource(root, tuple(_relative(Path(path), root) for path in paths))
    if hasattr(items, "all_categories"):  # INaturalist: (category, file name)
        folder = Path(items.root).absolute()
        files = [folder / items.all_categories[category] / name for category, name in items.index]
        return FileSource(root, tuple(_relative(path, root) for path in files))
    return IndexedSource(items, np.arange(len(items)), prefix)


def _relative(path: Path, root: Path) -> str:
    path = path.absolute()
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


register_dataset(
    "torchvision:NAME?root=DIR",
    "any image data set of torchvision, such as torchvision:CIFAR10?root=data",
    matches=lambda spec: spec.startswith(_PREFIX),
    load=load_torchvision,
)
