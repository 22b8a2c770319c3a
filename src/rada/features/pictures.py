"""Reading pictures for extraction: each file once, for its digest and for its pixels."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rada.core.errors import DataError
from rada.data import ImageSplit, open_image
from rada.data.images import to_rgb
from rada.data.sources import PackedSource

__all__ = ["ListReader", "OpenPicture", "PictureItem", "PictureReader", "SplitReader"]

PictureItem = int | str | os.PathLike[str] | Image.Image
# Larger files are read twice, in pieces, rather than held in memory whole.
_LARGEST_HELD = 64 << 20


@dataclass(frozen=True)
class OpenPicture:
    """A picture that was read but not decoded yet.

    Attributes:
        digest: Hash of the file's bytes, or of size and pixels where there is no file; the
            reason where it cannot be read.
        load: Decodes it to RGB; raises `DataError` where this cannot be done.
    """

    digest: str
    load: Callable[[], Image.Image]


class _NamedBytes(io.BytesIO):
    """The bytes of a file, with its name for error messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def _open_file(path: Path) -> OpenPicture | None:
    """Read a file of usual size; None leaves all other kinds to the caller."""
    try:
        if not path.is_file() or not 0 < path.stat().st_size <= _LARGEST_HELD:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    return _open_bytes(content, str(path))


def _open_bytes(content: bytes, name: str) -> OpenPicture:
    digest = hashlib.blake2b(content, digest_size=20).hexdigest()
    return OpenPicture(digest, lambda: open_image(_NamedBytes(content, name)))


def _open_pixels(image: Image.Image) -> OpenPicture:
    state = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=20)
    state.update(image.tobytes())
    return OpenPicture(state.hexdigest(), lambda: image)


def _open_bad(error: DataError) -> OpenPicture:
    def fail() -> Image.Image:
        raise error

    return OpenPicture(f"unreadable: {error}", fail)


class SplitReader:
    """Reads the pictures of a split; its items are indices."""

    def __init__(self, split: ImageSplit) -> None:
        self.split = split

    def items(self) -> Iterator[PictureItem]:
        """Yield the indices of all pictures."""
        yield from range(len(self.split))

    def open(self, item: PictureItem) -> OpenPicture:
        """Read the picture of one index."""
        assert isinstance(item, int)
        path = self.split.path(item)
        try:
            if isinstance(self.split.source, PackedSource):
                return _open_bytes(self.split.source.read(item), self.split.source.name(item))
            if path is None:
                return _open_pixels(self.split.load(item))
            return _open_file(path) or OpenPicture(
                self.split.digest(item), lambda: self.split.load(item)
            )
        except DataError as error:
            return _open_bad(error)

    def name(self, item: PictureItem) -> str:
        """Return what to call the picture in messages."""
        assert isinstance(item, int)
        return self.split.ids[item]


class ListReader:
    """Reads pictures given as paths or as Pillow images, which may come one by one."""

    def __init__(self, pictures: Iterable[PictureItem]) -> None:
        self._pictures = pictures

    def __getstate__(self) -> dict[str, object]:
        # Items travel inside the jobs; a worker must not hold (or copy) the stream itself.
        return {"_pictures": ()}

    def items(self) -> Iterator[PictureItem]:
        """Yield the paths and images."""
        yield from self._pictures

    def open(self, item: PictureItem) -> OpenPicture:
        """Read one picture."""
        try:
            if isinstance(item, Image.Image):
                return _open_pixels(to_rgb(item))
            if not isinstance(item, str | os.PathLike):
                raise DataError(f"a picture should be a path or a Pillow image, not {item!r}")
            path = Path(item)
            found = _open_file(path)
            if found is None:
                return _open_pixels(open_image(path))  # huge, or an error that says what is wrong
            return found
        except DataError as error:
            return _open_bad(error)

    def name(self, item: PictureItem) -> str:
        """Return what to call the picture in messages."""
        return f"<{type(item).__name__}>" if isinstance(item, Image.Image) else str(item)


PictureReader = SplitReader | ListReader
