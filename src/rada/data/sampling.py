"""Few-shot sampling that depends on the seed and the images' keys alone."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rada.core.errors import DataError
from rada.core.values import check_count, check_seed
from rada.data.dataset import ImageSplit
from rada.data.sources import id_bytes

__all__ = ["drawn_order", "few_shot", "few_shot_indices"]


def few_shot_indices(
    labels: NDArray[np.int64],
    ids: Sequence[str],
    shots: int,
    seed: int,
    *,
    classes: Sequence[str],
    allow_fewer: bool = False,
) -> NDArray[np.int64]:
    """Draw images of each class.

    The images of a class are ranked by a hash of the seed and their keys, and the first `shots`
    are taken. So the draw depends neither on the order of the images nor on the other
    classes, and 4 shots contain the 2 shots of the same seed.

    Args:
        labels: `(N,)`; -1 is never drawn.
        ids: N stable keys.
        shots: Images a class.
        seed: Chooses the images.
        classes: K names, for messages.
        allow_fewer: Whether a class may have fewer; it then gives all it has.

    Returns:
        Indices in ascending order of label, then of rank.

    Raises:
        DataError: If `shots` is below 1 or a class has too few images; the message names it.
        ConfigError: If the seed is out of range.

    Example:
        >>> few_shot_indices(np.array([0, 1, 0, 1]), "abcd", 1, 7, classes=["x", "y"]).shape
        (2,)
    """
    shots, seed = check_count(shots, "shots", error=DataError), check_seed(seed)
    if not (labels >= 0).any():
        raise DataError("there are no labelled images to draw shots from")
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    lacking = [f"{classes[k]!r} has {counts[k]}" for k in np.flatnonzero(counts < shots).tolist()]
    if lacking and not allow_fewer:
        more = "" if len(lacking) <= 5 else f" and {len(lacking) - 5} more classes"
        raise DataError(
            f"{shots} shots need {shots} images of every class, but {', '.join(lacking[:5])}{more}: "
            "add images, ask for fewer shots, or go on with what there is "
            "(--allow-fewer, allow_fewer=True)"
        )
    labelled = np.flatnonzero(labels >= 0)
    ranks = b"".join(_rank(seed, ids[int(index)]) for index in labelled)
    high, low = np.frombuffer(ranks, dtype=">u8").reshape(-1, 2).T
    order = labelled[np.lexsort((low, high, labels[labelled]))]  # by class, then by rank
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[place < shots]


def _rank(seed: int, key: str) -> bytes:
    # File systems spell the same accented name in two ways; the draw should not change with the disk.
    return hashlib.blake2b(
        f"{seed}/".encode() + id_bytes(unicodedata.normalize("NFC", key)), digest_size=16
    ).digest()


def drawn_order(ids: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Return all images in an order that depends on the seed and their keys alone.

    Data sets lie on disks class by class, which no stream of images does.

    Args:
        ids: N stable keys.
        seed: Chooses the order.

    Example:
        >>> sorted(drawn_order("abc", 1).tolist())
        [0, 1, 2]
    """
    ranks = [_rank(check_seed(seed), key) for key in ids]
    return np.array(sorted(range(len(ranks)), key=ranks.__getitem__), dtype=np.int64)


def few_shot(split: ImageSplit, shots: int, seed: int, *, allow_fewer: bool = False) -> ImageSplit:
    """Return `shots` images of each class; see `few_shot_indices`.

    Raises:
        DataError: If a class has too few images; the message names it.

    Example:
        >>> split = ImageSplit.from_files(".", ["1.jpg", "2.jpg"], labels=[0, 0], classes=["cat"])
        >>> len(few_shot(split, 1, seed=3))
        1
    """
    indices = few_shot_indices(
        split.labels, split.ids, shots, seed, classes=split.classes, allow_fewer=allow_fewer
    )
    return split.subset(indices)
