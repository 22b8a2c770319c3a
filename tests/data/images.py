"""Tiny real image files for the tests of data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (12, 8)) -> Path:
    """Write an image of noise, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def draw_folder(root: Path, counts: Mapping[str, int]) -> Path:
    """Write `counts` images into each sub-folder of `root`."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            draw(
                root / folder / f"{number}.png",
                seed=crc32(f"{folder}/{number}".encode(errors="surrogateescape")),
            )
    return root
