"""The images of a session: on disk under numbers, never all in memory."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rada.app.archives import archived_images
from rada.app.config import AppConfig
from rada.core.errors import DataError
from rada.core.storage import storage_errors
from rada.data.images import open_image
from rada.data.sources import FileSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["Album", "AlbumSource", "Intake", "Picture", "Role"]

Role = Literal["learn", "try"]

THUMBNAIL, LARGE = 256, 1024
_LONGEST_NAME = 120
_MOST_REFUSED = 50
_decoding = threading.Lock()  # one large image in memory at a time, whoever sends it


@dataclass(frozen=True)
class Picture:
    """An image of a session.

    Attributes:
        number: Its number, by which it lies on disk.
        name: What it was called; shown, and never used as a path.
        role: Whether it is to learn from or to try the model on.
    """

    number: int
    name: str
    role: Role


@dataclass
class Intake:
    """What came of an upload.

    Attributes:
        added: Numbers of the new images.
        twice: How many were there already.
        refused: Name and reason of those that cannot be used, the first ones.
        refused_count: How many these are.
    """

    added: list[int] = field(default_factory=list)
    twice: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    refused_count: int = 0

    def refuse(self, name: str, reason: str) -> None:
        """Note an image that cannot be used."""
        self.refused_count += 1
        if len(self.refused) < _MOST_REFUSED:
            self.refused.append((name, reason))


@dataclass(frozen=True)
class AlbumSource(FileSource):
    """Images of an album, under the names that people know them by.

    Attributes:
        numbers: Number of each image.
    """

    numbers: tuple[int, ...] = ()

    def path(self, index: int) -> Path:
        """Return the file of one image."""
        return self.root / _place(self.numbers[index])

    def missing(self) -> list[int]:
        """Return the indices of the images whose file does not exist."""
        return [index for index in range(len(self.numbers)) if not self.path(index).is_file()]

    def take(self, rows: NDArray[np.int64]) -> AlbumSource:
        """Return the images at `rows`."""
        ids, numbers = (tuple(held[row] for row in rows) for held in (self.ids, self.numbers))
        return AlbumSource(self.root, ids, numbers)


class Album:
    """The images of one session.

    Args:
        folder: Its own folder, made if need be.
        config: The bounds.
    """

    def __init__(self, folder: Path, config: AppConfig) -> None:
        self.folder, self.config = folder, config
        self.pictures: list[Picture] = []
        self._known: set[tuple[Role, bytes]] = set()
        self._bytes = self._arriving = 0
        self._lock = threading.RLock()
        with storage_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.pictures)

    def add(self, content: bytes, name: str, role: Role, intake: Intake) -> None:
        """Take one image in; what cannot be used is noted in `intake`."""
        shown = _shown(name)
        if len(content) > self.config.max_file_megabytes * 1_000_000:
            intake.refuse(shown, f"it has more than {self.config.max_file_megabytes} MB")
            return
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if (role, digest) in self._known:
            intake.twice += 1
            return
        try:
            self._check_room(len(content))
            with _decoding:
                image = open_image(content, max_pixels=self.config.max_megapixels * 1_000_000)
                image.thumbnail((THUMBNAIL, THUMBNAIL))
        except DataError as error:
            intake.refuse(shown, str(error))
            return
        with self._lock, storage_errors(self.folder):
            number = len(self.pictures)
            if number >= self.config.max_images or (role, digest) in self._known:
                return
            image.save(self.folder / f"{_place(number)}.small", "JPEG", quality=85)
            self.path(number).write_bytes(content)
            self._known.add((role, digest))
            self._bytes += len(content)
            self.pictures.append(Picture(number, shown, role))
            intake.added.append(number)

    @contextlib.contextmanager
    def arriving(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes of a file that is being sent; the function that it gives is told of each piece.

        However many files are sent at a time, together they take no more room than all files may.

        Raises:
            DataError: From the function, where there is no more room.
        """
        counted = 0

        def count(size: int) -> None:
            nonlocal counted
            with self._lock:
                counted += size
                self._arriving += size
                if self._arriving > self.config.max_total_megabytes * 1_000_000:
                    raise DataError(
                        f"more than {self.config.max_total_megabytes:,} MB are being sent at a time"
                    )

        try:
            yield count
        finally:
            with self._lock:
                self._arriving -= counted

    def add_archive(self, path: Path, role: Role, intake: Intake) -> None:
        """Take the images of a zip archive in.

        Raises:
            DataError: If the archive is damaged or dangerous; images before that stay.
        """
        limits = {
            "max_images": self.config.max_images,
            "max_file": self.config.max_file_megabytes * 1_000_000,
            "max_total": self.config.max_total_megabytes * 1_000_000,
        }
        for name, content in archived_images(path, **limits):
            if isinstance(content, str):
                intake.refuse(_shown(name), content)
            else:
                self.add(content, name, role, intake)

    def path(self, number: int) -> Path:
        """Return where the file of an image lies, as it was sent."""
        return self.folder / _place(number)

    def source(self, numbers: Sequence[int]) -> AlbumSource:
        """Return images as a source of a data set; what they are called begins with their number."""
        names = tuple(f"{number + 1} {self.pictures[number].name}" for number in numbers)
        return AlbumSource(self.folder.absolute(), names, tuple(numbers))

    def shown(self, number: int, *, large: bool = False) -> bytes:
        """Return an image as a JPEG to look at; never the file that was sent.

        Raises:
            DataError: If there is no such image.
        """
        if not 0 <= number < len(self.pictures):
            raise DataError(f"there is no image {number}")
        if not large:
            return (self.folder / f"{_place(number)}.small").read_bytes()
        with _decoding:
            image = self.load(number)
            image.thumbnail((LARGE, LARGE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()

    def load(self, number: int) -> Image:
        """Return an image, decoded whole."""
        return open_image(
            self.path(number), max_pixels=self.config.max_megapixels * 1_000_000, shorter_side=512
        )

    def numbers(self, role: Role) -> list[int]:
        """Return the numbers of the images of a role."""
        return [picture.number for picture in self.pictures if picture.role == role]

    def forget(self) -> None:
        """Delete everything."""
        with self._lock:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.pictures.clear()
            self._known.clear()

    def _check_room(self, size: int) -> None:
        if len(self.pictures) >= self.config.max_images:
            raise DataError(f"there is room for {self.config.max_images:,} images, no more")
        if self._bytes + size > self.config.max_total_megabytes * 1_000_000:
            raise DataError(f"there is room for {self.config.max_total_megabytes:,} MB, no more")


def _place(number: int) -> str:
    return f"{number:06d}"


def _shown(name: str) -> str:
    """Return the name of a file as it is shown: its end, without folders.

    Example:
        >>> _shown("../../etc/cat.png"), _shown("")
        ('cat.png', 'image')
    """
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return last[-_LONGEST_NAME:] or "image"
