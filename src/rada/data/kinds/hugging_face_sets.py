"""Data sets of the Hugging Face hub by name, and those that `save_to_disk` wrote: `hf-dataset:beans`."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from rada.core.errors import DataError, one_line
from rada.core.extras import needed_for
from rada.core.warn import warn
from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.hugging_face import Columns, hugging_face_columns
from rada.data.items import pixels_of_item
from rada.data.prompts import display_name
from rada.data.registry import register_dataset
from rada.data.scan import natural_key
from rada.data.sources import IndexedSource
from rada.data.splits import SPLITS

__all__ = ["load_hugging_face"]

_PREFIX = "hf-dataset:"
_OPTIONS = ("config", "revision", "image", "label")


def load_hugging_face(spec: str) -> ImageDataset:
    """Open `hf-dataset:NAME[?config=...&revision=...&image=COLUMN&label=COLUMN]`, or a saved data set.

    NAME is one of the hub, which is downloaded unless it is in the cache, or a folder: what `save_to_disk`
    wrote, or files that `load_dataset` reads. Nothing of a data set is executed.

    Raises:
        DataError: If it cannot be opened, its columns cannot be told, or an image has several labels.
    """
    name, _, query = spec.removeprefix(_PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise DataError(
            f"{spec!r}: there is no option {unknown[0]!r}; there are {', '.join(_OPTIONS)}"
        )
    if not name:
        raise DataError(f"{spec!r} names no data set: write {_PREFIX}NAME")
    data = _open(name, options)
    found = hugging_face_columns(data, image=options.get("image"), label=options.get("label"))
    labelled, keys = _labels(name, found)
    classes = tuple(map(display_name, keys))
    short = Path(name).name
    splits = {
        split: ImageSplit(
            classes,
            labels,
            IndexedSource(_Images(found.images[split]), np.arange(len(labels)), f"{short}/{split}"),
        )
        for split, labels in labelled.items()
    }
    return ImageDataset(short, classes, splits, keys=keys)


class _Images:
    """The images of a split as items `(image, None)`."""

    def __init__(self, images: Any) -> None:
        self._images = images

    def __getitem__(self, index: int) -> tuple[Any, None]:
        return pixels_of_item(self._images[index]), None


def _open(name: str, options: dict[str, str]) -> Any:
    with needed_for("a data set of Hugging Face"):
        import datasets

    place = Path(name).expanduser()
    try:
        if _is_saved(str(place)):
            return datasets.load_from_disk(str(place))
        source = str(place) if place.is_dir() else name
        return datasets.load_dataset(
            source, options.get("config"), revision=options.get("revision")
        )
    except Exception as error:  # the library raises whatever its readers do
        raise DataError(
            f"the data set {name!r} cannot be opened: {one_line(error, 300)}; name one of the hub that "
            "can be reached, or a folder that `save_to_disk` wrote"
        ) from error


def _is_saved(spec: str) -> bool:
    """Whether a folder is one that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    try:
        folder = Path(spec).expanduser()
        one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
        return one or (folder / "dataset_dict.json").is_file()
    except (RuntimeError, OSError, ValueError):  # nobody's home, far too long, a NUL: no path
        return False


def _labels(name: str, found: Columns) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Return the labels of each labelled split, and the keys of the classes."""
    labelled = {split: list(values) for split, values in found.labels.items()}
    for split, values in list(labelled.items()):
        bare = sum(value is None or value == -1 for value in values)
        if split not in SPLITS and split != "all":
            warn(f"{name}: the split {split!r} is left out: it is none of {', '.join(SPLITS)}")
            del labelled[split]
        elif values and bare == len(values):
            warn(f"{name}: the split {split!r} is left out: its images have no labels")
            del labelled[split]
        elif bare:
            raise DataError(
                f"{name}: {bare} of the {len(values)} images of the split {split!r} have no label: leave "
                "them out of the data set"
            )
    if not labelled:
        raise DataError(f"{name}: no split has labels; name their column, ?label=COLUMN")
    keys = found.names
    if keys is None:
        keys = tuple(sorted({str(v) for part in labelled.values() for v in part}, key=natural_key))
        place = {key: label for label, key in enumerate(keys)}
        labelled = {split: [place[str(v)] for v in part] for split, part in labelled.items()}
    return {split: np.array(part, np.int64) for split, part in labelled.items()}, keys


register_dataset(
    "hf-dataset:NAME",
    "a data set of the Hugging Face hub, or one that save_to_disk wrote, with options such as ?label=COLUMN",
    matches=lambda spec: spec.startswith(_PREFIX) or _is_saved(spec),
    load=load_hugging_face,
    requires=("datasets", "datasets"),
)
