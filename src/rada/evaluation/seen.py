"""Which images a model was trained on, so that an evaluation on them is said to be one."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from rada.data import ImageSplit
from rada.data.sources import PackedSource, id_bytes
from rada.features import Features

__all__ = ["MOST_KEYS", "image_keys", "remembered", "seen_images"]

MOST_KEYS = 4096
"""Most images that are remembered: the smallest hashes, which tell an overlap just as well."""


def image_keys(found: ImageSplit | Features) -> list[str]:
    """Return a hash of the place of each image, or of its features; no path can be read from it."""
    return [hashlib.blake2b(key, digest_size=8).hexdigest() for key in _places(found)]


def _places(found: ImageSplit | Features) -> Iterable[bytes]:
    if isinstance(found, Features):
        return (row.tobytes() for row in found.plain().numpy())
    real = functools.cache(os.path.realpath)  # of folders, which are few
    source = found.source

    def place(index: int) -> str:
        path = found.path(index)
        if path is not None:
            return str(Path(real(path.parent)) / path.name)
        return source.name(index) if isinstance(source, PackedSource) else found.ids[index]

    return (id_bytes(place(index)) for index in range(len(found)))


def remembered(keys: Iterable[str]) -> list[str]:
    """Return the keys to keep with a model."""
    return sorted(set(keys))[:MOST_KEYS]


def seen_images(found: ImageSplit | Features, kept: object) -> int:
    """Return how many images of an evaluation are among those that a model remembers.

    Args:
        found: The images, or their features. A model remembers the places of its images, or their
            features where it was given no images; either is looked for, as far as it is known.
        kept: What `remembered` returned, from a file that anybody may have written.
    """
    if not isinstance(kept, list) or not kept:
        return 0
    known = {key for key in kept if isinstance(key, str)}
    keys = [image_keys(found)]
    if isinstance(found, Features) and found.images is not None:
        keys.append(image_keys(found.images))
    return sum(not known.isdisjoint(of_one) for of_one in zip(*keys, strict=True))
