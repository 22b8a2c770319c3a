"""The one identity of a set of images: what they show, not what they are called."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

from rada.core.errors import DataError
from rada.core.progress import track
from rada.data.dataset import ImageSplit
from rada.data.sources import id_bytes

__all__ = ["data_identity"]


def data_identity(split: ImageSplit, *, progress: bool | None = False) -> str:
    """Return a hash of the class names, labels, keys and contents of images, in order.

    Every file is read, but not decoded. Files that were replaced under the same names give another
    identity; so do other keys, which choose the shots and the random views.

    Args:
        split: The images.
        progress: Show a bar; None shows it on a terminal only.

    Example:
        >>> empty = ImageSplit.from_files(".", [], classes=["cat", "dog"])
        >>> data_identity(empty) == data_identity(empty.rename(["dog", "cat"]))
        False
    """

    def digest(index: int) -> bytes:
        try:
            return split.digest(index).encode()
        except DataError:  # an image that is skipped, or refused by whoever decodes it
            return b"unreadable"

    state = hashlib.blake2b(digest_size=16)
    for name in split.classes:
        state.update(id_bytes(name) + b"\0")
    state.update(split.labels.astype("<i8").tobytes())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        found = threads.map(digest, range(len(split)))
        contents = track(found, "Reading images", total=len(split), enabled=progress)
        for key, content in zip(split.ids, contents, strict=True):
            state.update(id_bytes(key) + b"\0" + content + b"\0")
    return state.hexdigest()
