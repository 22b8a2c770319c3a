"""Images without labels: files and folders that somebody wants predictions for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rada.core.errors import DataError
from rada.core.network import refuse_other_urls
from rada.data.dataset import ImageSplit
from rada.data.scan import list_images, warn_of_skipped

__all__ = ["expand_images", "open_images"]


def expand_images(path: str | Path) -> Iterator[Path]:
    """Yield a file itself, or the images below a folder in natural order.

    Raises:
        DataError: If the path does not exist or the folder holds no image.
    """
    refuse_other_urls(str(path))
    place = Path(path).expanduser()
    if place.is_dir():
        skipped: list[str] = []
        names = list_images(place, skipped=skipped)
        warn_of_skipped(place, skipped)
        if not names:
            raise DataError(f"the folder {str(path)!r} holds no image")
        yield from (place / name for name in names)
    elif place.exists():
        yield place
    else:
        raise DataError(f"there is no file or folder {str(path)!r}")


def open_images(paths: Iterable[str | Path]) -> ImageSplit:
    """Return files, and the images below folders, as a split without labels.

    Raises:
        DataError: If a path does not exist, a folder holds no image, or there is nothing.
    """
    found = [str(image) for path in paths for image in expand_images(path)]
    if not found:
        raise DataError("there are no images to open")
    return ImageSplit.from_files(".", found)
