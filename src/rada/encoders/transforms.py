"""Image to pixels: evaluation and training transforms that can be pickled and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rada.core.errors import EncoderError
from rada.core.extras import needed_for

if TYPE_CHECKING:
    from PIL.Image import Image
    from torchvision.transforms import Compose

__all__ = ["EvalTransform", "TrainTransform", "height_width"]


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side, crop the centre, normalise.

    The fields are everything that decides the pixels, so `repr` identifies the transform.

    Attributes:
        size: Height and width of the result.
        resize: Length of the shorter side before the crop.
        mean: Mean per channel.
        std: Standard deviation per channel.
        interpolation: "nearest", "bilinear", "bicubic", "box", "hamming" or "lanczos".

    Example:
        >>> from PIL import Image
        >>> transform = EvalTransform((8, 8), 10, (0.5,) * 3, (0.5,) * 3)
        >>> transform(Image.new("RGB", (20, 30))).shape
        torch.Size([3, 8, 8])
    """

    size: tuple[int, int]
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"

    @property
    def shorter_side(self) -> int:
        """What the shorter side is resized to, which decoders may know: `open_image`."""
        return self.resize

    def __call__(self, image: Image) -> Tensor:
        """Turn a PIL image into float32 pixels `(3, H, W)`."""
        found = resize_shorter(image.convert("RGB"), self.resize, self.interpolation)
        return _Normalise(self.mean, self.std)(crop_centre(found, self.size))


def resize_shorter(image: Image, length: int, interpolation: str) -> Image:
    """Resize an image so that its shorter side has a length, as torchvision's `Resize` does, to the bit.

    (torchvision itself takes as long to import as torch.)
    """
    from PIL.Image import Resampling

    short, long = sorted(image.size)
    other = int(length * long / short)
    size = (length, other) if image.width <= image.height else (other, length)
    return image if size == image.size else image.resize(size, Resampling[interpolation.upper()])


def crop_centre(image: Image, size: tuple[int, int]) -> Image:
    """Crop height and width around the centre, as torchvision's `CenterCrop` does; black fills up."""
    height, width = size
    missing = max(width - image.width, 0), max(height - image.height, 0)
    left, top = (
        -(short // 2) if short else round((have - want) / 2)
        for short, have, want in zip(missing, image.size, (width, height), strict=True)
    )
    return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class _Normalise:
    """What torchvision's `ToTensor` and `Normalize` do, to the bit, in a third of the time.

    The channels of a pixel stay next to each other in memory, as images have them and as
    convolutions want them on a CPU.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image) -> Tensor:
        """Turn an RGB image into float32 pixels `(3, H, W)`, channels last in memory."""
        rows = torch.from_numpy(np.array(image)).flatten(1).float()
        mean, std = (torch.tensor(values).repeat(image.width) for values in (self.mean, self.std))
        rows.div_(255).sub_(mean).div_(std)
        return rows.view(image.height, image.width, -1).permute(2, 0, 1)


def stack_pixels(pixels: Sequence[Tensor]) -> Tensor:
    """Stack images of one size to `(B, 3, H, W)`; those that are channels last in memory stay so.

    Raises:
        EncoderError: If they are no tensors, or the sizes differ: the model's preprocessing does not crop.

    Example:
        >>> stack_pixels([torch.zeros(8, 8, 3).permute(2, 0, 1)] * 2).stride()
        (192, 1, 24, 3)
    """
    other = next((image for image in pixels if not isinstance(image, Tensor)), None)
    if other is not None:
        raise EncoderError(
            f"the model's preprocessing gave an image as {type(other).__name__}, not as a tensor (3, H, W): "
            "end it with torch.as_tensor(...) or torchvision's ToTensor()"
        )
    sizes = sorted({tuple(image.shape) for image in pixels})
    if len(sizes) > 1:
        raise EncoderError(
            f"the model's preprocessing gave images of different sizes, {sizes[0]} and {sizes[1]}; "
            "its processor must resize or crop to one size"
        )
    if all(image.ndim == 3 and image.permute(1, 2, 0).is_contiguous() for image in pixels):
        return torch.stack([image.permute(1, 2, 0) for image in pixels]).permute(0, 3, 1, 2)
    return torch.stack(list(pixels))


@dataclass(frozen=True)
class TrainTransform:
    """A random crop, resized, and a random mirror image, drawn from torch's global generator.

    Attributes:
        size: Height and width of the result.
        mean: Mean per channel.
        std: Standard deviation per channel.
        scale: Smallest and largest part of the image's area in a crop.
        interpolation: Name of a `torchvision.transforms.InterpolationMode`.
        flip: Probability of the mirror image.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[float, float] = (0.5, 1.0)
    interpolation: str = "bicubic"
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise EncoderError(f"crop scale should be 0 < low <= high, not {self.scale!r}")

    @cached_property
    def _steps(self) -> Compose:
        with needed_for("turning images into pixels"):
            from torchvision import transforms

        mode = transforms.InterpolationMode(self.interpolation)
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(self.size, scale=self.scale, interpolation=mode),
                transforms.RandomHorizontalFlip(self.flip),
                _Normalise(self.mean, self.std),
            ]
        )

    def __call__(self, image: Image) -> Tensor:
        """Turn a PIL image into float32 pixels `(3, H, W)`."""
        pixels: Tensor = self._steps(image.convert("RGB"))
        return pixels


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size that may be one number.

    Example:
        >>> height_width(224)
        (224, 224)
    """
    if isinstance(size, int):
        return (size, size)
    height, width = size
    return (int(height), int(width))
