"""Where the images of a split come from: files, or a data set that another library reads."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rada.core.errors import DataError
from rada.data.images import open_image

__all__ = ["FileSource", "ImageSource", "IndexedSource", "PackedSource", "id_bytes"]

_DIGEST_SIZE = 20


def id_bytes(text: str) -> bytes:
    """Encode a key for hashing; file names may hold bytes that are no UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, from a damaged JSON file
        return text.encode("utf-8", "surrogatepass")


class ImageSource(Protocol):
    """A sequence of images that can be pickled; see `ImageSplit` for the methods."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Stable key of each image."""

    def load(self, index: int) -> Image.Image:
        """Return one image as RGB."""

    def digest(self, index: int) -> str:
        """Return a hash of one image's content."""

    def path(self, index: int) -> Path | None:
        """Return the file of one image."""

    def missing(self) -> list[int]:
        """Return the indices of the images whose file does not exist."""

    def take(self, rows: NDArray[np.int64]) -> ImageSource:
        """Return the images at `rows`."""


@runtime_checkable
class PackedSource(Protocol):
    """What a source has besides where its images are files within other files.

    `explain(index)` may say why an image is among the missing ones.
    """

    def read(self, index: int) -> bytes:
        """Return the bytes of one image's file, those that its digest is of."""

    def name(self, index: int) -> str:
        """Return what to call the image in messages."""


@dataclass(frozen=True)
class FileSource:
    """Images in files.

    Attributes:
        root: Absolute folder.
        ids: Path of each image relative to `root`, or absolute.
    """

    root: Path
    ids: tuple[str, ...]

    def path(self, index: int) -> Path:
        """Return the file of one image."""
        return self.root / self.ids[index]

    def load(self, index: int) -> Image.Image:
        """Return one image as RGB."""
        return open_image(self.path(index))

    def digest(self, index: int) -> str:
        """Return a hash of the bytes of one file."""
        path = self.path(index)
        try:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(
                    stream, lambda: hashlib.blake2b(digest_size=_DIGEST_SIZE)
                )
        except OSError as error:
            raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
        return digest.hexdigest()

    def missing(self) -> list[int]:
        """Return the indices of the images whose file does not exist."""
        root = str(self.root)  # os.path, since pathlib takes seconds for a million files
        return [
            index
            for index, key in enumerate(self.ids)
            if not os.path.isfile(os.path.join(root, key))  # noqa: PTH113, PTH118
        ]

    def take(self, rows: NDArray[np.int64]) -> FileSource:
        """Return the images at `rows`."""
        return dataclasses.replace(self, ids=tuple(self.ids[row] for row in rows))


@dataclass(frozen=True)
class IndexedSource:
    """Images of a data set whose items are `(image, label)`, such as torchvision's.

    Attributes:
        items: The data set.
        rows: (N,) which of its items.
        prefix: Begins every key.
    """

    items: Any
    rows: NDArray[np.int64]
    prefix: str

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """Stable key of each image: `prefix/index`."""
        return tuple(f"{self.prefix}/{row}" for row in self.rows.tolist())

    def path(self, index: int) -> None:
        """Return None: such images have no file of their own."""
        return None

    def load(self, index: int) -> Image.Image:
        """Return one image as RGB."""
        row = int(self.rows[index])
        try:
            image = self.items[row][0]
        except Exception as error:  # whatever the reader of another library raises for a bad file
            raise DataError(f"image {self.prefix}/{row} cannot be read: {error}") from error
        try:
            return open_image(image)
        except DataError as error:
            raise DataError(f"image {self.prefix}/{row}: {error}") from error

    def digest(self, index: int) -> str:
        """Return a hash of the size and pixels of one image."""
        image = self.load(index)
        state = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=_DIGEST_SIZE)
        state.update(image.tobytes())
        return state.hexdigest()

    def missing(self) -> list[int]:
        """Return nothing: the library that reads the items has found them."""
        return []

    def take(self, rows: NDArray[np.int64]) -> IndexedSource:
        """Return the images at `rows`."""
        return dataclasses.replace(self, rows=self.rows[rows])
