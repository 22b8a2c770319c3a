"""The random views of test-time training: crop and mirror image, with AugMix on request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rada.core.errors import ConfigError
from rada.core.extras import needed_for
from rada.encoders.transforms import TrainTransform
from rada.features import Features, ViewPixels, ViewTransform
from rada.features.images import ImageItem
from rada.test_time.augmix import augment_and_mix

if TYPE_CHECKING:
    from PIL.Image import Image

    from rada.encoders import DualEncoder
    from rada.methods import AdaptedModel
    from rada.test_time.base import TestTimeMethod
    from rada.test_time.config import ViewConfig

__all__ = ["AugMixTransform", "pixels_of", "view_transform"]


@dataclass(frozen=True)
class AugMixTransform:
    """AugMix as TPT uses it: on the crop, severity 1, three chains, no colour operations.

    Attributes:
        crop: Takes an image to pixels at random. Of a transform that is not rada's own the inside is
            not known: there the mixing comes first.
        severity: Strength of the operations, 1 to 10.
        width: Chains that are mixed.
    """

    crop: Callable[[Image], Tensor]
    severity: int = 1
    width: int = 3

    def __call__(self, image: Image) -> Tensor:
        """Turn a PIL image into float32 pixels `(3, H, W)`."""
        image = image.convert("RGB")
        if isinstance(self.crop, TrainTransform):
            crop, flip, to_pixels = self.crop._steps.transforms
            return self._mixed(flip(crop(image)), to_pixels)
        with needed_for("views of images"):
            from torchvision.transforms.functional import pil_to_tensor, to_pil_image

        mixed = self._mixed(image, pil_to_tensor).round().to(torch.uint8)
        return self.crop(to_pil_image(mixed))

    def _mixed(self, image: Image, pixels: Callable[[Image], Tensor]) -> Tensor:
        # Drawn from torch's generator, like the crop, so that one seed decides the whole view.
        generator = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        return augment_and_mix(image, pixels, generator, severity=self.severity, width=self.width)


def view_transform(encoder: DualEncoder, config: ViewConfig) -> ViewTransform:
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
        return ViewTransform(mixed, f"augmix-of-tpt {mixed.severity} {mixed.width} {key}")
    return ViewTransform(crop, key)


def pixels_of(
    method: TestTimeMethod,
    model: AdaptedModel,
    data: Features | Sequence[ImageItem],
    config: ViewConfig,
    *,
    exact_decoding: bool = False,
) -> ViewPixels | None:
    """Return what makes the views of images again, for a method that reads pixels; None for others.

    Args:
        method: The test-time method.
        model: The model that it starts from, whose encoder made the features.
        data: Features with the images behind them, or images themselves.
        config: How the views were made.
        exact_decoding: As for `rada.features.iter_features`.

    Raises:
        ConfigError: If there are features alone.
    """
    if not method.reads_pixels:
        return None
    images = data.images if isinstance(data, Features) else data
    if images is None or model.encoder is None:
        raise ConfigError(
            f"{method.title} works inside the image encoder, but there are features alone: give images"
        )
    return ViewPixels(
        model.encoder,
        images,
        seed=config.seed,
        view_transform=view_transform(model.encoder, config),
        exact_decoding=exact_decoding,
    )
