"""One pass over the headers of a tar shard: which samples it holds, and where their images lie.

The convention is WebDataset's: the files of a sample follow each other and have the same key, which
is the path up to the first dot of the file name; what follows the dot says what a file is.
"""

from __future__ import annotations

import io
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rada.core.errors import DataError
from rada.core.warn import warn
from rada.data.images import IMAGE_SUFFIXES
from rada.data.shards.sample_labels import LABEL_SUFFIXES, LARGEST_LABEL, Fault, read_label

__all__ = ["ENTRY", "ShardIndex", "scan_tar"]

ENTRY = np.dtype(
    [
        ("offset", "<i8"),  # of the image's bytes in the shard
        ("size", "<i8"),
        ("name", "<i8"),  # where its name begins in the table of names
        ("length", "<i4"),  # of its name
        ("shard", "<i4"),
        ("fault", "u1"),  # 0 for a good sample, else a `Fault`
    ]
)
"""What is known of one sample, 33 bytes."""

_BLOCK = tarfile.BLOCKSIZE
_LARGEST_HEADER = 1 << 20  # long names and extended headers; real ones have a few hundred bytes
_PREFERRED = ("jpg", "jpeg", "png", "webp")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of one shard, in its order.

    Attributes:
        entries: (N,) of `ENTRY`.
        names: (B,) uint8, the names of the images' members, one behind the other.
        numbers: (N,) int64, the label if it is a number, else -1.
        texts: (N,) int32, the place of the class name in `words`, or -1 if the sample says none.
        words: The class names that samples say.
    """

    entries: NDArray[np.void]
    names: NDArray[np.uint8]
    numbers: NDArray[np.int64]
    texts: NDArray[np.int32]
    words: tuple[str, ...]


class _Image(NamedTuple):
    suffix: str
    offset: int
    size: int
    name: str


@dataclass
class _Sample:
    key: str
    duplicate: bool
    suffixes: set[str] = field(default_factory=set)
    images: list[_Image] = field(default_factory=list)
    labels: dict[str, bytes] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)


class _Bounded:
    """The stream that `tarfile` reads headers from; refuses what only hostile headers ask for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes for a name")
        return self._stream.read(size)


def scan_tar(path: Path) -> ShardIndex:
    """Read the headers and labels of a shard; images are not touched.

    Samples that cannot be used are in the result too, with their fault.

    Args:
        path: The shard, an uncompressed tar.

    Raises:
        DataError: If it cannot be opened, is no tar, is compressed, damaged, or holds no sample.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with tarfile.open(Path(folder) / "a.tar", "w") as shard:
        ...         for name, content in (("1.jpg", b"..."), ("1.cls", b"7")):
        ...             member = tarfile.TarInfo(name)
        ...             member.size = len(content)
        ...             shard.addfile(member, io.BytesIO(content))
        ...     scan_tar(Path(folder) / "a.tar").numbers.tolist()
        [7]
    """
    rows = _Rows()
    try:
        with path.open("rb") as stream:
            for sample in _samples(path, stream):
                rows.add(sample)
    except FileNotFoundError as error:
        raise DataError(f"the shard {str(path)!r} does not exist") from error
    except OSError as error:
        raise DataError(
            f"the shard {str(path)!r} cannot be read: {error.strerror or error}"
        ) from error
    if not len(rows.numbers):
        raise DataError(
            f"the shard {str(path)!r} holds no samples: it should have images (1.jpg) and their "
            "labels (1.cls); write it again or remove it"
        )
    return rows.finish()


def _samples(path: Path, stream: BinaryIO) -> Iterator[_Sample]:
    """Group the members by their keys; files of no use make no sample."""
    sample: _Sample | None = None
    seen: set[str] = set()
    for member in _members(path, stream):
        key, suffix = _take_apart(member.name)
        is_image = "." + suffix.rpartition(".")[2] in IMAGE_SUFFIXES
        if not key or not (is_image or suffix in LABEL_SUFFIXES):
            continue
        if sample is None or key != sample.key or suffix in sample.suffixes:
            if sample is not None:
                yield sample
                seen.add(sample.key)
            sample = _Sample(key, key in seen)
        sample.suffixes.add(suffix)
        if not member.isreg() or member.issparse():
            sample.links.append(member.name)
        elif is_image:
            sample.images.append(_Image(suffix, member.offset_data, member.size, member.name))
        else:
            stream.seek(member.offset_data)
            # One byte too many tells a file that is too long.
            sample.labels[suffix] = stream.read(min(member.size, LARGEST_LABEL + 1))
    if sample is not None:
        yield sample


def _take_apart(name: str) -> tuple[str, str]:
    """Return key and lower-case suffix; no key for hidden files and WebDataset's own (`__x__`)."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not stem or (stem.startswith("__") and stem.endswith("__")) or "__MACOSX" in folder:
        return "", ""
    return folder + slash + stem, suffix.lower()


def _members(path: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield all members but folders and devices.

    `tarfile` itself takes a damaged header for the end of the archive and follows negative sizes
    backwards, so the walk from header to header is done here.

    Raises:
        DataError: If a header is damaged or a file reaches behind the end of the shard.
    """
    size = stream.seek(0, io.SEEK_END)
    archive = _open(path, stream, size)
    position = 0
    while True:
        stream.seek(position)
        block = stream.read(_BLOCK)
        if not block:
            warn(
                f"the shard {str(path)!r} ends without the mark of its end: if it was cut off, copy or "
                "write it again",
                UserWarning,
                stacklevel=2,
            )
            return
        if block.count(0) == _BLOCK:
            return
        stream.seek(position)
        try:
            member = tarfile.TarInfo.fromtarfile(archive)
        except (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError) as error:
            raise _damaged(path, position, str(error)) from error
        if member.size < 0 or archive.offset <= position:
            raise _damaged(path, position, f"{member.name[:80]!r} claims {member.size} bytes")
        if not member.issparse() and archive.offset > size:
            raise _damaged(
                path,
                position,
                f"{member.name[:80]!r} claims {member.size} bytes, but the shard ends after {size}",
            )
        position = archive.offset
        if member.isreg() or member.issym() or member.islnk():
            yield member


def _damaged(path: Path, position: int, cause: str) -> DataError:
    return DataError(
        f"the shard {str(path)!r} is damaged or cut off at byte {position} ({cause}): copy or write it "
        "again"
    )


def _open(path: Path, stream: BinaryIO, size: int) -> tarfile.TarFile:
    stream.seek(0)
    start = stream.read(8)
    stream.seek(0)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"the shard {str(path)!r} is compressed ({name}), so images cannot be read one by "
                "one: unpack it to a plain .tar, images are compressed anyway"
            )
    try:
        return tarfile.TarFile(fileobj=_Bounded(stream))  # type: ignore[arg-type]
    except (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError) as error:
        what = "is empty (0 bytes)" if not size else f"is not a tar file ({error})"
        raise DataError(f"the shard {str(path)!r} {what}: copy or write it again") from error


class _Rows:
    """Collects samples in compact arrays: a shard may hold a million."""

    def __init__(self) -> None:
        self.offsets, self.sizes, self.starts = array("q"), array("q"), array("q")
        self.lengths, self.faults = array("i"), array("B")
        self.numbers, self.texts = array("q"), array("i")
        self.names = bytearray()
        self.words: dict[str, int] = {}

    def add(self, sample: _Sample) -> None:
        image, fault = _image(sample)
        number, text, label_fault = read_label(sample.labels)
        name = (image.name if image else sample.key).encode("utf-8", "surrogateescape")
        self.offsets.append(image.offset if image else 0)
        self.sizes.append(image.size if image else 0)
        self.starts.append(len(self.names))
        self.lengths.append(len(name))
        self.names += name
        self.faults.append(fault or label_fault)
        self.numbers.append(number)
        self.texts.append(-1 if text is None else self.words.setdefault(text, len(self.words)))

    def finish(self) -> ShardIndex:
        entries = np.zeros(len(self.numbers), ENTRY)
        columns = (self.offsets, self.sizes, self.starts, self.lengths, self.faults)
        for name, column in zip(
            ("offset", "size", "name", "length", "fault"), columns, strict=True
        ):
            entries[name] = column
        return ShardIndex(
            entries,
            np.frombuffer(bytes(self.names), np.uint8),
            np.array(self.numbers, np.int64),
            np.array(self.texts, np.int32),
            tuple(self.words),
        )


def _image(sample: _Sample) -> tuple[_Image | None, int]:
    """Return the image of a sample: `.jpg` and its like first, else the only one there is."""
    if sample.duplicate:
        return sample.images[0] if sample.images else None, Fault.DUPLICATE
    if not sample.images:
        return None, Fault.LINK if sample.links else Fault.NO_IMAGE
    plain = {image.suffix: image for image in sample.images}
    for suffix in _PREFERRED:
        if suffix in plain:
            return plain[suffix], 0
    return sample.images[0], Fault.SEVERAL if len(sample.images) > 1 else 0
