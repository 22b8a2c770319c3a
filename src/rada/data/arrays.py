"""Arrays as images: numpy `(H, W, C)` and torch `(C, H, W)`, with documented ranges of values."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rada.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["image_from_array", "is_array", "is_tensor"]

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def is_tensor(value: object) -> bool:
    """Return whether a value is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_array(value: object) -> bool:
    """Return whether a value is a numpy array or a torch tensor.

    Example:
        >>> is_array(np.zeros(3)), is_array([0.0])
        (True, False)
    """
    return isinstance(value, np.ndarray) or is_tensor(value)


def image_from_array(array: Any, name: str = "the image") -> Image.Image:
    """Turn an array into a Pillow image of 8 bits.

    Args:
        array: numpy `(H, W)` or `(H, W, C)`, or a torch tensor `(H, W)` or `(C, H, W)`, of 1 (grey),
            3 (RGB) or 4 (RGBA) channels, numpy also of 2 (grey and alpha). uint8 and other integers
            are 0 to 255, uint16 is 0 to 65535, floats are 0 to 1, booleans black and white.
        name: What to call it in messages.

    Raises:
        DataError: If the shape or the values are others; values are never clipped or guessed at.

    Example:
        >>> image_from_array(np.full((2, 4), 0.5)).getpixel((0, 0))
        128
    """
    values = _channels_last(array, name)
    if not values.size:
        raise DataError(f"{name} has no pixels: its shape is {tuple(array.shape)}")
    pixels = _bytes(values, name)
    return Image.fromarray(np.ascontiguousarray(pixels), _MODES[values.shape[2]])


def _channels_last(array: Any, name: str) -> NDArray[Any]:
    """Return `(H, W, C)`."""
    shape = tuple(array.shape)
    if is_tensor(array):
        if array.ndim not in (2, 3) or (array.ndim == 3 and shape[0] not in (1, 3, 4)):
            last = array.ndim == 3 and shape[2] in _MODES
            hint = "; turn it with .permute(2, 0, 1)" if last else ""
            raise DataError(
                f"{name} is a tensor of shape {shape}, but an image is (H, W) or (C, H, W) with 1, 3 "
                f"or 4 channels{hint}"
            )
        values = array.detach().cpu()
        if values.is_floating_point():
            values = values.float()  # numpy has no bfloat16
        found: NDArray[Any] = values.numpy()
        return found[..., None] if found.ndim == 2 else found.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in _MODES):
        first = array.ndim == 3 and shape[0] in _MODES
        hint = "; turn it with .transpose(1, 2, 0)" if first else ""
        raise DataError(
            f"{name} is an array of shape {shape}, but an image is (H, W) or (H, W, C) with 1 to 4 "
            f"channels{hint}"
        )
    return np.asarray(array[..., None] if array.ndim == 2 else array)


def _bytes(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Return `(H, W)` or `(H, W, C)` of 8 bits."""
    if values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise DataError(f"{name} is an array of {values.dtype}, but pixels are numbers")
    top = {"f": 1.0}.get(values.dtype.kind, 65535.0 if values.dtype == np.uint16 else 255.0)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= top):
        raise DataError(
            f"{name} has values from {low:.6g} to {high:.6g}, but {values.dtype} should be 0 to "
            f"{top:g}{_range_hint(values, low, high)}"
        )
    scaled: NDArray[np.float32] = np.rint(values.astype(np.float32) * np.float32(255 / top))
    return scaled.astype(np.uint8)


def _range_hint(values: NDArray[Any], low: float, high: float) -> str:
    if values.dtype.kind != "f":
        return ": convert it to uint8, or to uint16 where 65535 is white"
    if low >= 0 and high <= 255:
        return ": divide by 255, or convert to uint8"
    return ": give the image as it was before it was normalised; the encoder does that itself"
