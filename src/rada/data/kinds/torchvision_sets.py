"""Any image data set of torchvision, by name: `torchvision:CIFAR10?root=DIR`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.prompts import check_class_names, display_name
from rada.data.registry import register_dataset
from rada.data.sources import IndexedSource
from rada.errors import DataError

__all__ = ["load_torchvision"]

_PREFIX = "torchvision:"
_SPLITS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}


def load_torchvision(spec: str) -> ImageDataset:
    """Open `torchvision:NAME?root=DIR[&download=true]`; other options go to torchvision's class.

    Nothing is downloaded unless `download=true` says so.

    Raises:
        DataError: If there is no such set, its files are not under `root`, or its labels are not
            one class a picture.
    """
    name, _, query = spec.removeprefix(_PREFIX).partition("?")
    options: dict[str, Any] = dict(parse_qsl(query))
    make = _find(name)
    root = Path(options.pop("root", "data")).expanduser()
    parameters = inspect.signature(make).parameters
    if "download" in parameters:
        options["download"] = str(options.get("download", "")).lower() in ("1", "true", "yes")
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise DataError(f"torchvision's {name} has no option {unknown[0]!r}")
    opened = {}
    for split, arguments in _arguments(parameters, options).items():
        try:
            opened[split] = make(root=str(root), **arguments)
        except (RuntimeError, FileNotFoundError, OSError, ValueError, ImportError) as error:
            raise DataError(
                f"torchvision's {name} cannot be opened in {str(root)!r}: {error}. Put its files "
                f"there, or add download=true: '{_PREFIX}{name}?root={root}&download=true'"
            ) from error
    classes = _classes(name, next(iter(opened.values())))
    splits = {
        split: ImageSplit(
            classes,
            _labels(name, items),
            IndexedSource(items, np.arange(len(items)), f"{name}/{split}"),
        )
        for split, items in opened.items()
    }
    return ImageDataset(name, classes, splits, keys=classes)


def _find(name: str) -> Callable[..., Any]:
    from torchvision import datasets

    found = getattr(datasets, name, None) if name in datasets.__all__ else None
    if found is None or not hasattr(found, "__getitem__"):
        near = difflib.get_close_matches(name, datasets.__all__, n=3)
        hint = f": did you mean {', '.join(near)}?" if near else ""
        raise DataError(f"torchvision has no data set {name!r}{hint}")
    return found  # type: ignore[no-any-return]


def _arguments(parameters: Any, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the arguments that open each split of a class."""
    if "train" in parameters:
        flags = {"train": True, "test": False}
        return {split: options | {"train": flag} for split, flag in flags.items()}
    if "split" in parameters and "split" not in options:
        return {
            split: options | {"split": value}
            for split, values in _SPLITS.items()
            for value in values[:1]
            if _allows(parameters, value)
        } or {"all": options}
    return {"all": options}


def _allows(parameters: Any, value: str) -> bool:
    """Whether a split may have a name; the annotation does not say, so common ones are tried."""
    default = parameters["split"].default
    if default in ("trainval", "test"):
        return value in ("train", "test")
    return value in ("train", "test", "val") if default == "train" else value == default


def _classes(name: str, items: Any) -> tuple[str, ...]:
    names = getattr(items, "classes", None)
    if names is None:
        raise DataError(f"torchvision's {name} does not say its class names, so it cannot be used")
    plain = [entry if isinstance(entry, str) else entry[0] for entry in names]
    return check_class_names(map(display_name, plain))


def _labels(name: str, items: Any) -> NDArray[np.int64]:
    for attribute in ("targets", "_labels", "labels", "_targets"):
        values = getattr(items, attribute, None)
        if values is not None and len(values) == len(items):
            return np.asarray(values, dtype=np.int64)
    samples = getattr(items, "_samples", None) or getattr(items, "samples", None)
    if samples is not None and len(samples) == len(items):
        return np.array([sample[1] for sample in samples], dtype=np.int64)
    labels = [items[index][1] for index in range(len(items))]
    if not all(isinstance(label, int) for label in labels):
        raise DataError(f"torchvision's {name} does not have one class for each picture")
    return np.array(labels, dtype=np.int64)


register_dataset(
    "torchvision:NAME?root=DIR",
    "any image data set of torchvision, such as torchvision:CIFAR10?root=data",
    matches=lambda spec: spec.startswith(_PREFIX),
    load=load_torchvision,
)
