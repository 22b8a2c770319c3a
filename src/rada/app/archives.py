"""Images out of a zip archive that may come from anybody: nothing is extracted by its name."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from rada.core.errors import DataError
from rada.data.images import IMAGE_SUFFIXES

__all__ = ["archived_images", "is_archive"]

MOST_RATIO = 100
"""An archive that grows more than so many times is a bomb: images hardly shrink in one."""
_SMALL = 1 << 20
_ENTRIES_PER_IMAGE = 10


def is_archive(start: bytes) -> bool:
    """Whether a file that starts so is a zip archive."""
    return start[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def archived_images(
    path: Path, *, max_images: int, max_file: int, max_total: int
) -> Iterator[tuple[str, bytes | str]]:
    """Yield the images of an archive, one at a time.

    The whole archive is refused before anything is read where its directory says that it would be too much.
    What is read is bounded again, since a directory may lie.

    Args:
        path: The archive.
        max_images: Most images; ten times as many entries may be in the archive.
        max_file: Most bytes of one file.
        max_total: Most bytes of all of them.

    Yields:
        Name and content of each image; a string in place of the content says why there is none.

    Raises:
        DataError: If it is damaged, names places outside itself, or would grow too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check(entries, path.stat().st_size, max_images, max_total)
            total = 0
            for entry in entries:
                if not _is_image(entry):
                    continue
                if entry.flag_bits & 1:
                    yield entry.filename, "it is encrypted"
                    continue
                if entry.file_size > max_file:
                    yield entry.filename, f"it has more than {max_file / 1e6:.0f} MB"
                    continue
                content = _content(archive, entry, max_file)
                if isinstance(content, bytes):
                    total += len(content)
                    if total > max_total:
                        raise DataError(
                            f"the archive has more than {max_total / 1e6:.0f} MB of images"
                        )
                yield entry.filename, content
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the zip archive cannot be read: {error}") from error


def _check(entries: list[zipfile.ZipInfo], size: int, max_images: int, max_total: int) -> None:
    if len(entries) > _ENTRIES_PER_IMAGE * max_images:
        raise DataError(f"the archive has {len(entries):,} entries, too many")
    for entry in entries:
        if _leads_out(entry.filename):
            raise DataError(f"the archive names a place outside itself, {entry.filename[:80]!r}")
    total = sum(entry.file_size for entry in entries)
    if total > max_total:
        raise DataError(
            f"the archive would grow to {total / 1e6:,.0f} MB; {max_total / 1e6:,.0f} MB are allowed"
        )
    if total > _SMALL and total > MOST_RATIO * size:
        raise DataError(f"the archive would grow to {total // max(size, 1):,} times its size")


def _leads_out(name: str) -> bool:
    r"""Whether a name is no plain place below the archive.

    Example:
        >>> [_leads_out(name) for name in ("a/b.png", "../b.png", "/b.png", "C:/b.png", "a\\..\\b.png")]
        [False, True, True, True, True]
    """
    places = (PurePosixPath(name), PureWindowsPath(name))
    return (
        any(place.anchor or ".." in place.parts for place in places)
        or PureWindowsPath(name).drive != ""
    )


def _is_image(entry: zipfile.ZipInfo) -> bool:
    place = PurePosixPath(entry.filename)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in place.parts)
    return not entry.is_dir() and not hidden and place.suffix.lower() in IMAGE_SUFFIXES


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, max_file: int) -> bytes | str:
    try:
        with archive.open(entry) as stream:
            content = stream.read(max_file + 1)
    except Exception as error:  # zlib, lzma and bz2 have errors of their own
        return f"it is damaged: {error}"
    return content if len(content) <= max_file else f"it has more than {max_file / 1e6:.0f} MB"
