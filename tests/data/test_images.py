"""Every kind of image that people have opens as RGB; every bad one is named."""

from __future__ import annotations

import io
import multiprocessing
import os
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import filelock
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from data.images import draw
from rada.core.errors import DataError
from rada.data import images
from rada.data.images import MAX_PIXELS, open_image, to_rgb


def near(pixel: object, expected: tuple[int, int, int], tolerance: int = 2) -> bool:
    return bool(np.abs(np.subtract(pixel, expected)).max() <= tolerance)


# -- the good kinds ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "color", "expected", "suffix"),
    [
        ("RGB", (10, 200, 30), (10, 200, 30), "png"),
        ("L", 70, (70, 70, 70), "png"),
        ("1", 1, (255, 255, 255), "png"),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255), "jpg"),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255), "tif"),
        ("YCbCr", (255, 128, 128), (255, 255, 255), "jpg"),
        ("LAB", (255, 128, 128), (255, 255, 255), "tif"),
        ("LA", (0, 0), (255, 255, 255), "png"),
        ("LA", (80, 255), (80, 80, 80), "png"),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255), "png"),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127), "webp"),
        ("RGBA", (0, 0, 255, 0), (255, 255, 255), "gif"),
    ],
)
def test_modes(
    tmp_path: Path, mode: str, color: object, expected: tuple[int, int, int], suffix: str
) -> None:
    path = tmp_path / f"one.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.new(mode, (9, 7), color).save(path, **options)  # type: ignore[arg-type]
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (9, 7))
    assert near(image.getpixel((4, 3)), expected)


def test_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    for name, transparency in (("index.png", 0), ("bytes.png", b"\x00\xff"), ("index.gif", 0)):
        palette.save(tmp_path / name, transparency=transparency)
        image = open_image(tmp_path / name)
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((1, 0)) == (0, 255, 0)


@pytest.mark.parametrize(("mode", "key"), [("L", 9), ("RGB", (9, 9, 9))])
def test_a_transparent_color_lies_on_white(tmp_path: Path, mode: str, key: object) -> None:
    Image.new(mode, (2, 2), key).save(tmp_path / "key.png", transparency=key)  # type: ignore[arg-type]
    assert open_image(tmp_path / "key.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.ppm", "deep.jp2"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(ramp).save(tmp_path / name)
    shown = np.asarray(open_image(tmp_path / name))[..., 0]
    np.testing.assert_array_equal(shown, ramp // 257)


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, dtype=np.uint16)).save(tmp_path / "dark.png")
    assert open_image(tmp_path / "dark.png").getpixel((0, 0)) == (1, 1, 1)


def test_12_bits_of_a_microscope(tmp_path: Path) -> None:
    """A TIFF of 12 bits a sample: two samples in three bytes; 4095 is white."""
    tags = [(256, 2), (257, 2), (258, 12), (259, 1), (262, 1), (273, 200), (277, 1), (278, 2)]
    tags.append((279, 6))
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    path = tmp_path / "twelve.tif"
    path.write_bytes(header.ljust(200, b"\0") + bytes([0xFF, 0xFF, 0xFF, 0x00, 0x08, 0x00]))
    shown = np.asarray(open_image(path))[..., 0]
    assert shown[0].tolist() == [255, 255]
    assert shown[1, 0] == 0 and shown[1, 1] in (127, 128, 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([np.nan, 0.5, np.inf], [0, 128, 255]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
        ([0.0, 5e5, 1e6], [0, 128, 255]),
    ],
)
def test_float_grey(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    if np.isnan(values[0]) and np.isfinite(values[1]):
        values = [0.0 if np.isnan(value) else value for value in values[:2]] + [1.0]
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "f.tif")
    shown = np.asarray(open_image(tmp_path / "f.tif"))[0, :, 0]
    assert np.abs(shown.astype(int) - expected).max() <= 1


def test_not_a_number_does_not_spread(tmp_path: Path) -> None:
    pixels = np.array([[np.nan, 0.0, 1.0, np.inf]], dtype=np.float32)
    Image.fromarray(pixels).save(tmp_path / "f.tif")
    assert np.asarray(open_image(tmp_path / "f.tif"))[0, :, 0].tolist() == [0, 0, 255, 255]


def test_32_bit_integers(tmp_path: Path) -> None:
    for values, expected in (([0, 255], [0, 255]), ([0, 65535], [0, 255]), ([-5, 5], [0, 255])):
        Image.fromarray(np.array([values], dtype=np.int32)).save(tmp_path / "i.tif")
        assert np.asarray(open_image(tmp_path / "i.tif"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("name", ["moving.gif", "moving.png", "moving.webp", "moving.tif"])
def test_the_first_frame_of_an_animation(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (6, 6), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if name.endswith("webp") else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert near(open_image(tmp_path / name).getpixel((3, 3)), (255, 0, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_rotation(tmp_path: Path, orientation: int, suffix: str) -> None:
    """An image stored under any of the eight orientations looks the same."""
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste("white", (0, 0, 16, 8))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that the reader inverts
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / f"turned.{suffix}", exif=exif)
    image = open_image(tmp_path / f"turned.{suffix}")
    assert image.size == (32, 16)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(upright)).max() < 60


def test_a_damaged_exif_block_does_not_matter(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "e.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_image(tmp_path / "e.jpg").size == (8, 8)


@pytest.mark.parametrize("name", ["wide.png", "wide.jpg", "wide.tif"])
def test_40000_pixels_wide(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (40_000, 50), "red").save(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(tmp_path / name).size == (40_000, 50)


def test_the_limit_is_ours_not_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (3_000, 1_000)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(tmp_path / "big.png").size == (3_000, 1_000)
    assert Image.MAX_IMAGE_PIXELS == 1_000


def test_a_huge_jpeg_is_decoded_smaller(tmp_path: Path) -> None:
    Image.new("L", (40_000, 2_000), 128).save(tmp_path / "huge.jpg")
    image = open_image(tmp_path / "huge.jpg")
    assert image.size == (20_000, 1_000) and near(image.getpixel((9, 9)), (128, 128, 128))


def test_a_thread_of_pixels_keeps_its_middle(tmp_path: Path) -> None:
    strip = Image.new("RGB", (40_000, 1), "red")
    strip.paste("blue", (19_000, 0, 21_000, 1))
    strip.save(tmp_path / "strip.png")
    image = open_image(tmp_path / "strip.png")
    assert image.size == (1_000, 1) and image.getpixel((500, 0)) == (0, 0, 255)


def test_sources(tmp_path: Path) -> None:
    path = draw(tmp_path / "one.png")
    expected = np.asarray(Image.open(path))
    with path.open("rb") as stream:
        for source in (path, str(path), io.BytesIO(path.read_bytes()), stream):
            np.testing.assert_array_equal(np.asarray(open_image(source)), expected)


def test_to_rgb_leaves_its_argument_alone() -> None:
    image = Image.new("RGB", (2, 2), "red")
    to_rgb(image).putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == (255, 0, 0)


# -- large ones ----------------------------------------------------------------------------------


MODES = {
    "RGB": lambda: noise((300, 250, 3)),
    "L": lambda: noise((300, 250)),
    "RGBA": lambda: noise((300, 250, 4)),
    "LA": lambda: noise((300, 250, 2)),
    "I;16": lambda: noise((300, 250)).astype(np.uint16) * 257,
    "F": lambda: noise((300, 250)).astype(np.float32) * 3 - 100,
    "I": lambda: noise((300, 250)).astype(np.int32) * 1000,
}


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("mode", [*MODES, "P"])
def test_a_large_image_is_shrunk_in_strips(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    """Strip by strip it is what the whole would be, at a quarter of the size."""
    if mode == "P":
        image = Image.fromarray(noise((300, 250, 3))).quantize(32)
        image.info["transparency"] = 3
    else:
        image = Image.fromarray(MODES[mode](), "LA" if mode == "LA" else None)
    assert image.mode == mode
    expected = to_rgb(image).reduce(4)
    monkeypatch.setattr(images, "_LARGE", 300 * 250 // 16)
    monkeypatch.setattr(images, "_SHORT_SIDE", 16)
    monkeypatch.setattr(images, "_STRIP", 250 * 20)
    assert np.array_equal(np.asarray(open_image(image)), np.asarray(expected))


def test_a_large_image_in_a_file_and_turned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(noise((300, 250, 3))).save(tmp_path / "large.png", exif=exif)
    whole = open_image(tmp_path / "large.png")
    monkeypatch.setattr(images, "_LARGE", 300 * 250 // 4)
    monkeypatch.setattr(images, "_SHORT_SIDE", 16)
    half = open_image(tmp_path / "large.png")
    assert half.size == (150, 125)
    difference = np.asarray(half).astype(int) - np.asarray(whole.reduce(2))
    assert np.abs(difference).max() <= 1


def hold_the_lock(ready: object, done: object) -> None:
    with images._one_at_a_time():
        ready.set()  # type: ignore[attr-defined]
        done.wait(60)  # type: ignore[attr-defined]


@pytest.mark.parametrize("killed", [False, True])
def test_large_images_are_decoded_one_by_one_over_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, killed: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold_the_lock, args=(ready, done))
    other.start()
    assert ready.wait(60)
    small = Image.new("RGB", (10, 10))
    assert open_image(small).size == (10, 10)  # is not kept waiting
    monkeypatch.setattr(images, "_LARGE", 50)
    opened: list[Image.Image] = []
    thread = threading.Thread(target=lambda: opened.append(open_image(small)))
    thread.start()
    thread.join(0.5)
    assert not opened
    if killed:
        other.kill()
    else:
        done.set()
    thread.join(30)
    assert len(opened) == 1
    other.join()


def test_without_a_place_for_the_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent" / "deeper"))
    monkeypatch.setattr(images, "_LARGE", 50)
    with mock.patch.object(filelock.FileLock, "acquire", side_effect=PermissionError(13, "no")):
        assert open_image(Image.new("RGB", (10, 10))).size == (10, 10)


def test_heic_of_a_phone(tmp_path: Path) -> None:
    pillow_heif.register_heif_opener()
    upright = Image.new("RGB", (64, 32), "black")
    upright.paste("white", (0, 0, 32, 16))
    upright.save(tmp_path / "one.HEIC")
    pixels = np.asarray(open_image(tmp_path / "one.HEIC")).astype(int)
    assert pixels.shape == (32, 64, 3)
    assert np.abs(pixels - np.asarray(upright)).mean() < 10
    (tmp_path / "half.heic").write_bytes((tmp_path / "one.HEIC").read_bytes()[:200])
    with pytest.raises(DataError, match=r"half\.heic"):
        open_image(tmp_path / "half.heic")


# -- the bad kinds -------------------------------------------------------------------------------


def png_of_size(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("zero.jpg", b"", "empty"),
        ("text.png", b"hello, I am no image", "not an image"),
        ("head.jpg", b"\xff\xd8\xff\xe0", "image"),
        ("none.png", png_of_size(0, 0), "none.png"),
        ("none.gif", b"GIF89a\0\0\0\0\0\0\0;", "none.gif"),
        ("none.ppm", b"P6 0 0 255\n", "none.ppm"),
        ("bomb.png", png_of_size(60_000, 60_000), "60000 x 60000"),
        ("lying.png", png_of_size(64, 64, zlib.compress(b"\0" * 100)), "lying.png"),
        ("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_bad_content_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif", "bmp"])
def test_truncated_images_are_named(tmp_path: Path, suffix: str) -> None:
    whole = draw(tmp_path / f"whole.{suffix}", size=(64, 64)).read_bytes()
    path = tmp_path / f"half.{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="half"):
        open_image(path)


def test_a_huge_progressive_jpeg_is_refused(tmp_path: Path) -> None:
    """Its coefficients would need memory for the full size, also when decoded at an eighth."""
    Image.new("L", (2_000, 2_000)).save(tmp_path / "p.jpg", progressive=True)
    with pytest.raises(DataError, match="2000 x 2000 pixels"):
        open_image(tmp_path / "p.jpg", max_pixels=1_000_000)
    Image.new("L", (2_000, 2_000)).save(tmp_path / "b.jpg")
    assert open_image(tmp_path / "b.jpg", max_pixels=1_000_000).size == (1_000, 1_000)


def test_places_without_an_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_image(tmp_path / "absent.png")
    with pytest.raises(DataError, match="is a folder"):
        open_image(tmp_path)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(DataError, match=r"loop\.png"):
        open_image(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="not a regular file"):
        open_image(tmp_path / "pipe.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = draw(tmp_path / "secret.png")
    path.chmod(0)
    with pytest.raises(DataError, match="Permission"):
        open_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp", "ppm"])
def test_flipped_bytes_never_raise_anything_else(tmp_path: Path, suffix: str) -> None:
    whole = np.frombuffer(draw(tmp_path / f"a.{suffix}").read_bytes(), dtype=np.uint8)
    generator = np.random.default_rng(0)
    for _ in range(40):
        damaged = whole.copy()
        places = generator.integers(0, len(whole), 4)
        damaged[places] = generator.integers(0, 256, 4)
        try:
            image = open_image(io.BytesIO(damaged.tobytes()), max_pixels=10**6)
        except DataError:
            continue
        assert image.mode == "RGB"


# -- the process around --------------------------------------------------------------------------


def test_pillows_globals_are_restored(tmp_path: Path) -> None:
    path = draw(tmp_path / "one.png")
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    open_image(path)
    with pytest.raises(DataError):
        open_image(io.BytesIO(b"nothing"))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(open_image, [path] * 100))
    assert limit == Image.MAX_IMAGE_PIXELS and filters == list(warnings.filters)
    assert threading.active_count() >= 1 and (limit or 0) < MAX_PIXELS


def test_opening_images_does_not_import_torch() -> None:
    code = "import sys, rada.data.images; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
