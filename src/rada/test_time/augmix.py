"""AugMix as TPT's public code has it: chains of small operations, mixed with the image itself.

torchvision's AugMix takes the strength of an operation from a table whose first entry, that of severity
1, does nothing for shear, translation, rotation and solarize. Here a strength is drawn anew for every
operation, as in the code of AugMix's authors, which TPT uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OPERATIONS", "augment_and_mix"]

Pillow = Image.Image
Operation = Callable[[Pillow, int, np.random.Generator], Pillow]

_LONGEST = 3  # operations of a chain, at most
_WHOLE = 10  # the severity at which an operation may reach its largest strength


def _strength(severity: int, largest: float, generator: np.random.Generator) -> float:
    return float(generator.uniform(0.1, severity)) * largest / _WHOLE


def _signed(value: float, generator: np.random.Generator) -> float:
    return -value if generator.uniform() > 0.5 else value


def _autocontrast(image: Pillow, severity: int, generator: np.random.Generator) -> Pillow:
    return ImageOps.autocontrast(image)


def _equalize(image: Pillow, severity: int, generator: np.random.Generator) -> Pillow:
    return ImageOps.equalize(image)


def _posterize(image: Pillow, severity: int, generator: np.random.Generator) -> Pillow:
    return ImageOps.posterize(image, 4 - int(_strength(severity, 4, generator)))


def _rotate(image: Pillow, severity: int, generator: np.random.Generator) -> Pillow:
    degrees = int(_strength(severity, 30, generator))
    return image.rotate(_signed(degrees, generator), resample=Image.Resampling.BILINEAR)


def _solarize(image: Pillow, severity: int, generator: np.random.Generator) -> Pillow:
    return ImageOps.solarize(image, 256 - int(_strength(severity, 256, generator)))


def _affine(image: Pillow, matrix: Sequence[float]) -> Pillow:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR
    )


def _shear_x(image: Pillow, severity: int, generator: np.random.Generator) -> Pillow:
    part = _signed(_strength(severity, 0.3, generator), generator)
    return _affine(image, (1, part, 0, 0, 1, 0))


def _shear_y(image: Pillow, severity: int, generator: np.random.Generator) -> Pillow:
    part = _signed(_strength(severity, 0.3, generator), generator)
    return _affine(image, (1, 0, 0, part, 1, 0))


def _translate_x(image: Pillow, severity: int, generator: np.random.Generator) -> Pillow:
    pixels = _signed(int(_strength(severity, image.width / 3, generator)), generator)
    return _affine(image, (1, 0, pixels, 0, 1, 0))


def _translate_y(image: Pillow, severity: int, generator: np.random.Generator) -> Pillow:
    pixels = _signed(int(_strength(severity, image.height / 3, generator)), generator)
    return _affine(image, (1, 0, 0, 0, 1, pixels))


OPERATIONS: dict[str, Operation] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "rotate": _rotate,
    "solarize": _solarize,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
"""The operations; those that ImageNet-C tests with (colour, contrast, brightness, sharpness) are not used."""


def augment_and_mix(
    image: Pillow,
    pixels: Callable[[Pillow], Tensor],
    generator: np.random.Generator,
    *,
    severity: int = 1,
    width: int = 3,
) -> Tensor:
    """Return the pixels of an image mixed with those of `width` chains of one to three operations.

    Hendrycks et al., AugMix, ICLR 2020, as in Shu et al., Test-Time Prompt Tuning, NeurIPS 2022.

    Args:
        image: An RGB image.
        pixels: Image to tensor.
        generator: Source of randomness.
        severity: 1 to 10; an operation's strength is drawn up to that many tenths of its largest one.
        width: Chains.

    Example:
        >>> from torchvision.transforms.functional import pil_to_tensor
        >>> image = Image.new("RGB", (8, 8), "red")
        >>> augment_and_mix(image, pil_to_tensor, np.random.default_rng(0)).shape
        torch.Size([3, 8, 8])
    """
    weights = generator.dirichlet(np.ones(width))
    share = float(generator.beta(1.0, 1.0))
    operations = list(OPERATIONS.values())
    own = pixels(image)
    mixed = torch.zeros_like(own, dtype=torch.float32)
    for weight in weights.tolist():
        chain = image
        for _ in range(int(generator.integers(1, _LONGEST + 1))):
            operation = operations[int(generator.integers(len(operations)))]
            chain = operation(chain, severity, generator)
        mixed += weight * pixels(chain)
    return share * own + (1 - share) * mixed
