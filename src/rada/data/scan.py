"""Listing images in folders, in an order that does not depend on the file system."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rada.core.errors import DataError
from rada.core.warn import warn
from rada.data.images import IMAGE_SUFFIXES

__all__ = [
    "has_images",
    "is_folder",
    "is_image",
    "list_folders",
    "list_images",
    "natural_key",
    "warn_of_skipped",
]

# Images of formats that are not read; other files are nobody's images.
_OTHER_IMAGES = frozenset(
    ".arw .cr2 .cr3 .dng .eps .exr .hdr .heics .heifs .ico .jxl .nef .orf .pcx .psd .raf .raw .rw2 .svg"
    " .tga .xcf".split()
)

_DIGITS = re.compile(r"(\d+)")


def is_folder(spec: str) -> bool:
    """Return whether a text is the path of a folder; never raises, whatever the text.

    Example:
        >>> is_folder("."), is_folder("~nobody/x"), is_folder("x" * 9999)
        (True, False, False)
    """
    return os.path.isdir(os.path.expanduser(spec))  # noqa: PTH111, PTH112


def natural_key(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Return a sorting key that counts: `2` comes before `10`.

    Example:
        >>> sorted(["img10", "img2", "img1"], key=natural_key)
        ['img1', 'img2', 'img10']
    """
    parts: list[str | tuple[int, str]] = list(_DIGITS.split(name))
    # The longer number is the larger; int() refuses numbers of thousands of digits.
    numbers = [str(part).lstrip("0") for part in parts[1::2]]
    parts[1::2] = [(len(number), number) for number in numbers]
    return parts, name  # the name itself breaks ties such as 1 and 01


def is_image(name: str) -> bool:
    """Return whether a file name ends like an image's and is not hidden.

    Example:
        >>> is_image("a.JPG"), is_image("._a.jpg"), is_image("notes.txt")
        (True, False, False)
    """
    return not _hidden(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


# What systems and programs put into folders of their own accord, some with thumbnails in it.
_LITTER = frozenset(
    ("__MACOSX", "__pycache__", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _LITTER


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not _hidden(entry.name)]
    except FileNotFoundError as error:
        raise DataError(f"the folder {str(folder)!r} does not exist") from error
    except OSError as error:
        raise DataError(f"the folder {str(folder)!r} cannot be read: {error.strerror}") from error
    return sorted(visible, key=lambda entry: natural_key(entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def list_folders(folder: Path) -> list[str]:
    """Return the names of the visible sub-folders in natural order.

    Raises:
        DataError: If `folder` does not exist or cannot be read.
    """
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def list_images(
    folder: Path, *, recursive: bool = True, skipped: list[str] | None = None
) -> list[str]:
    """Return the images below a folder, as paths relative to it with `/`, in natural order.

    Hidden files and folders and files that are no images by their name are left out. Links are
    followed, loops of links are not.

    Args:
        folder: The folder.
        recursive: Whether to look into sub-folders.
        skipped: Takes the images of formats that are not read; see `warn_of_skipped`.

    Raises:
        DataError: If `folder` does not exist or cannot be read.
    """
    return list(_walk(folder, "", recursive, (), skipped))


def warn_of_skipped(folder: Path, skipped: Sequence[str]) -> None:
    """Say which images below a folder are left out, if there are any."""
    if skipped:
        kinds = Counter(os.path.splitext(name)[1].lower() for name in skipped)  # noqa: PTH122
        shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        warn(
            f"{len(skipped)} images in {str(folder)!r} are left out, since their format is not read "
            f"({shown}; the first is {skipped[0]!r}): convert them to JPEG or PNG",
            UserWarning,
            stacklevel=3,
        )


def has_images(folder: Path) -> bool:
    """Return whether any image lies below a folder; stops at the first.

    Raises:
        DataError: If `folder` does not exist or cannot be read.
    """
    return next(_walk(folder, "", True, (), None), None) is not None


def _walk(
    folder: Path, prefix: str, recursive: bool, above: tuple[str, ...], skipped: list[str] | None
) -> Iterator[str]:
    here = os.path.realpath(folder)
    if here in above:
        return
    folders = []
    for entry in _entries(folder):
        if _is_folder(entry):
            folders.append(entry.name)
        elif is_image(entry.name):
            yield prefix + entry.name
        elif skipped is not None and os.path.splitext(entry.name)[1].lower() in _OTHER_IMAGES:  # noqa: PTH122
            skipped.append(prefix + entry.name)
    for name in folders if recursive else ():
        yield from _walk(folder / name, f"{prefix}{name}/", recursive, (*above, here), skipped)
