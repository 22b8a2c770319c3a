"""Any image data set of torchvision, by name: `torchvision:CIFAR10?root=DIR`."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.prompts import display_name
from rada.data.registry import register_dataset
from rada.data.sources import FileSource, IndexedSource, Source
from rada.errors import DataError

__all__ = ["load_torchvision"]

_PREFIX = "torchvision:"
_ROOT = "data"
# What torchvision's classes call their splits.
_SPELLINGS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
# Where they keep their files and their labels, if they do.
_FILES = ("samples", "_samples", "_image_files", "_images", "_image_paths", "imgs")
_LABELS = ("targets", "_labels", "labels", "_targets", "y")


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
    keys = _keys(next(iter(opened.values())), labels)
    classes = tuple(display_name(key) for key in keys)
    root = Path(options.get("root", _ROOT)).absolute()
    splits = {
        split: ImageSplit(classes, labels[split], _source(items, root, f"{name}/{split}"))
        for split, items in opened.items()
    }
    return ImageDataset(name, classes, splits, keys=keys)


def _find(name: str) -> Callable[..., Any]:
    from torchvision import datasets

    found = getattr(datasets, name, None) if name in datasets.__all__ else None
    if found is None or not hasattr(found, "__getitem__"):
        near = difflib.get_close_matches(name, datasets.__all__, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise DataError(f"torchvision has no data set {name!r}{hint}")
    return found  # type: ignore[no-any-return]


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
    unknown = sorted(set(given) - set(parameters))
    if unknown:
        raise DataError(
            f"torchvision's {name} has no option {unknown[0]!r}; it has {', '.join(parameters)}"
        )
    options: dict[str, Any] = {}
    for key, text in given.items():
        default = parameters[key].default
        if isinstance(default, bool) or key in ("download", "train"):
            options[key] = text.lower() in ("1", "true", "yes")
        elif isinstance(default, int):
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
        except ValueError as error:
            if "split" not in arguments:  # otherwise: the class does not know such a split
                failures[split] = error
        except (RuntimeError, OSError, ImportError, TypeError, EOFError) as error:
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
    text = " ".join(str(reason).split())
    if "root" not in options or not failures:
        raise DataError(f"torchvision's {name} cannot be opened: {text}")
    raise DataError(
        f"torchvision's {name} cannot be opened in {root!r}: {text} Put its files there, name another "
        f"folder ('{_PREFIX}{name}?root=DIR'), or add '&download=true' where the network allows it"
    )


def _labels(name: str, items: Any) -> NDArray[np.int64]:
    for attribute in _LABELS:
        values = getattr(items, attribute, None)
        if values is not None and len(values) == len(items):
            break
    else:
        values = _second(items) or [items[index][1] for index in range(len(items))]
    try:
        labels = np.asarray(values)
    except ValueError:  # boxes: lists of different lengths
        labels = np.array([None])
    if labels.shape != (len(items),) or labels.dtype.kind not in "iu":
        raise DataError(f"torchvision's {name} does not have one class for each picture")
    return labels.astype(np.int64)


def _second(items: Any) -> list[Any] | None:
    """Return the labels of a data set that keeps pairs of file and label."""
    for attribute in ("samples", "_samples"):
        pairs = getattr(items, attribute, None)
        if isinstance(pairs, list) and len(pairs) == len(items) and isinstance(pairs[0], tuple):
            return [pair[1] for pair in pairs]
    return None


def _keys(items: Any, labels: Mapping[str, NDArray[np.int64]]) -> tuple[str, ...]:
    """Return the class names that the data set says; numbers where it says none."""
    names = getattr(items, "classes", None) or getattr(items, "categories", None)
    count = 1 + max(int(values.max(initial=-1)) for values in labels.values())
    if not isinstance(names, list | tuple) or len(names) < count:
        return tuple(map(str, range(count)))
    return tuple(entry if isinstance(entry, str) else str(entry[0]) for entry in names)


def _source(items: Any, root: Path, prefix: str) -> Source:
    """Read files ourselves where the data set keeps a list of them: they can be named and hashed."""
    for attribute in _FILES:
        files = getattr(items, attribute, None)
        if not isinstance(files, list) or len(files) != len(items) or not files:
            continue
        paths = [entry[0] if isinstance(entry, tuple) else entry for entry in files]
        if all(isinstance(path, str | Path) for path in paths) and Path(paths[0]).is_file():
            return FileSource(root, tuple(_relative(Path(path), root) for path in paths))
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
