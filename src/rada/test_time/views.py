"""The random views of test-time training: crop and mirror image, with AugMix on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rada.encoders.transforms import TrainTransform
from rada.features import ViewTransform

if TYPE_CHECKING:
    from PIL.Image import Image

    from rada.encoders import DualEncoder
    from rada.test_time.config import TTTConfig

__all__ = ["AugMixTransform", "view_transform"]


@dataclass(frozen=True)
class AugMixTransform:
    """AugMix as TPT uses it: on the crop, severity 1, three chains, no colour operations.

    Attributes:
        crop: Takes a picture to pixels at random. Of a transform that is not rada's own the inside is
            not known: there the mixing comes first.
        severity: Strength of each operation.
        width: Chains that are mixed.
    """

    crop: Callable[[Image], Tensor]
    severity: int = 1
    width: int = 3

    @cached_property
    def _steps(self) -> Any:
        from torchvision import transforms
        from torchvision.transforms import v2

        mix = v2.AugMix(severity=self.severity, mixture_width=self.width, all_ops=False)
        if not isinstance(self.crop, TrainTransform):
            return transforms.Compose([mix, self.crop])
        crop, flip, *to_pixels = self.crop._steps.transforms
        return transforms.Compose([crop, flip, mix, *to_pixels])

    def __call__(self, image: Image) -> Tensor:
        """Turn a PIL image into float32 pixels `(3, H, W)`."""
        pixels: Tensor = self._steps(image.convert("RGB"))
        return pixels


def view_transform(encoder: DualEncoder, config: TTTConfig) -> ViewTransform:
    """Return how the views above 0 are made, with its key for the cache.

    Encoders with a training transform of their own keep its crop; `smallest_crop` then has no effect.
    """
    crop: Callable[[Image], Tensor] = encoder.train_transform
    if isinstance(crop, TrainTransform):
        crop = replace(crop, scale=(config.smallest_crop, 1.0), interpolation="bilinear", flip=0.5)
        key = repr(crop)
    else:
        key = encoder.transform_key("train_transform")
    if config.augmentation == "augmix":
        mixed = AugMixTransform(crop)
        return ViewTransform(mixed, f"augmix {mixed.severity} {mixed.width} {key}")
    return ViewTransform(crop, key)
