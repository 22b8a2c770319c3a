"""SigLIP 2 with images of any shape ("NaFlex") in transformers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rada.core.extras import needed_for
from rada.encoders.families._transformers import ProcessorTransform
from rada.encoders.families.siglip import SiglipEncoder
from rada.encoders.registry import register_family

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Siglip2Encoder"]


class PatchTransform(ProcessorTransform):
    """The processor's patches as a strip `(3, P, (N + 1) P)` of N patches and one for their layout.

    The processor keeps an image's shape and cuts it into patches, row by row. The strip has one size
    for all images, so that they can be stacked and cached; its last patch holds the number of rows
    and columns.
    """

    def __call__(self, image: Image) -> Tensor:
        """Turn a PIL image into float32 pixels."""
        batch = self.processor(images=image.convert("RGB"), return_tensors="pt")
        patches = batch["pixel_values"][0].float()
        size = int(self.processor.patch_size)
        strip = patches.view(len(patches), size, size, 3).permute(3, 1, 0, 2)
        layout = torch.zeros(3, size, 1, size)
        layout[0, 0, 0, :2] = batch["spatial_shapes"][0].float()
        return torch.cat([strip, layout], 2).flatten(2)


@dataclass(frozen=True)
class PatchTrainTransform:
    """A random crop that keeps its own shape, and a mirror image; then the processor.

    Attributes:
        preprocess: The evaluation transform.
        scale: Smallest and largest part of the image's area in a crop.
        flip: Probability of the mirror image.
    """

    preprocess: PatchTransform
    scale: tuple[float, float] = (0.5, 1.0)
    flip: float = 0.5

    @cached_property
    def _flip(self) -> Any:
        with needed_for("a model of transformers"):
            from torchvision import transforms

        return transforms.RandomHorizontalFlip(self.flip)

    def __call__(self, image: Image) -> Tensor:
        """Turn a PIL image into float32 pixels."""
        with needed_for("a model of transformers"):
            from torchvision.transforms import RandomResizedCrop
            from torchvision.transforms.functional import crop

        image = image.convert("RGB")
        box = RandomResizedCrop.get_params(image, list(self.scale), [3 / 4, 4 / 3])
        return self.preprocess(self._flip(crop(image, *box)))


@register_family
class Siglip2Encoder(SiglipEncoder):
    """`Siglip2Model` of transformers (Tschannen et al., 2025)."""

    family = "siglip2"
    summary = "SigLIP 2 (NaFlex: images keep their shape) in transformers"
    model_type = "siglip2"
    model_class = "Siglip2Model"
    hub_models = {"google/siglip2-base-patch16-naflex": (768, 375_234_050)}  # noqa: RUF012

    def make_preprocess(self, processor: Any) -> PatchTransform:
        """Wrap the processor, which makes patches."""
        return PatchTransform(processor)

    def make_train_transform(self, preprocess: ProcessorTransform) -> Any:
        """Crop at random before the processor."""
        return PatchTrainTransform(PatchTransform(preprocess.processor))

    def _pixels(self, pixels: Tensor) -> Tensor:
        # The layout is written in whole numbers that half precision cannot hold.
        super()._pixels(pixels[:1])
        return pixels.to(self.device)

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """Take the strips apart and embed their patches."""
        size = pixels.shape[2]
        patches = pixels.reshape(*pixels.shape[:3], -1, size)  # (B, 3, P, N + 1, P)
        shapes = patches[:, 0, 0, -1, :2].round().long()
        patches = patches[:, :, :, :-1].permute(0, 3, 2, 4, 1).flatten(2)
        numbers = torch.arange(patches.shape[1], device=pixels.device)
        mask = (numbers < shapes.prod(1, keepdim=True)).to(torch.int32)
        outputs = self.model.get_image_features(
            pixel_values=patches.to(self.dtype), pixel_attention_mask=mask, spatial_shapes=shapes
        )
        embeddings: Tensor = outputs.pooler_output
        return embeddings
