"""Reading images for extraction: each file once, for its digest and for its pixels."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from rada.core.errors import DataError
from rada.core.network import is_web_url
from rada.data import ImageSplit, open_image
from rada.data.sources import PackedSource

if TYPE_CHECKING:
    from rada.data.images import ImageLike

__all__ = ["ImageItem", "ImageReader", "ListReader", "OpenImage", "SplitReader"]
# Larger files are read twice, in pieces, rather than held in memory whole.
_LARGEST_HELD = 64 << 20


@dataclass(frozen=True)
class _Unusable:
    """Stands in a job for an image in memory that cannot be used."""

    reason: str


ImageItem = int | str | os.PathLike[str] | bytes | Image.Image | _Unusable
"""What a job names an image by: it can be sent to another process."""


@dataclass(frozen=True)
class OpenImage:
    """An image that was read but not decoded yet.

    Attributes:
        digest: Hash of the file's bytes, or of size and pixels where there is no file; the
            reason where it cannot be read.
        load: Decodes it to RGB; raises `DataError` where this cannot be done. Takes what the shorter side is
            going to be resized to, or None for the whole image, as `open_image` does.
    """

    digest: str
    load: Callable[[int | None], Image.Image]


class _NamedBytes(io.BytesIO):
    """The bytes of a file, with its name for error messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def _open_file(path: Path) -> OpenImage | None:
    """Read a file of usual size; None leaves all other kinds to the caller."""
    try:
        if not path.is_file() or not 0 < path.stat().st_size <= _LARGEST_HELD:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    return _open_bytes(content, str(path))


def _open_bytes(content: bytes, name: str) -> OpenImage:
    digest = hashlib.blake2b(content, digest_size=20).hexdigest()
    return OpenImage(digest, lambda side: open_image(_NamedBytes(content, name), shorter_side=side))


def _open_pixels(image: Image.Image) -> OpenImage:
    state = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=20)
    state.update(image.tobytes())
    return OpenImage(state.hexdigest(), lambda _: image)


def _open_bad(error: DataError) -> OpenImage:
    def fail(_: int | None) -> Image.Image:
        raise error

    return OpenImage(f"unreadable: {error}", fail)


class SplitReader:
    """Reads the images of a split; its items are indices."""

    def __init__(self, split: ImageSplit) -> None:
        self.split = split

    def items(self) -> Iterator[ImageItem]:
        """Yield the indices of all images."""
        yield from range(len(self.split))

    def open(self, item: ImageItem) -> OpenImage:
        """Read the image of one index."""
        assert isinstance(item, int)
        path = self.split.path(item)
        try:
            if isinstance(self.split.source, PackedSource):
                return _open_bytes(self.split.source.read(item), self.split.source.name(item))
            if path is None:
                return _open_pixels(self.split.load(item))
            return _open_file(path) or OpenImage(
                self.split.digest(item), lambda _: self.split.load(item)
            )
        except DataError as error:
            return _open_bad(error)

    def name(self, item: ImageItem) -> str:
        """Return what to call the image in messages."""
        assert isinstance(item, int)
        return self.split.ids[item]


class ListReader:
    """Reads images given in any form that `open_image` takes, which may come one by one."""

    def __init__(self, images: Iterable[ImageLike]) -> None:
        self._images = images

    def __getstate__(self) -> dict[str, object]:
        # Items travel inside the jobs; a worker must not hold (or copy) the stream itself.
        return {"_images": ()}

    def items(self) -> Iterator[ImageItem]:
        """Yield the images in a form that can be sent to a worker."""
        return map(portable, self._images)

    def open(self, item: ImageItem) -> OpenImage:
        """Read one image."""
        try:
            if isinstance(item, _Unusable):
                raise DataError(item.reason)
            if isinstance(item, bytes):
                return _open_bytes(item, "")
            if isinstance(item, Image.Image):
                return _open_pixels(item)
            assert not isinstance(item, int)
            web = isinstance(item, str) and is_web_url(item)
            found = None if web else _open_file(Path(item))
            # huge, from the network, or an error that says what is wrong
            return found or _open_pixels(open_image(item))
        except DataError as error:
            return _open_bad(error)

    def name(self, item: ImageItem) -> str:
        """Return what to call the image in messages."""
        if isinstance(item, str | os.PathLike):
            return os.fspath(item)
        return f"<{type(item).__name__}>"


def portable(image: Any) -> ImageItem:
    """Return a path, bytes or an RGB image in place of an image of any kind.

    Pillow's own images and open files lose their tags, or cannot go at all, to another process.
    """
    if isinstance(image, str | os.PathLike | bytes):
        return image
    if isinstance(image, _Unusable):
        return image
    try:
        return open_image(image)
    except DataError as error:
        return _Unusable(str(error))


ImageReader = SplitReader | ListReader
