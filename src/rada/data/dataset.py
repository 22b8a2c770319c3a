"""What a data set is: ordered splits of labelled images that share their classes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from rada.core.errors import DataError
from rada.core.values import check_indices
from rada.data.prompts import DEFAULT_TEMPLATE
from rada.data.sources import FileSource, ImageSource, id_bytes

__all__ = ["ImageDataset", "ImageSplit", "Skipped"]


def _as_integers(labels: ArrayLike) -> NDArray[np.int64]:
    """Return an own (N,) int64 copy; 1.5, NaN and text are no labels."""
    values = np.asarray(labels).reshape(-1)
    if len(values) and values.dtype.kind not in "iu":
        raise DataError(f"labels should be integers, not {values.dtype} such as {values[0]!r}")
    return values.astype(np.int64)


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """An ordered, indexable set of labelled images, which are opened when they are asked for.

    It is small (names and an array) and can be pickled, so `torch.utils.data.DataLoader` workers may
    have it.

    Attributes:
        classes: Display names; the index is the label.
        labels: (N,) int64; -1 stands for "no label".
        source: Where the images come from.

    Example:
        >>> split = ImageSplit.from_files(".", ["a/1.jpg", "b/1.jpg"], labels=[0, 1], classes=["a", "b"])
        >>> len(split), split.ids, split.subset([1]).labels.tolist()
        (2, ('a/1.jpg', 'b/1.jpg'), [1])
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    source: ImageSource

    def __post_init__(self) -> None:
        labels = _as_integers(self.labels)
        labels.flags.writeable = False
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "classes", tuple(self.classes))
        if len(labels) != len(self.source.ids):
            raise DataError(f"there are {len(labels)} labels for {len(self.source.ids)} images")
        if len(labels) and not -1 <= labels.min() <= labels.max() < len(self.classes):
            wrong = labels[(labels < -1) | (labels >= len(self.classes))][0]
            raise DataError(
                f"the label {wrong} is out of range: with {len(self.classes)} classes, labels are "
                f"0 to {len(self.classes) - 1}, or -1 for none"
            )

    @classmethod
    def from_files(
        cls,
        root: str | Path,
        ids: Sequence[str],
        *,
        labels: ArrayLike | None = None,
        classes: Sequence[str] = (),
    ) -> ImageSplit:
        """Build a split from files.

        Args:
            root: The folder that `ids` are relative to.
            ids: Path of each image, with `/`.
            labels: (N,) integers; None for no labels.
            classes: Display names.

        Raises:
            DataError: If the labels are out of range or of another number.
        """
        values = np.full(len(ids), -1) if labels is None else np.asarray(labels)
        return cls(tuple(classes), values, FileSource(Path(root).absolute(), tuple(ids)))

    @property
    def ids(self) -> tuple[str, ...]:
        """Stable key of each image: its path relative to the data set's root, or `split/index`."""
        return self.source.ids

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """Return one image: RGB, upright, fully decoded.

        Raises:
            DataError: If it cannot be read; the message names the file.
        """
        return self.source.load(index)

    def digest(self, index: int) -> str:
        """Return a hash of the file's bytes, or of the pixels and size where there is no file.

        Raises:
            DataError: If it cannot be read; the message names the file.
        """
        return self.source.digest(index)

    def path(self, index: int) -> Path | None:
        """Return the file of one image, or None where it has no file of its own."""
        return self.source.path(index)

    def subset(self, indices: ArrayLike) -> ImageSplit:
        """Return the images at `indices`, in that order, with all classes kept.

        Args:
            indices: (n,) integers, or (N,) booleans that say which images to keep.

        Raises:
            DataError: If a mask is not as long as the split, or they are neither.
        """
        rows = check_indices(indices, len(self), error=DataError)
        return dataclasses.replace(self, labels=self.labels[rows], source=self.source.take(rows))

    def select_classes(self, classes: Sequence[int], relabel: bool = True) -> ImageSplit:
        """Return the images of some classes only.

        Args:
            classes: Labels to keep.
            relabel: Whether `classes` become the labels 0, 1, ... of the result, in the order given;
                otherwise names and labels stay as they are.

        Raises:
            DataError: If a label is out of range or given twice.
        """
        wanted = [int(label) for label in classes]
        if len(set(wanted)) < len(wanted) or any(not 0 <= k < len(self.classes) for k in wanted):
            raise DataError(
                f"classes to select should be distinct numbers from 0 to {len(self.classes) - 1}, "
                f"not {wanted}"
            )
        kept = self.subset(np.flatnonzero(np.isin(self.labels, wanted)))
        if not relabel:
            return kept
        return kept._relabelled({old: new for new, old in enumerate(wanted)}, wanted)

    def _relabelled(self, table: Mapping[int, int], order: Sequence[int]) -> ImageSplit:
        lookup = np.full(len(self.classes) + 1, -1, dtype=np.int64)  # the last stands for -1
        for old, new in table.items():
            lookup[old] = new
        names = tuple(self.classes[old] for old in order)
        return dataclasses.replace(self, classes=names, labels=lookup[self.labels])

    def align(self, classes: Sequence[str]) -> ImageSplit:
        """Return the same images with labels that count in another list of the same class names.

        Args:
            classes: Display names; may hold more than the split's own.

        Raises:
            DataError: If images belong to a class that `classes` lacks.

        Example:
            >>> split = ImageSplit.from_files(".", ["1.jpg"], labels=[0], classes=["cat"])
            >>> split.align(["dog", "cat"]).labels.tolist()
            [1]
        """
        position = {name: index for index, name in enumerate(classes)}
        used = np.unique(self.labels[self.labels >= 0])
        missing = [self.classes[label] for label in used if self.classes[label] not in position]
        if missing:
            raise DataError(
                f"images belong to classes that are not among the {len(position)} given: "
                f"{', '.join(map(repr, missing[:10]))}"
            )
        lookup = np.array([position.get(name, -1) for name in self.classes] + [-1], dtype=np.int64)
        return dataclasses.replace(self, classes=tuple(classes), labels=lookup[self.labels])

    def rename(self, classes: Sequence[str]) -> ImageSplit:
        """Return the same images and labels under other class names, one for each.

        Raises:
            DataError: If the number of names differs.
        """
        if len(classes) != len(self.classes):
            raise DataError(f"{len(classes)} names were given for {len(self.classes)} classes")
        return dataclasses.replace(self, classes=tuple(classes))

    def counts(self) -> NDArray[np.int64]:
        """Return the number of images of each class, (K,) int64."""
        labels = self.labels[self.labels >= 0]
        return np.bincount(labels, minlength=len(self.classes)).astype(np.int64)

    def fingerprint(self) -> str:
        """Return a hash of the contents, labels and class names, in order.

        Raises:
            DataError: If an image cannot be read.
        """
        state = hashlib.blake2b(digest_size=20)
        for name in self.classes:
            state.update(id_bytes(name) + b"\0")
        state.update(self.labels.astype("<i8").tobytes())
        for index in range(len(self)):
            state.update(self.digest(index).encode() + b"\0")
        return state.hexdigest()

    def manifest(self) -> list[dict[str, Any]]:
        """Return one `{"id", "path", "label", "class"}` for each image, for writing out."""
        return list(self._records())

    def _records(self) -> Iterator[dict[str, Any]]:
        for index, (key, label) in enumerate(zip(self.ids, self.labels.tolist(), strict=True)):
            path = self.path(index)
            yield {
                "id": id_bytes(key).decode("utf-8", "replace"),
                "path": None if path is None else id_bytes(str(path)).decode("utf-8", "replace"),
                "label": label,
                "class": self.classes[label] if label >= 0 else None,
            }


@dataclass(frozen=True)
class Skipped:
    """An image that was left out because it is bad.

    Attributes:
        split: The split it belonged to.
        id: Its key.
        reason: Why it cannot be used; names the file.
    """

    split: str
    id: str
    reason: str


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Named splits that share their classes.

    Attributes:
        name: What to call it in tables.
        classes: Display names; the index is the label.
        templates: Prompt templates, each with `{}` for the class name.
        splits: "train", "val" and "test" as far as they exist, or "all".
        keys: What each class is called in the data (folder name, label in a table).
        skipped: Bad images that were left out because this was asked for.
        unnamed: Why class names must be given: the data has none, and the user should be told how;
            "" where it has.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, ImageSplit]
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    keys: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    unnamed: str = ""

    @property
    def aliases(self) -> dict[str, str]:
        """Class names by what the data calls the classes."""
        return dict(zip(self.keys or self.classes, self.classes, strict=True))

    def split(self, *preferred: str) -> ImageSplit:
        """Return the first of the preferred splits that exists.

        Raises:
            DataError: If none exists; the message names those that do.

        Example:
            >>> split = ImageSplit.from_files(".", [], classes=["cat", "dog"])
            >>> dataset = ImageDataset("pets", ("cat", "dog"), {"all": split})
            >>> dataset.split("test", "all") is split
            True
        """
        for name in preferred:
            if name in self.splits:
                return self.splits[name]
        raise DataError(
            f"the data set {self.name!r} has no split {' or '.join(map(repr, preferred))}; "
            f"it has {', '.join(map(repr, self.splits))}"
        )

    def skipped_of(self, split: str) -> tuple[tuple[str, str], ...]:
        """Return `(id, reason)` of each image of a split that was left out."""
        return tuple((entry.id, entry.reason) for entry in self.skipped if entry.split == split)
