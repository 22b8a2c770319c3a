"""Opening images: the only place of the package where an image file is decoded."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import stat
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rada.core.errors import DataError, RadaError
from rada.core.extras import is_installed, needed_for
from rada.core.network import fetch, is_web_url, refuse_other_urls
from rada.data.arrays import image_from_array, is_array

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    ImageLike = (
        str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.generic] | Tensor
    )

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "ImageLike", "open_image", "to_rgb"]

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .heic .heif .hif .j2k .jfif .jp2 .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm"
    " .ppm .tif .tiff .webp".split()
)
"""File name endings, in lower case, that count as images when a folder is listed."""

MAX_PIXELS = 2**28
"""Most pixels that are decoded: 268 million, 0.8 GB as RGB; enough for 40,000 x 6,700."""

# A short list on purpose: other Pillow plugins start programs (EPS) or accept nearly any bytes (TGA).
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_LARGE = 2**25  # images of more pixels are taken at 1/2, 1/4 or 1/8 of their size
_SHORT_SIDE = 448  # ... as long as the short side keeps twice what encoders look at
_PHOTO = 3264 * 2448  # "8 megapixels": smaller JPEGs are decoded whole, which takes little time
_STRIP = 2**22  # pixels that are converted at once of a large image
_LARGEST_DOWNLOAD = 1 << 28  # bytes
_ACCEPTED = (
    "a path, a URL, the bytes of an image file, a binary file object, a Pillow image, a numpy array "
    "(H, W) or (H, W, C), or a torch tensor (C, H, W)"
)
_ORIENTATION = 0x0112
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
    source: ImageLike, *, max_pixels: int = MAX_PIXELS, shorter_side: int | None = None
) -> Image.Image:
    """Open one image, decode it fully and return it as RGB, the same from a file and from memory.

    The first frame of an animation is taken, the EXIF rotation applied, transparency composited on
    white, and 16-bit, 32-bit and float grey scaled to 8 bits. Above 33 million pixels it is taken at
    1/2, 1/4 or 1/8 of its size. Of a strip longer than 1000 times its width, the middle is kept.

    Args:
        source: A path, an http or https URL, the bytes of an image file, a binary file object, a
            Pillow image, or an array: numpy `(H, W)` or `(H, W, C)`, torch `(C, H, W)`, see
            `rada.data.arrays.image_from_array` for the ranges of values.
        max_pixels: Most pixels to decode.
        shorter_side: What the shorter side is going to be resized to. A JPEG of 8 megapixels or more is then
            decoded at 1/2, 1/4 or 1/8 of its size, as long as twice that is left, in a fraction of the time
            and with pixels that differ a little; None decodes it whole.

    Returns:
        An image of mode RGB, without any link to the file; `source` itself is never changed.

    Raises:
        DataError: If there is no such file, or it is no image, is truncated, has no pixels or more
            than `max_pixels`; the message names it.

    Example:
        >>> import io
        >>> buffer = io.BytesIO()
        >>> Image.new("LA", (4, 2), (0, 0)).save(buffer, "PNG")
        >>> image = open_image(buffer)
        >>> image.mode, image.size, image.getpixel((0, 0))
        ('RGB', (4, 2), (255, 255, 255))
        >>> open_image(np.zeros((2, 4, 3), np.uint8)).size
        (4, 2)
    """
    name = _name(source)
    try:
        return _open(source, name, _Limits(max_pixels, shorter_side))
    except RadaError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name} is not an image that can be read; the formats are {', '.join(_FORMATS)}"
        ) from error
    except MemoryError as error:
        raise DataError(f"{name} does not fit into memory; make it smaller") from error
    # Damaged files make Pillow's plugins raise nearly anything: struct.error, SyntaxError, KeyError.
    except Exception as error:
        raise DataError(f"{name} cannot be read as an image: {error}") from error


class _Limits(NamedTuple):
    """How much of an image is decoded: the most pixels, and what its shorter side is resized to."""

    pixels: int
    shorter_side: int | None = None


def _open(source: Any, name: str, limits: _Limits) -> Image.Image:
    if isinstance(source, Image.Image):
        with _quiet_pillow:
            return _finish(source, name, limits.pixels)
    if is_array(source):
        return _finish(image_from_array(source, name), name, limits.pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), name, limits)
    if isinstance(source, str) and is_web_url(source):
        return _decode(io.BytesIO(fetch(source, limit=_LARGEST_DOWNLOAD)), name, limits)
    if isinstance(source, str | os.PathLike):
        refuse_other_urls(os.fspath(source))
        _check_file(Path(source), name)
        with Path(source).open("rb") as stream:
            return _decode(stream, name, limits)
    if not hasattr(source, "read"):
        raise DataError(f"an image should be {_ACCEPTED}, not {_shown(source)}")
    if not (hasattr(source, "seekable") and source.seekable()):
        return _decode(io.BytesIO(source.read()), name, limits)
    source.seek(0)
    return _decode(source, name, limits)


def _shown(value: object) -> str:
    return f"{repr(value)[:60]} ({type(value).__name__})"


def _name(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return repr(os.fsdecode(source))
    named = getattr(source, "name", None) or getattr(source, "filename", None)
    return repr(named or "the image")


def _check_file(path: Path, name: str) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{name} is a folder, not an image")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise DataError(f"{name} is not a regular file")
    if status.st_size == 0:
        raise DataError(f"{name} is empty (0 bytes)")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the formats that are read; Pillow itself does not bring HEIF, which phones write."""
    if is_installed("pillow_heif"):
        _register_heif()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _register_heif() -> None:
    with needed_for("reading a HEIC image"):
        import pillow_heif

    pillow_heif.register_heif_opener()


def _decode(stream: BinaryIO | io.BytesIO, name: str, limits: _Limits) -> Image.Image:
    formats = _formats()
    start = stream.read(12)
    stream.seek(0)
    if start[4:8] == b"ftyp" and "HEIF" not in formats and start[8:12] not in (b"avif", b"avis"):
        _register_heif()
    with _quiet_pillow, Image.open(stream, formats=formats) as image:
        full, part = image.size, None
        # A progressive JPEG keeps all coefficients of the full size in memory, whatever the draft.
        progressive = bool(image.info.get("progressive"))
        if image.format in ("JPEG", "MPO"):
            if limits.shorter_side and not (progressive and math.prod(full) > _LARGE):
                part = _enough(full, limits.shorter_side)
            if part is not None:
                image.draft(None, (full[0] // part[0], full[1] // part[0]))
            elif not progressive:
                _draft(image, limits.pixels)
        return _finish(image, name, limits.pixels, full, part and part[1])


def _finish(
    image: Image.Image,
    name: str,
    max_pixels: int,
    full: tuple[int, int] | None = None,
    kept: tuple[int, int] | None = None,
) -> Image.Image:
    """Make an opened image, decoded or not, upright RGB of a bounded size.

    Args:
        image: The image.
        name: What to call it.
        max_pixels: The most pixels.
        full: Width and height before it was decoded at a fraction of its size.
        kept: Width and height to keep of it, from the left and the top; None for all.
    """
    width, height = full or image.size
    if min(image.size) < 1:
        raise DataError(f"{name} has no pixels: its size is {width} x {height}")
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise DataError(
            f"{name} is {width} x {height} pixels, more than the {max_pixels} that are decoded; "
            "make it smaller"
        )
    with _one_at_a_time() if pixels > _LARGE else contextlib.nullcontext():
        image.load()
        rgb = to_rgb(image) if pixels <= _LARGE else _shrunk(image)
    if kept is not None:
        rgb = rgb.crop((0, 0, *kept))
    return _limit_aspect(_upright(rgb, image))


def _fraction(width: int, height: int, most: int) -> int:
    """Return by what to divide the sides of a large image: 1, 2, 4 or 8.

    Args:
        width: Its width.
        height: Its height.
        most: Pixels that it must not exceed, even if the short side becomes shorter than encoders
            like.
    """
    factor = 1
    while factor < 8:
        pixels, short = width * height // factor**2, min(width, height) // factor
        if pixels <= min(_LARGE, most):
            break
        if pixels <= most and short < 2 * _SHORT_SIDE:
            break
        factor *= 2
    return factor


def _enough(full: tuple[int, int], length: int) -> tuple[int, tuple[int, int]] | None:
    """Return by what to divide the sides of a JPEG whose shorter side is going to be resized, if at all.

    Twice the length is left, and the other side comes out as long as it would from the whole image: one
    pixel less would move the crop around the centre.

    Args:
        full: Width and height.
        length: What the shorter side is resized to.

    Returns:
        The factor, and the width and height to keep of what libjpeg makes, which rounds up.
    """
    if full[0] * full[1] < _PHOTO:
        return None
    for factor in (8, 4, 2):
        for sides in ([round(side / factor) for side in full], [side // factor for side in full]):
            width, height = sides
            if min(sides) >= 2 * length and _longer(sides, length) == _longer(full, length):
                return factor, (width, height)
    return None


def _longer(sides: Sequence[int], length: int) -> int:
    """Return what the longer side becomes where the shorter one is resized to a length."""
    return length * max(sides) // min(sides)


def _draft(image: Image.Image, max_pixels: int) -> None:
    """Have libjpeg decode a huge JPEG at a fraction of its size, which saves memory and time."""
    width, height = image.size
    factor = _fraction(width, height, max_pixels)
    if factor > 1:
        image.draft(None, (max(1, width // factor), max(1, height // factor)))


def _shrunk(image: Image.Image) -> Image.Image:
    """Convert a large decoded image to a fraction of its size, strip by strip.

    Whole, a copy of each step would be as large again as the decoded image.
    """
    factor = _fraction(*image.size, 2 * _LARGE)
    grey = _grey_range(image) if _is_deep(image) else None
    rows = factor * max(1, _STRIP // (image.width * factor))
    result = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = to_rgb(image.crop((0, top, image.width, bottom)), grey)
        result.paste(strip.reduce(factor), (0, top // factor))
    return result


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let the processes and threads of a user decode large images one by one.

    Each takes a gigabyte for a moment, and there may be as many workers as cores. The lock is the
    operating system's, so that a worker that is killed gives it back.
    """
    from filelock import FileLock

    user = os.getuid() if hasattr(os, "getuid") else 0
    lock = FileLock(Path(tempfile.gettempdir()) / f"rada-{user}-large-image.lock")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a temporary folder that cannot be written
            held.enter_context(lock)
        yield


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    """Turn the RGB form of an image as the tags of the image say."""
    # A damaged EXIF block says nothing about the pixels, which were decoded well.
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(_ORIENTATION, 1)
        if orientation != 1:
            rgb.info.clear()  # tags in other forms, which `exif_transpose` would rewrite
            rgb.getexif()[_ORIENTATION] = orientation
            ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _limit_aspect(image: Image.Image) -> Image.Image:
    width, height = image.size
    limit = _MAX_ASPECT * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))


def to_rgb(image: Image.Image, grey: tuple[float, float] | None = None) -> Image.Image:
    """Convert a decoded image of any mode to RGB.

    Args:
        image: The image; transparency is composited on white, and grey of more than 8 bits scaled.
        grey: What is black and white in grey of more than 8 bits; None finds it out.

    Returns:
        An image of mode RGB; `image` itself is never changed.

    Example:
        >>> to_rgb(Image.fromarray(np.full((1, 1), 65535, dtype=np.uint16))).getpixel((0, 0))
        (255, 255, 255)
    """
    if _is_deep(image):
        image = _eight_bits(image, *(grey or _grey_range(image)))
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def _grey_range(image: Image.Image) -> tuple[float, float]:
    """Return what is black and what is white in grey of more than 8 bits."""
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        return 0, 2 ** _bits(image) - 1
    values = np.asarray(image)
    if image.mode == "F":
        values = values[np.isfinite(values)]
    if not values.size:
        return 0, 0
    low, high = float(values.min()), float(values.max())
    if low >= 0:  # int or float: 0..1, 0..255 and 0..65535 are what people store
        sizes = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        return 0, next((size for size in sizes if high <= size), high)
    return low, high


def _eight_bits(image: Image.Image, low: float, high: float) -> Image.Image:
    """Scale grey of more than 8 bits; Pillow's own conversion clips it at 255."""
    values = np.asarray(image).astype(np.float32)
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (
        255 / max(high - low, 1e-12)
    )
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _bits(image: Image.Image) -> int:
    """Bits a sample: 16, or what a TIFF says (microscopes write 12)."""
    bits = getattr(image, "tag_v2", {}).get(258, (16,))
    first = bits[0] if isinstance(bits, tuple) and bits else bits
    return int(first) if first in range(9, 17) else 16
