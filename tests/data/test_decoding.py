"""Large JPEGs at a fraction of their size: the same image, upright, and never where it is not allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rada.data import images
from rada.data.images import open_image
from rada.encoders import EvalTransform


def scene(width: int, height: int) -> Image.Image:
    """Draw something that is another thing when it is turned or moved, with detail at every scale."""
    rng = np.random.default_rng(0)
    rows = sum(
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            ),
            dtype=np.float32,
        )
        for side in (3, 20, 150)
    )
    return Image.fromarray((rows / 3).astype(np.uint8))


PLAIN = EvalTransform((224, 224), 256, (0.5,) * 3, (0.5,) * 3)


def differs(path: Path) -> float:
    """Return how far the pixels for an encoder are from those of the whole image, of 255 levels."""
    whole, part = PLAIN(open_image(path)), PLAIN(open_image(path, shorter_side=256))
    return float((whole - part).abs().mean()) * 127.5


@pytest.mark.parametrize("progressive", [False, True])
def test_a_photo_is_decoded_at_a_quarter(tmp_path: Path, progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    scene(3264, 2448).save(path, quality=92, progressive=progressive)
    assert open_image(path).size == (3264, 2448)
    assert open_image(path, shorter_side=256).size == (816, 612)
    assert open_image(path.read_bytes(), shorter_side=224).size == (816, 612)
    assert open_image(path, shorter_side=400).size == (1632, 1224)
    assert open_image(path, shorter_side=1300).size == (3264, 2448)
    assert differs(path) < 1.2


@pytest.mark.parametrize("size", [(3311, 2477), (2477, 3311), (4001, 2003)])
def test_sides_that_are_no_multiple_do_not_move_the_crop(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """libjpeg rounds sides up: where that makes the result a pixel wider, all of the crop moves."""
    path = tmp_path / "a.jpg"
    scene(*size).save(path, quality=92)
    found = open_image(path, shorter_side=256)
    assert 512 <= min(found.size) <= 1004
    assert differs(path) < 1.2
    short, long = sorted(size)
    assert 256 * max(found.size) // min(found.size) == 256 * long // short


def test_orientation(tmp_path: Path) -> None:
    drawn = scene(3264, 2448)
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}.jpg"
        exif = Image.Exif()
        exif[0x0112] = orientation
        drawn.save(path, quality=92, exif=exif)
        expected = (816, 612) if orientation < 5 else (612, 816)
        assert open_image(path, shorter_side=256).size == expected
        assert differs(path) < 1.2


def test_what_is_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small.jpg"
    scene(3200, 2400).save(small)
    assert open_image(small, shorter_side=64).size == (3200, 2400)
    monkeypatch.setattr(images, "_PHOTO", 0)
    for suffix in ("png", "webp"):
        path = tmp_path / f"a.{suffix}"
        scene(600, 600).save(path)
        assert open_image(path, shorter_side=64).size == (600, 600)
    assert open_image(scene(600, 600), shorter_side=64).size == (600, 600)
    # A progressive file of more pixels than are held at once has to be taken apart by strips.
    path = tmp_path / "b.jpg"
    scene(600, 600).save(path, progressive=True)
    assert open_image(path, shorter_side=64).size == (150, 150)
    monkeypatch.setattr(images, "_LARGE", 600 * 599)
    assert open_image(path, shorter_side=64).size != (150, 150)
