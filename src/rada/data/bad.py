"""Finding images that cannot be read, before anything is spent on them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rada.core.errors import DataError
from rada.core.progress import track
from rada.core.warn import warn
from rada.data.dataset import ImageSplit, Skipped
from rada.data.sampling import few_shot_indices

__all__ = ["find_bad", "readable_shots", "warn_of_bad", "without_bad"]

MOST_NAMED = 3
"""So many images that were left out are named in a warning."""


def warn_of_bad(
    skipped: Sequence[Sequence[str]], of: str = "images", *, stacklevel: int = 2
) -> None:
    """Count and name images that were left out, if there are any.

    Args:
        skipped: Key and reason of each.
        of: What they are, in the plural.
        stacklevel: As for `warnings.warn`, counted from here.
    """
    if not skipped:
        return
    # Most reasons name the file with its folder.
    named = [
        reason if key in reason else f"{key}: {reason}" for key, reason in skipped[:MOST_NAMED]
    ]
    more = f"; and {len(skipped) - len(named)} more" if len(skipped) > len(named) else ""
    warn(
        f"{len(skipped)} of the {of} {'was' if len(skipped) == 1 else 'were'} left out as unreadable: "
        f"{'; '.join(named)}{more}",
        UserWarning,
        stacklevel=stacklevel,
    )


def find_bad(
    split: ImageSplit,
    indices: Iterable[int] | None = None,
    *,
    name: str = "",
    progress: bool | None = None,
) -> dict[int, Skipped]:
    """Decode images and return those that cannot be read.

    Args:
        split: The images.
        indices: Which of them; all by default.
        name: What the split is called in the result.
        progress: Show a bar; None shows it on a terminal only.

    Returns:
        For each bad image its index, key and reason, in the order of `indices`.

    Example:
        >>> split = ImageSplit.from_files("/nowhere", ["1.jpg"])
        >>> find_bad(split)[0].reason
        "'/nowhere/1.jpg' does not exist"
    """
    chosen = list(range(len(split)) if indices is None else indices)

    def reason(index: int) -> str | None:
        try:
            split.load(index)
        except DataError as error:
            return str(error)
        return None

    # Threads are enough: Pillow decodes outside the interpreter's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        reasons = track(
            threads.map(reason, chosen), "Checking images", total=len(chosen), enabled=progress
        )
        return {
            index: Skipped(name, split.ids[index], found)
            for index, found in zip(chosen, reasons, strict=True)
            if found is not None
        }


def without_bad(
    split: ImageSplit, *, name: str = "", progress: bool | None = None
) -> tuple[ImageSplit, tuple[Skipped, ...]]:
    """Return the images that can be read, and the others with the reason.

    Decodes every image once; where only a few shots are needed, `readable_shots` is quicker.

    Raises:
        DataError: If a class has no image left, or no image is left at all.
    """
    bad = find_bad(split, name=name, progress=progress)
    kept = split.subset(np.setdiff1d(np.arange(len(split)), list(bad)))
    emptied = np.flatnonzero((split.counts() > 0) & (kept.counts() == 0)).tolist()
    if emptied or (bad and not len(kept)):
        of = f" of the class {split.classes[emptied[0]]!r}" if emptied else ""
        raise DataError(f"no image{of} can be read; the first: {next(iter(bad.values())).reason}")
    return kept, tuple(bad.values())


def readable_shots(
    split: ImageSplit,
    shots: int,
    seed: int,
    *,
    allow_fewer: bool = False,
    progress: bool | None = None,
) -> tuple[ImageSplit, tuple[Skipped, ...]]:
    """Draw shots as `few_shot` does, with the next image in place of each that cannot be read.

    Only the images drawn are decoded, however many there are.

    Returns:
        The shots, and the bad images that were met.

    Raises:
        DataError: If a class has too few images that can be read; the message names it.
    """
    left = np.arange(len(split))
    good: set[int] = set()
    skipped: list[Skipped] = []
    while True:
        drawn = few_shot_indices(
            split.labels[left],
            [split.ids[index] for index in left],
            shots,
            seed,
            classes=split.classes,
            allow_fewer=allow_fewer,
        )
        chosen = left[drawn].tolist()
        bad = find_bad(split, [index for index in chosen if index not in good], progress=progress)
        if not bad:
            return split.subset(chosen), tuple(skipped)
        good.update(index for index in chosen if index not in bad)
        skipped += bad.values()
        left = np.setdiff1d(left, list(bad))
