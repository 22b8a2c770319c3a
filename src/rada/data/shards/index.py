"""Images in tar shards, read at random: an index of each shard, kept in the cache."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rada.core.caches import cache_root
from rada.core.errors import DataError, StorageError
from rada.core.progress import track
from rada.core.storage import atomic_path
from rada.core.warn import warn
from rada.data.images import open_image
from rada.data.shards.sample_labels import FAULTS
from rada.data.shards.tar_scan import ENTRY, ShardIndex, scan_tar
from rada.data.sources import id_bytes

__all__ = ["Shard", "ShardSource", "index_shards", "shard_folder"]

# Raise it when the layout or the meaning of an index changes.
_FORMAT = "rada-shard-index-1"
_LARGEST_IMAGE = 1 << 30
_DAMAGE = (ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile)


def shard_folder(kind: str) -> Path:
    """Return the folder of the cache for what belongs to shards: "index" or "copies"."""
    return cache_root() / "shards" / kind


@dataclass(frozen=True)
class Shard:
    """One tar file as it was when it was indexed.

    Attributes:
        path: Where it is.
        id: What its images' keys begin with.
        size: Its bytes.
        mtime: When it was changed last, in nanoseconds since 1970.
    """

    path: Path
    id: str
    size: int
    mtime: int

    @classmethod
    def at(cls, path: Path, key: str) -> Shard:
        """Look at a shard.

        Raises:
            DataError: If it is no file that can be read.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"the shard {str(path)!r} cannot be read: {error.strerror or error}"
            ) from error
        if not path.is_file():
            raise DataError(f"the shard {str(path)!r} is not a regular file")
        return cls(path, key, status.st_size, status.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the shard; opens it anew, so nothing is shared by threads or processes.

        Raises:
            DataError: If it has changed since it was indexed, or cannot be read.
        """
        try:
            with self.path.open("rb", buffering=0) as stream:
                status = os.fstat(stream.fileno())
                if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime):
                    raise DataError(
                        f"the shard {str(self.path)!r} was changed after it had been indexed: start again"
                    )
                stream.seek(offset)
                content = bytearray()
                while len(content) < size:  # one read gives 2 GiB at most, on some disks less
                    part = stream.read(size - len(content))
                    if not part:
                        raise DataError(f"the shard {str(self.path)!r} is cut off: copy it again")
                    content += part
        except OSError as error:
            raise DataError(
                f"the shard {str(self.path)!r} cannot be read: {error.strerror or error}"
            ) from error
        return bytes(content)


class _Named(io.BytesIO):
    """The bytes of an image, with its name for messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


@dataclass(frozen=True, eq=False)
class ShardSource:
    """Images in tar shards; holds no open file, so it may be pickled and used by threads.

    Attributes:
        shards: The shards.
        entries: (N,) of `rada.data.shards.tar_scan.ENTRY`.
        names: (B,) uint8, the names that the entries point into.
    """

    shards: tuple[Shard, ...]
    entries: NDArray[np.void]
    names: NDArray[np.uint8]

    @classmethod
    def join(cls, shards: Iterable[Shard], indexes: Iterable[ShardIndex]) -> ShardSource:
        """Put the samples of several shards one behind the other."""
        parts, names, start = [], [], 0
        for number, index in enumerate(indexes):
            entries = index.entries.copy()
            entries["shard"] = number
            entries["name"] += start
            start += len(index.names)
            parts.append(entries)
            names.append(index.names)
        return cls(tuple(shards), np.concatenate(parts), np.concatenate(names))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "ids"}

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """Stable key of each image: `shard/member`."""
        names = self.names.tobytes()
        starts = self.entries["name"].tolist()
        stops = (self.entries["name"] + self.entries["length"]).tolist()
        heads = [shard.id + "/" for shard in self.shards]
        return tuple(
            heads[shard] + names[start:stop].decode("utf-8", "surrogateescape")
            for shard, start, stop in zip(
                self.entries["shard"].tolist(), starts, stops, strict=True
            )
        )

    def __len__(self) -> int:
        return len(self.entries)

    def _key(self, index: int) -> str:
        entry = self.entries[index]
        start = int(entry["name"])
        name = self.names[start : start + int(entry["length"])].tobytes()
        return f"{self.shards[int(entry['shard'])].id}/{name.decode('utf-8', 'surrogateescape')}"

    def name(self, index: int) -> str:
        """Return what to call an image in messages: the path of the shard and the member."""
        shard = self.shards[int(self.entries[index]["shard"])]
        return f"{shard.path}: {self._key(index)[len(shard.id) + 1 :]}"

    def path(self, index: int) -> None:
        """Return None: such images have no file of their own."""
        return None

    def read(self, index: int) -> bytes:
        """Return the bytes of one image's file.

        Raises:
            DataError: If the sample has none, or the shard cannot be read or has changed.
        """
        entry = self.entries[index]
        size = int(entry["size"])
        if entry["fault"]:
            raise DataError(self.explain(index))
        if not 0 < size <= _LARGEST_IMAGE:
            what = "is empty (0 bytes)" if not size else f"has {size} bytes, too many for an image"
            raise DataError(f"{self.name(index)!r} {what}")
        return self.shards[int(entry["shard"])].read(int(entry["offset"]), size)

    def load(self, index: int) -> Image.Image:
        """Return one image as RGB."""
        return open_image(_Named(self.read(index), self.name(index)))

    def digest(self, index: int) -> str:
        """Return a hash of the bytes of one image's file."""
        return hashlib.blake2b(self.read(index), digest_size=20).hexdigest()

    def missing(self) -> list[int]:
        """Return the indices of the samples that cannot be used; `explain` says why."""
        found: list[int] = np.flatnonzero(self.entries["fault"]).tolist()
        return found

    def explain(self, index: int) -> str:
        """Return what is wrong with one of the missing samples."""
        shard = self.shards[int(self.entries[index]["shard"])]
        member = self._key(index)[len(shard.id) + 1 :]
        fault = FAULTS[int(self.entries[index]["fault"])]
        return f"the sample {member!r} of {str(shard.path)!r} {fault}"

    def with_faults(self, rows: NDArray[np.bool_], fault: int) -> ShardSource:
        """Return the same images, some of which cannot be used either."""
        entries = self.entries.copy()
        entries["fault"][rows] = fault
        return dataclasses.replace(self, entries=entries)

    def take(self, rows: NDArray[np.int64]) -> ShardSource:
        """Return the images at `rows`."""
        entries = self.entries[rows]
        names = self.names
        if 2 * int(entries["length"].sum()) < len(names):  # a small part should be small
            starts, lengths = entries["name"].tolist(), entries["length"].tolist()
            parts = [
                names[start : start + length].tobytes()
                for start, length in zip(starts, lengths, strict=True)
            ]
            entries["name"] = np.cumsum([0, *lengths], dtype=np.int64)[:-1]
            names = np.frombuffer(b"".join(parts), np.uint8)
        return dataclasses.replace(self, entries=entries, names=names)


def index_shards(shards: Iterable[Shard], *, progress: bool | None = None) -> list[ShardIndex]:
    """Return the index of each shard, from the cache where the shard has not changed since.

    Args:
        shards: The shards.
        progress: Whether to show a bar; None shows it on a terminal.

    Raises:
        DataError: If a shard is damaged or holds no sample.
    """
    found = list(shards)
    return [
        _index(shard) for shard in track(found, "Indexing shards", enabled=progress, unit="shards")
    ]


def _index(shard: Shard) -> ShardIndex:
    name = hashlib.blake2b(id_bytes(str(shard.path.absolute())), digest_size=16).hexdigest()
    path = shard_folder("index") / f"{name}.npz"
    stamp = json.dumps([_FORMAT, shard.size, shard.mtime]).encode()
    try:
        return _load(path, stamp, shard)
    except (OSError, *_DAMAGE):  # not there, of an older shard, or damaged
        index = scan_tar(shard.path)
    try:
        _save(path, stamp, index)
    except StorageError as error:
        # Opening takes longer the next time; nothing else is lost.
        warn(f"the index of a shard was not kept: {error}", stacklevel=2)
    return index


def _save(path: Path, stamp: bytes, index: ShardIndex) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            facts=np.frombuffer(stamp, np.uint8),
            entries=index.entries,
            names=index.names,
            numbers=index.numbers,
            texts=index.texts,
            words=np.frombuffer(json.dumps(index.words).encode(), np.uint8),
        )


def _load(path: Path, stamp: bytes, shard: Shard) -> ShardIndex:
    """Read an index; anything that does not fit the shard is one of `_DAMAGE`."""
    with np.load(path, allow_pickle=False) as stored:
        if stored["facts"].tobytes() != stamp:
            raise ValueError("it is of another shard")
        words = tuple(json.loads(stored["words"].tobytes()))
        index = ShardIndex(
            stored["entries"], stored["names"], stored["numbers"], stored["texts"], words
        )
    entries = index.entries
    if entries.dtype != ENTRY or not len(entries) == len(index.numbers) == len(index.texts) > 0:
        raise ValueError("it is damaged")
    ends = entries["offset"] + entries["size"], entries["name"] + entries["length"]
    if ends[0].max() > shard.size or ends[1].max() > len(index.names):
        raise ValueError("it is damaged")
    if index.texts.max() >= len(words) or not all(isinstance(word, str) for word in words):
        raise ValueError("it is damaged")
    return index
