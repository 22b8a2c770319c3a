"""Opening pictures: the only place of the package where a picture file is decoded."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import warnings
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rada.core.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "open_image", "to_rgb"]

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tif .tiff"
    " .webp".split()
)
"""File name endings, in lower case, that count as pictures when a folder is listed."""

MAX_PIXELS = 2**28
"""Most pixels that are decoded: 268 million, 0.8 GB as RGB; enough for 40,000 x 6,700."""

# A short list on purpose: other Pillow plugins start programs (EPS) or accept nearly any bytes (TGA).
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_DRAFT_PIXELS = 2**25  # JPEGs larger than this are decoded at 1/2, 1/4 or 1/8 of their size
_DRAFT_SHORT_SIDE = 448  # ... as long as the short side keeps twice what encoders look at
_MAX_ASPECT = 1000  # a 40,000 x 1 strip resized to 224 rows would take 6 GB


class _QuietPillow:
    """Silence Pillow's warnings and its own bomb limit; may be entered by many threads at once.

    Both are global to the process, so the first to enter changes them and the last to leave restores
    them. The limit on pixels is checked here instead, where it can name the file and its size.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._limit: int | None = None
        self._catcher: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                self._catcher = warnings.catch_warnings()
                self._catcher.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0 and self._catcher is not None:
                Image.MAX_IMAGE_PIXELS = self._limit
                self._catcher.__exit__(None, None, None)


_quiet_pillow = _QuietPillow()


def open_image(
    source: str | os.PathLike[str] | BinaryIO, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Open one picture, decode it fully and return it as RGB.

    The first frame of an animation is taken, the EXIF rotation applied, transparency composited on
    white, and 16-bit, 32-bit and float grey scaled to 8 bits. JPEGs above 33 million pixels are decoded
    at 1/2, 1/4 or 1/8 of their size. Of a strip longer than 1000 times its width, the middle is kept.

    Args:
        source: A path, or a binary file that can seek.
        max_pixels: Most pixels to decode.

    Returns:
        A picture of mode RGB, without any link to the file.

    Raises:
        DataError: If there is no such file, or it is no picture, is truncated, has no pixels or more
            than `max_pixels`; the message names it.

    Example:
        >>> import io
        >>> buffer = io.BytesIO()
        >>> Image.new("LA", (4, 2), (0, 0)).save(buffer, "PNG")
        >>> picture = open_image(buffer)
        >>> picture.mode, picture.size, picture.getpixel((0, 0))
        ('RGB', (4, 2), (255, 255, 255))
    """
    name = _name(source)
    try:
        if isinstance(source, str | os.PathLike):
            _check_file(Path(source), name)
            with Path(source).open("rb") as stream:
                return _decode(stream, name, max_pixels)
        source.seek(0)
        return _decode(source, name, max_pixels)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name} is not a picture that can be read; the formats are {', '.join(_FORMATS)}"
        ) from error
    except MemoryError as error:
        raise DataError(f"{name} does not fit into memory; make it smaller") from error
    # Damaged files make Pillow's plugins raise nearly anything: struct.error, SyntaxError, KeyError.
    except Exception as error:
        raise DataError(f"{name} cannot be read as a picture: {error}") from error


def _name(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return repr(os.fsdecode(source))
    return repr(getattr(source, "name", None) or "the picture")


def _check_file(path: Path, name: str) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{name} is a folder, not a picture")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise DataError(f"{name} is not a regular file")
    if status.st_size == 0:
        raise DataError(f"{name} is empty (0 bytes)")


def _decode(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    with _quiet_pillow, Image.open(stream, formats=_FORMATS) as image:
        if min(image.size) < 1:
            raise DataError(f"{name} has no pixels: its size is {image.width} x {image.height}")
        full = image.size
        # A progressive JPEG keeps all coefficients of the full size in memory, whatever the draft.
        if image.format in ("JPEG", "MPO") and not image.info.get("progressive"):
            _draft(image, max_pixels)
        if image.width * image.height > max_pixels:
            raise DataError(
                f"{name} is {full[0]} x {full[1]} pixels, more than the {max_pixels} that are decoded; "
                "make it smaller"
            )
        image.load()
        _turn_upright(image)
        return _limit_aspect(to_rgb(image))


def _draft(image: Image.Image, max_pixels: int) -> None:
    """Have libjpeg decode a huge JPEG at a fraction of its size, which saves memory and time."""
    width, height = image.size
    factor = 1
    while factor < 8:
        pixels, short = width * height // factor**2, min(width, height) // factor
        if pixels <= min(_DRAFT_PIXELS, max_pixels):
            break
        if pixels <= max_pixels and short < 2 * _DRAFT_SHORT_SIDE:
            break
        factor *= 2
    if factor > 1:
        image.draft(None, (max(1, width // factor), max(1, height // factor)))


def _turn_upright(image: Image.Image) -> None:
    # In place: a copy would not know its format and tags, which say how many bits grey has. A
    # damaged EXIF block says nothing about the pixels, which were decoded well.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _limit_aspect(image: Image.Image) -> Image.Image:
    width, height = image.size
    limit = _MAX_ASPECT * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded picture of any mode to RGB.

    Args:
        image: The picture; transparency is composited on white, and grey of more than 8 bits scaled.

    Returns:
        A picture of mode RGB; `image` itself is never changed.

    Example:
        >>> to_rgb(Image.fromarray(np.full((1, 1), 65535, dtype=np.uint16))).getpixel((0, 0))
        (255, 255, 255)
    """
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of more than 8 bits; Pillow's own conversion clips it at 255."""
    values = np.asarray(image).astype(np.float32)
    finite = np.isfinite(values)
    low, high = (
        (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0, 0)
    )
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        low, high = 0, 2 ** _bits(image) - 1
    elif low >= 0:  # int or float: 0..1, 0..255 and 0..65535 are what people store
        sizes = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        low, high = 0, next((size for size in sizes if high <= size), high)
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (
        255 / max(high - low, 1e-12)
    )
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _bits(image: Image.Image) -> int:
    """Bits a sample: 16, or what a TIFF says (microscopes write 12)."""
    bits = getattr(image, "tag_v2", {}).get(258, (16,))
    first = bits[0] if isinstance(bits, tuple) and bits else bits
    return int(first) if first in range(9, 17) else 16
