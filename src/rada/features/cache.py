"""The feature cache: shards of encoded images on disk, named by all that decides their content.

A shard is one batch of images as the model saw it, in one small safetensors file. Its name is
the hash of the encoder, the transform, the view and the images, so that nothing stale can be
read; files are renamed into place whole, so that any number of processes may share one cache.
Its content carries a checksum; a shard that fails it is computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rada.core.caches import cache_root, delete_unused
from rada.core.errors import CacheError, StorageError
from rada.core.storage import atomic_path
from rada.core.warn import warn

__all__ = ["CacheEntry", "CacheWarning", "EncodedBatch", "FeatureCache", "ShardKey"]

# Part of every key: raise it when the meaning or the layout of a shard changes.
FORMAT = "rada-features-cache-1"
_SHARD = re.compile(r"[0-9a-f]{40}-(\d+)\.safetensors")
_TEMPORARY = re.compile(r"\.[0-9a-f]{40}-\d+\.safetensors\..*\.tmp")
_FOLDER = re.compile(r"[0-9a-f]{32}")
_WAY_OUT = "or set RADA_CACHE to another folder, or go without a cache (--no-cache, cache=False)"
_DAMAGE = (ValueError, TypeError, KeyError, RuntimeError)


class CacheWarning(UserWarning):
    """The cache cannot be used as it is: features are computed again, or are not kept."""


@dataclass(frozen=True)
class ShardKey:
    """Name of a shard: the encoder's folder, the hash of all causes, the number of images."""

    folder: str
    digest: str
    images: int


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of features.

    Attributes:
        features: `(n, D)` float32 of the images that could be read.
        bad: Positions in the batch of those that could not.
    """

    features: Tensor
    bad: tuple[int, ...] = ()


@dataclass(frozen=True)
class CacheEntry:
    """What the cache holds of one encoder, for `rada cache list`.

    Attributes:
        encoder: Name of the encoder.
        fingerprint: Its hash, the name of its folder.
        images: Encoded images, every view counted.
        bytes: Size on disk.
        last_used: Time of the last use, seconds since 1970.
    """

    encoder: str
    fingerprint: str
    images: int
    bytes: int
    last_used: float


class FeatureCache:
    """The cache in one folder; cheap to make, holds nothing open, may be pickled.

    Args:
        root: Its folder; default: `$RADA_CACHE`, or `rada` in the platform's cache directory. Only
            the sub-folder `features` is used.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = FeatureCache(folder)
        ...     cache.list(), cache.clear()
        ([], 0)
    """

    def __init__(self, root: str | Path | None = None) -> None:
        folder = cache_root() if root is None else Path(root).expanduser().absolute()
        self.root = folder / "features"

    def __repr__(self) -> str:
        return f"FeatureCache({str(self.root.parent)!r})"

    def path(self, key: ShardKey) -> Path:
        """Return the file of a shard, whether it exists or not."""
        return self.root / key.folder / f"{key.digest}-{key.images}.safetensors"

    def has(self, key: ShardKey) -> bool:
        """Return whether there is a file for this shard, without reading it."""
        try:
            return self.path(key).is_file()
        except OSError:
            return False  # no permission to look: writing it will say so

    def read(self, key: ShardKey) -> EncodedBatch | None:
        """Return a shard, or None where there is none or none that can be read (with a warning)."""
        path = self.path(key)
        try:
            shard = _read_shard(path, key)
        except FileNotFoundError:
            return None
        except (OSError, *_DAMAGE) as error:
            cause = (getattr(error, "strerror", None) or str(error)).lower()
            warn(
                f"damaged cache file {str(path)!r} ({cause}): its images are encoded again",
                CacheWarning,
                stacklevel=2,
            )
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read has no "last used"
            os.utime(path)
        return shard

    def write(self, key: ShardKey, shard: EncodedBatch, encoder: str) -> None:
        """Write a shard in one step; other processes may write the same one at the same time.

        Args:
            key: Its name.
            shard: Its content.
            encoder: Display name of the encoder, for `list`.

        Raises:
            CacheError: If the cache cannot be written; the message says what to do.
        """
        from safetensors.torch import save

        features = shard.features.contiguous()
        metadata = {
            "format": FORMAT,
            "encoder": encoder,
            "bad": ",".join(map(str, shard.bad)),
            "checksum": _checksum(key, features, shard.bad),
        }
        try:
            with atomic_path(self.path(key)) as temporary:
                temporary.write_bytes(save({"features": features}, metadata=metadata))
        except StorageError as error:
            raise CacheError(f"the feature cache: {error}; {_WAY_OUT}") from error

    def list(self) -> list[CacheEntry]:
        """Return one entry an encoder, the last used first."""
        entries = []
        for folder in _folders(self.root):
            files = [
                (path, status, int(match[1])) for path, status, match in _files(folder, _SHARD)
            ]
            if files:
                newest = max(files, key=lambda file: file[1].st_mtime)
                entries.append(
                    CacheEntry(
                        encoder=_encoder_name(newest[0]),
                        fingerprint=folder.name,
                        images=sum(images for _, _, images in files),
                        bytes=sum(status.st_size for _, status, _ in files),
                        last_used=newest[1].st_mtime,
                    )
                )
        return sorted(entries, key=lambda entry: entry.last_used, reverse=True)

    def clear(self, older_than: float | None = None) -> int:
        """Delete shards, and nothing that is not a file of this cache.

        Args:
            older_than: Keep what was used in the last so many seconds; default: keep nothing.

        Returns:
            Bytes freed.

        Raises:
            CacheError: If a file cannot be deleted.
        """
        freed = 0
        try:
            for folder in _folders(self.root):
                for pattern in (_SHARD, _TEMPORARY):
                    used = ((p, s.st_size, s.st_mtime) for p, s, _ in _files(folder, pattern))
                    freed += delete_unused(used, older_than)
                with contextlib.suppress(OSError):  # something else is in it
                    folder.rmdir()
        except OSError as error:
            raise CacheError(
                f"cannot clear the feature cache {str(self.root)!r}: {error}"
            ) from error
        return freed


def _folders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from (p for p in sorted(root.iterdir()) if _FOLDER.fullmatch(p.name) and p.is_dir())


def _files(
    folder: Path, pattern: re.Pattern[str]
) -> Iterator[tuple[Path, os.stat_result, re.Match[str]]]:
    """Yield the files of a folder whose name matches; others may delete them meanwhile."""
    with os.scandir(folder) as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            if match:
                with contextlib.suppress(FileNotFoundError):
                    yield Path(entry.path), entry.stat(follow_symlinks=False), match


def _encoder_name(path: Path) -> str:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("encoder", "?"))
    except (OSError, *_DAMAGE):
        return "?"


def _read_shard(path: Path, key: ShardKey) -> EncodedBatch:
    """Read and verify a shard; any damage is one of `_DAMAGE`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = path.read_bytes()
    try:
        features = load(content)["features"]
        metadata = _metadata(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    bad = tuple(int(position) for position in metadata["bad"].split(",") if position)
    if metadata["checksum"] != _checksum(key, features, bad):
        raise ValueError("its checksum differs")
    return EncodedBatch(features, bad)


def _metadata(content: bytes) -> dict[str, str]:
    import json

    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return dict(header["__metadata__"])


def _checksum(key: ShardKey, features: Tensor, bad: tuple[int, ...]) -> str:
    if features.dtype is not torch.float32 or features.ndim != 2:
        raise ValueError(f"features are {features.dtype} of shape {tuple(features.shape)}")
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((FORMAT, dataclasses.astuple(key), tuple(features.shape), bad)).encode())
    digest.update(features.numpy().data)
    return digest.hexdigest()
