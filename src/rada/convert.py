"""Data sets and images of other libraries, turned into a data set, a split or features.

`convert_data` is for data with labels, `images_to_predict` for images alone. What they cannot take is an
error with the list of what they can. Paths and names of data sets are `rada.inputs`'s.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, Subset

from rada.core.errors import DataError
from rada.core.extras import needed_for
from rada.core.network import is_web_url
from rada.data import ImageDataset, ImageSplit, expand_images, open_images
from rada.data.arrays import is_array, is_tensor
from rada.data.checks import check_splits, without_missing
from rada.data.hugging_face import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    hugging_face_columns,
    hugging_face_images,
    named_columns,
    one_column,
    refuse_several_labels,
)
from rada.data.items import item_labels, item_names, pixels_of_item
from rada.data.prompts import display_name
from rada.data.scan import natural_key
from rada.data.sources import FileSource, ImageSource, IndexedSource
from rada.data.splits import SPLITS, split_name
from rada.features import Features, FeatureStore

__all__ = ["ACCEPTED", "ACCEPTED_IMAGES", "convert_data", "first_missing", "images_to_predict"]

ACCEPTED = (
    "a folder, table or name of a data set (`rada datasets`), a features file, Features, an ImageSplit "
    "or ImageDataset, a pair (X, y) of arrays of features or images and labels, a list of pairs "
    "(image, label), a map-style torch or torchvision Dataset with items (image, label), a Hugging Face "
    "Dataset or DatasetDict, or a pandas DataFrame with the columns path (or image) and label"
)
"""The data that `fit`, `score` and `evaluate` take, in words."""

ACCEPTED_IMAGES = (
    "a path, folder, URL, image in memory (Pillow, numpy HWC, torch CHW, bytes, a binary file object), a "
    "list or batch of these, an array of features (N, D), Features, an ImageSplit, a torch, torchvision or "
    "Hugging Face Dataset, or a pandas DataFrame with the column path or image"
)
"""The images that `predict` takes, in words."""


# -- data with labels ----------------------------------------------------------------------------


def convert_data(
    data: Any, classes: Sequence[str] | None = None, *, skip_bad: bool = False
) -> ImageDataset | ImageSplit | Features | FeatureStore:
    """Return labelled data that is no path, in whatever form it is handed over.

    Labels that are texts are class names. Labels that are integers are places in the class names that the
    data brings, or else in `classes`; where all of these are numbers, such as "1", "2" and "5", and all
    labels among them, labels are these numbers.

    Args:
        data: See `ACCEPTED`.
        classes: The class names that integer labels are places in, where the data brings none.
        skip_bad: Leave out images whose file is missing.

    Raises:
        DataError: If it is nothing of these, or its labels cannot be used.
        FeatureError: If features cannot be used.

    Example:
        >>> features = convert_data((np.eye(4)[:2], ["cat", "dog"]))
        >>> features.classes, features.labels.tolist(), features.dim
        (('cat', 'dog'), [0, 1], 4)
    """
    if isinstance(data, ImageDataset | ImageSplit | Features | FeatureStore):
        return data
    _refuse_streams(data)
    if _is_pair_of_columns(data):
        inputs, targets = map(_plain, data)
        features = _feature_array(inputs)
        if features is not None:
            labels, names = _labels(targets, None, classes)
            return Features(features, torch.from_numpy(labels), names)
        columns = _Columns("the images", {"all": inputs}, {"all": targets})
    else:
        columns = _columns(data)
    dataset = without_missing(columns.dataset(classes), skip=skip_bad)
    check_splits(dataset, min_classes=1, allow_unseen=False)
    return dataset


@dataclass(frozen=True)
class _Columns:
    """Images and labels of each split, as somebody else's data set has them.

    Attributes:
        name: What to call the data set.
        images: Images by split: a sequence of what `open_image` takes, or a `ImageSource`.
        labels: Labels by split; None where they are not known.
        names: The class names that the data set brings.
    """

    name: str
    images: dict[str, Any]
    labels: dict[str, Any]
    names: tuple[str, ...] | None = None

    def dataset(self, classes: Sequence[str] | None) -> ImageDataset:
        """Return a data set with the names of all splits."""
        counts = {split: len(self.labels[split]) for split in self.images}
        values = [value for split in self.images for value in _listed(self.labels[split])]
        labels, names = _labels(values, self.names, classes)
        splits, start = {}, 0
        for split, images in self.images.items():
            part = labels[start : start + counts[split]]
            start += counts[split]
            source = _source(images, f"{self.name}/{split}")
            if len(source.ids) != len(part):
                raise DataError(f"there are {len(part)} labels for {len(source.ids)} images")
            splits[split] = ImageSplit(names, part, source)
        return ImageDataset(self.name, names, splits, keys=names)


def _columns(data: Any) -> _Columns:
    """Return the images and labels of a data set of another library."""
    if _is_hugging_face(data):
        return _hugging_face(data)
    if _is_data_frame(data):
        return _data_frame(data)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, dict):
        return _items(data)
    raise _refusal(data, ACCEPTED)


def _is_hugging_face(data: Any) -> bool:
    return _comes_from(data, "datasets") and hasattr(data, "column_names")


def _is_data_frame(data: Any) -> bool:
    return hasattr(data, "columns") and hasattr(data, "iloc")


def _refusal(data: Any, accepted: str) -> DataError:
    return DataError(
        f"data of the type {type(data).__module__}.{type(data).__qualname__} cannot be used; give {accepted}"
    )


def _refuse_streams(data: Any) -> None:
    """Refuse what has batches or no random access, with what to give in its place."""
    if isinstance(data, DataLoader):
        raise DataError(
            "a DataLoader gives batches, whose transforms and shuffling are not rada's: give its data set "
            "(loader.dataset)"
        )
    if isinstance(data, IterableDataset) or type(data).__name__.startswith("Iterable"):
        raise DataError(
            f"a {type(data).__name__} cannot be read at random, which drawing shots and going on after an "
            "interruption need: give a data set with items by number, such as a map-style Dataset"
        )
    if is_array(data):
        raise DataError(
            f"an array of shape {tuple(data.shape)} has no labels: give the pair (X, y), as one argument"
        )


# -- labels --------------------------------------------------------------------------------------


def _labels(
    values: Any, own: Sequence[str] | None, classes: Sequence[str] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the labels as integers and the class names that they are places in."""
    found = _listed(values)
    _refuse_missing(found, "item {}")
    for index, value in enumerate(found):
        if isinstance(value, list | tuple) and value:
            refuse_several_labels(f"item {index}, with the label {value!r},")
        if not isinstance(value, str) and not _is_label(value):
            raise DataError(
                f"the label of item {index} is {value!r}, but labels are texts or integers, and None or -1 "
                "where there is none"
            )
    texts = [value for value in found if isinstance(value, str)]
    given = [value for value in found if value is not None]
    if texts and len(texts) < len(given):
        number = next(value for value in given if not isinstance(value, str))
        raise DataError(f"some labels are texts ({texts[0]!r}) and some are numbers ({number!r})")
    if texts:
        keys = sorted(set(texts), key=natural_key)
        place = {key: label for label, key in enumerate(keys)}
        labels = [-1 if value is None else place[value] for value in found]
        return np.array(labels, np.int64), tuple(map(display_name, keys))
    numbers = np.array(
        [-1 if value is None else operator.index(value) for value in found], np.int64
    )
    names = own if own is not None else classes
    if names is None:
        raise DataError(
            "the labels are integers, and nothing says which classes they are: give the classifier its "
            "class names in that order (classes=[...]), or use class names as labels"
        )
    if own is None:
        numbers = _by_number(numbers, names)
    wrong = numbers[(numbers < -1) | (numbers >= len(names))]
    if len(wrong):
        raise DataError(
            f"the label {wrong[0]} is out of range: there are {len(names)} class names, so labels are 0 to "
            f"{len(names) - 1}, or -1 for none"
        )
    return numbers, tuple(names) if own is None else tuple(map(display_name, own))


def _refuse_missing(labels: Sequence[Any], where: str) -> None:
    """Refuse labels that are missing; None says that there is none."""
    index = first_missing(labels)
    if index is not None:
        raise DataError(
            f"the label of {where.format(index)} is missing ({labels[index]!r}): fill it or leave the row out"
        )


def first_missing(values: Sequence[Any], *, or_none: bool = False) -> int | None:
    """Return the place of the first value that is missing, or is None if that is asked; None for none.

    Example:
        >>> first_missing(["nan", -1, None, float("nan")]), first_missing(["cat", None], or_none=True)
        (3, 1)
    """
    found = (i for i, one in enumerate(values) if _is_missing(one) or (or_none and one is None))
    return next(found, None)


def _is_missing(value: Any) -> bool:
    """Whether a value is what pandas and NumPy write for one that is missing: NaN, NaT, NA."""
    kind = type(value)
    arrays = hasattr(kind, "__array__") or hasattr(kind, "__array_interface__")
    if arrays and not issubclass(kind, np.generic):  # comparing a picture would decode it
        return False
    try:
        return bool(value != value)
    except TypeError:  # whether NA differs from itself is not known
        return True
    except (ValueError, RuntimeError):  # an array of several values
        return False


def _by_number(labels: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.int64]:
    """Return the places of labels that are the numbers in the names; other labels as they are."""
    if not all(re.fullmatch(r"-?\d+", name) for name in names):
        return labels
    place = {int(name): index for index, name in enumerate(names)} | {-1: -1}
    if "-1" in names or not set(labels.tolist()) <= place.keys():
        return labels
    return np.array([place[label] for label in labels.tolist()], np.int64)


def _is_label(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _listed(values: Any) -> list[Any]:
    """Return a column of any library as a list of plain Python values."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    found = list(values)
    return [value.item() if is_tensor(value) and value.ndim == 0 else value for value in found]


# -- images --------------------------------------------------------------------------------------


def _source(images: Any, prefix: str) -> ImageSource:
    """Return where images come from: files where all are paths."""
    if isinstance(images, FileSource | IndexedSource):
        return images
    if isinstance(images, list) and images and all(map(_is_path, images)):
        ids = tuple(os.fspath(Path(image).expanduser()) for image in images)
        return FileSource(Path.cwd(), ids)
    return IndexedSource(_Items(images), np.arange(len(images)), prefix)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and not (
        isinstance(value, str) and is_web_url(value)
    )


@dataclass(frozen=True)
class _Items:
    """Images as items `(image, None)`.

    Attributes:
        images: A sequence of images, or of `(image, label)`.
    """

    images: Any

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, None]:
        value = self.images[index]
        if isinstance(value, tuple | list):
            value = value[0]
        return pixels_of_item(value), None


def _portable(image: Any) -> Any:
    """Return the content of a file object, which worker processes would read from at once."""
    if not hasattr(image, "read"):
        return image
    if hasattr(image, "seekable") and image.seekable():
        image.seek(0)
    return image.read()


def _feature_array(values: Any) -> torch.Tensor | None:
    """Return features `(N, D)` or `(N, V, D)` if an array is one of floats of that shape."""
    if not is_array(values) or values.ndim not in (2, 3):
        return None
    if is_tensor(values):
        return values.detach().float().cpu().clone() if values.is_floating_point() else None
    # float64 is what numpy makes of numbers, not what somebody chose
    return torch.from_numpy(values.astype(np.float32)) if values.dtype.kind == "f" else None


# -- other libraries -----------------------------------------------------------------------------


def _is_pair_of_columns(data: Any) -> bool:
    """Whether it is `(X, y)`: two sequences of the same kind of thing, of which y is of labels."""
    if not isinstance(data, tuple) or len(data) != 2:
        return False
    return all(is_array(part) or isinstance(part, list) or hasattr(part, "iloc") for part in data)


def _plain(column: Any) -> Any:
    """Return an array or a list in place of a column of pandas, a list in place of objects."""
    if hasattr(column, "iloc") and getattr(column, "ndim", 0) == 1:
        return column.tolist()  # an array would make floats of integers where one is missing
    values = column.to_numpy() if hasattr(column, "to_numpy") else column
    if isinstance(values, np.ndarray) and values.dtype.kind in "OUS":
        return values.tolist()
    return values


def _comes_from(value: Any, package: str) -> bool:
    return any(kind.__module__.partition(".")[0] == package for kind in type(value).__mro__)


def _items(data: Any) -> _Columns:
    """Read a data set whose items are `(image, label)`."""
    if not len(data):
        raise DataError("the data set has no items")
    if isinstance(data, Subset):
        inner = _items(data.dataset)
        rows = [int(row) for row in data.indices]
        labels = _listed(inner.labels["all"])
        return _Columns(
            inner.name,
            {"all": _source(inner.images["all"], f"{inner.name}/all").take(np.array(rows))},
            {"all": [labels[row] for row in rows]},
            inner.names,
        )
    name = f"the {type(data).__name__}"
    changed = getattr(data, "target_transform", None) is not None
    first = data[0]
    if not isinstance(first, tuple | list) or len(first) != 2:
        raise DataError(
            f"{name} has items of the type {type(first).__name__}, not pairs (image, label); give {ACCEPTED}"
        )
    if isinstance(data, list | tuple):
        _check_pairs(data)
        found = [_portable(image) for image, _ in data]
        return _Columns("the list", {"all": found}, {"all": [label for _, label in data]})
    names = None if changed else item_names(data)
    if _comes_from(data, "torchvision") and not changed:
        images = _image_files(data) or data
        return _Columns(name, {"all": images}, {"all": item_labels(name, data)}, names)
    # Whatever else such an object keeps may belong to other items than it gives.
    return _Columns(name, {"all": data}, {"all": [data[k][1] for k in range(len(data))]}, names)


def _check_pairs(data: Sequence[Any]) -> None:
    for index, pair in enumerate(data):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"item {index} is {repr(pair)[:60]}, not a pair (image, label)")


def _image_files(data: Any) -> FileSource | None:
    """Return the files of an ImageFolder that does nothing with them but open them."""
    with needed_for("a data set of torchvision"):
        from torchvision.datasets import DatasetFolder
        from torchvision.datasets.folder import default_loader

    plain = (
        isinstance(data, DatasetFolder)
        and type(data).__getitem__ is DatasetFolder.__getitem__
        and data.loader is default_loader
        and getattr(data, "transform", None) is None
    )
    if not plain:
        return None
    root = Path(data.root).absolute()
    paths = (Path(path).absolute() for path, _ in data.samples)
    return FileSource(
        root,
        tuple((p.relative_to(root) if p.is_relative_to(root) else p).as_posix() for p in paths),
    )


def _hugging_face(data: Any) -> _Columns:
    """Read a `Dataset` or `DatasetDict` with a column of images and one of labels."""
    return _Columns("the Hugging Face data set", *hugging_face_columns(data))


def _data_frame(data: Any) -> _Columns:
    """Read a DataFrame with the columns path or image, label and, if wanted, split."""
    columns, images = list(data.columns), _images_of_frame(data)
    labelled = named_columns(columns, LABEL_COLUMNS)
    label = one_column(labelled, columns, "label") if labelled else None
    split = next(iter(named_columns(columns, ("split",))), None)
    labels = [None] * len(data) if label is None else data[label].tolist()
    _refuse_missing(labels, "row {} of the DataFrame")
    rows: dict[str, list[int]] = {"all": list(range(len(data)))}
    if split is not None:
        rows = _split_rows(data[split].tolist())
    return _Columns(
        "the DataFrame",
        {key: [images[row] for row in part] for key, part in rows.items()},
        {key: [labels[row] for row in part] for key, part in rows.items()},
    )


def _images_of_frame(data: Any) -> list[Any]:
    """Return the images of a DataFrame; no other column is looked at."""
    columns = list(data.columns)
    image = one_column(named_columns(columns, IMAGE_COLUMNS), columns, "image")
    values = data[image].tolist()
    row = first_missing(values, or_none=True)
    if row is not None:
        raise DataError(
            f"the {image} of row {row} of the DataFrame is missing ({values[row]!r}): fill it or leave the "
            "row out"
        )
    return [_portable(value) for value in values]


def _split_rows(values: Sequence[Any]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        split = split_name(str(value))
        if split is None:
            raise DataError(
                f"the split of row {row} is {value!r}, which is none of {', '.join(SPLITS)}"
            )
        found.setdefault(split, []).append(row)
    return {split: found[split] for split in SPLITS if split in found}


# -- images to predict ---------------------------------------------------------------------------


def images_to_predict(images: Any, classes: Sequence[str] = ()) -> ImageSplit | Features | None:
    """Return images to predict, in whatever form they are handed over; None for an empty list.

    Args:
        images: See `ACCEPTED_IMAGES`.
        classes: The class names of the result.

    Raises:
        DataError: If it is nothing of these; an image that cannot be read is an error only when it is
            read.

    Example:
        >>> len(images_to_predict(np.zeros((8, 8, 3), np.uint8)))
        1
        >>> len(images_to_predict(np.eye(3), ("a", "b")))
        3
    """
    if isinstance(images, FeatureStore):
        return images.load()
    if isinstance(images, ImageSplit | Features):
        return images
    features = _feature_array(images) if getattr(images, "ndim", 0) == 2 else None
    if features is not None:
        return Features(features, torch.full((len(features),), -1), tuple(classes))
    if not is_array(images):
        _refuse_streams(images)
    split = _others(images)
    if split is None:
        entries = [_portable(image) for image in _sequence(images)]
        if not entries:
            return None
        if all(map(_is_path, entries)):
            split = open_images(entries)
        else:
            found = [each for entry in entries for each in _expanded(entry)]
            split = _unlabelled(found)
    return ImageSplit(tuple(classes), split.labels, split.source)


def _others(images: Any) -> ImageSplit | None:
    """Return the images of a data set of another library, None for images themselves."""
    if isinstance(images, torch.utils.data.Dataset) or _comes_from(images, "torchvision"):
        if is_array(images):  # torchvision's own tensors
            return None
        return _unlabelled(images)
    if _is_hugging_face(images):
        parts = hugging_face_images(images)
        if len(parts) > 1:
            raise DataError(
                f"the data has the splits {', '.join(map(repr, parts))}: give one of them, such as "
                f"data[{next(iter(images))!r}]"
            )
        return _unlabelled(next(iter(parts.values())))
    if _is_data_frame(images):
        return _unlabelled(_images_of_frame(images))
    return None


def _unlabelled(images: Any) -> ImageSplit:
    return ImageSplit((), np.full(len(images), -1), _source(images, "images"))


def _sequence(images: Any) -> Iterable[Any]:
    """Return one image, or several, as several."""
    from PIL.Image import Image

    if is_array(images):
        return images if images.ndim > 3 else [images]
    one = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image)
    if one or hasattr(images, "read"):
        return [images]
    if isinstance(images, Iterable) and not isinstance(images, dict):
        return images
    raise _refusal(images, ACCEPTED_IMAGES)


def _expanded(image: Any) -> Iterator[Any]:
    if _is_path(image):
        return map(str, expand_images(image))
    return iter([image])
