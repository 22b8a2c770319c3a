"""Any image data set of torchvision, by name: `torchvision:CIFAR10?root=DIR`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from rada.core.errors import DataError
from rada.core.extras import needed_for
from rada.core.network import socket_timeout
from rada.core.warn import warn
from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.items import item_labels, item_names
from rada.data.prompts import display_name
from rada.data.registry import register_dataset
from rada.data.scan import is_folder
from rada.data.sources import FileSource, ImageSource, IndexedSource

__all__ = ["load_torchvision"]

_PREFIX = "torchvision:"
_ROOT = "data"
# What torchvision's classes call their splits.
_SPELLINGS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
# Where they keep their files, if they do.
_FILES = ("samples", "_samples", "_image_files", "_images", "_image_paths", "imgs")
_ABSTRACT = ("VisionDataset", "DatasetFolder")
# Options that are functions cannot be written in a specification.
_FUNCTIONS = {"transform", "target_transform", "transforms", "loader", "is_valid_file"}


def load_torchvision(spec: str) -> ImageDataset:
    """Open `torchvision:NAME?root=DIR[&download=true]`; other options go to torchvision's class.

    Nothing is downloaded unless `download=true` says so.

    Raises:
        DataError: If there is no such set, its files are not under `root`, or its images have no
            single class each.
    """
    name, _, query = spec.removeprefix(_PREFIX).partition("?")
    make = _find(name)
    parameters = _parameters(make)
    options = _options(name, parameters, query)
    opened = _open(name, make, parameters, options)
    labels = {split: item_labels(_called(name), items) for split, items in opened.items()}
    keys, classes = _classes(name, opened, labels)
    root = Path(options.get("root", _ROOT)).absolute()
    splits = {
        split: ImageSplit(classes, labels[split], _source(items, root, f"{name}/{split}"))
        for split, items in opened.items()
    }
    return ImageDataset(name, classes, splits, keys=keys)


def _called(name: str) -> str:
    return f"torchvision's {name}"


def _find(name: str) -> Callable[..., Any]:
    with needed_for("a data set of torchvision"):
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
            with socket_timeout():  # what it downloads has none
                opened[split] = make(**options, **arguments)
        except Exception as error:  # whatever the reader of another library raises for its files
            if not ("split" in arguments and "Unknown value" in str(error)):
                failures[split] = error
    if not opened:
        _refuse(name, options, failures)
    for split, failure in failures.items():
        warn(f"torchvision's {name} has no split {split!r} here: {failure}", stacklevel=2)
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


def _classes(
    name: str, opened: Mapping[str, Any], labels: Mapping[str, NDArray[np.int64]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return keys and display names; numbers where the data set says no names."""
    count = 1 + max(int(values.max(initial=-1)) for values in labels.values())
    found = {split: item_names(items) for split, items in opened.items()}
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


def _source(items: Any, root: Path, prefix: str) -> ImageSource:
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
