"""Where in an image the evidence lies: heat maps by occlusion and by gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from rada.core.extras import check_extra, needed_for
from rada.encoders.protocol import evaluating

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from rada.encoders import DualEncoder

__all__ = ["HeatMap", "gradient_map", "occlusion_map", "source_places"]

Score = Callable[[Tensor], Tensor]
"""Makes one number `(B,)` of each row of features `(B, D)`, differentiably."""

_LONGEST = 448
"""Larger images are shrunk first: an encoder sees no more of them."""
_AT_ONCE = 16
_FOR, _AGAINST = np.array([13.0, 95.0, 175.0]), np.array([190.0, 50.0, 20.0])


@dataclass(frozen=True, eq=False)
class HeatMap:
    """What each part of an image adds to a logit, or to the difference of two.

    Attributes:
        method: "occlusion" or "gradients".
        target: The class.
        against: The class whose logit is taken away; None for one logit alone.
        values: `(rows, columns)` over the whole image; above zero where it speaks for the class.
        step: Height and width of a cell in pixels of the image when it is `size` large.
        size: Width and height that the image was shrunk to; cells at its right and lower edge may reach
            beyond it.
        score: The logit or the difference of the whole image.
        blank: The same of an image without content, of its mean colour.
    """

    method: Literal["occlusion", "gradients"]
    target: str
    against: str | None
    values: NDArray[np.float64]
    step: int
    size: tuple[int, int]
    score: float
    blank: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return vars(self) | {"values": self.values.round(6).tolist(), "size": list(self.size)}

    def over(self, image: Image) -> Image:
        """Return the image in grey, with blue over what speaks for the class and red over the contrary."""
        from PIL import Image as Images

        rows, columns = self.values.shape
        map_ = Images.fromarray(self.values.astype(np.float32)).resize(
            (columns * self.step, rows * self.step), Images.Resampling.BICUBIC
        )
        map_ = map_.crop((0, 0, *self.size)).resize(image.size, Images.Resampling.BILINEAR)
        values = np.array(map_) / max(float(np.abs(self.values).max()), 1e-12)
        alpha = (np.abs(values).clip(0, 1) ** 0.8)[..., None] * 0.8
        colour = np.where(values[..., None] > 0, _FOR, _AGAINST)
        grey = 255 - 0.7 * (255 - np.array(image.convert("L").convert("RGB"), np.float32))
        return Images.fromarray((grey * (1 - alpha) + colour * alpha).round().astype(np.uint8))


_WHAT = "a heat map over an image"


def check_captum() -> None:
    """Check that the maps can be made.

    Raises:
        MissingExtraError: If captum is not installed.
    """
    check_extra("explain", _WHAT)


def occlusion_map(
    encoder: DualEncoder,
    score: Score,
    image: Image,
    grid: int,
    target: str = "",
    against: str | None = None,
) -> HeatMap:
    """Cover one part of an image after the other with its mean colour, and see what is missing then.

    The image is covered before it is resized and cropped, so that this works with every encoder.

    Args:
        encoder: The encoder.
        score: What is explained.
        image: RGB.
        grid: Cells along the longer side; the cover is two cells wide and moves by one.
        target: The class that `score` is of.
        against: The class that it is compared with.

    Raises:
        MissingExtraError: If captum is not installed.
    """
    with needed_for(_WHAT):
        from captum.attr import Occlusion

    pixels = _pixels_of(image)
    step = _step(pixels, grid)
    cover = [min(2 * step, side) for side in pixels.shape[-2:]]

    def scored(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return score(encoder.infer_images(_preprocessed(encoder, rows)))

    mean = pixels.mean((2, 3), keepdim=True)
    found = Occlusion(scored).attribute(
        pixels,
        sliding_window_shapes=(3, *cover),
        strides=(3, step, step),
        baselines=mean,
        perturbations_per_eval=_AT_ONCE,
    )
    whole = scored(torch.cat([pixels, mean.expand_as(pixels)]))
    size = (pixels.shape[3], pixels.shape[2])
    cells = _cells(found[0].mean(0), step)
    return HeatMap("occlusion", target, against, cells, step, size, *whole.tolist())


def gradient_map(
    encoder: DualEncoder,
    score: Score,
    image: Image,
    grid: int,
    target: str = "",
    against: str | None = None,
    *,
    steps: int = 24,
) -> HeatMap:
    """Add up gradients on the way from an image without content to the image (integrated gradients).

    The values add up to the difference of the two scores, but for the error of the finite sum.

    Args:
        encoder: The encoder, with gradients of the image encoder.
        score: What is explained.
        image: RGB.
        grid: Cells along the longer side.
        target: The class that `score` is of.
        against: The class that it is compared with.
        steps: Points on the way.

    Raises:
        MissingExtraError: If captum is not installed.
        EncoderError: If the image encoder has no gradients.
    """
    with needed_for(_WHAT):
        from captum.attr import IntegratedGradients

    encoder.require("image_gradients")
    pixels = _pixels_of(image)
    step = _step(pixels, grid)
    seen = _preprocessed(
        encoder, torch.cat([pixels, pixels.mean((2, 3), keepdim=True).expand_as(pixels)])
    )
    seen = seen.to(encoder.device)

    def scored(rows: Tensor) -> Tensor:
        return score(encoder.forward_images(rows))

    with evaluating(encoder.model):
        found = IntegratedGradients(scored).attribute(
            seen[:1], baselines=seen[1:], n_steps=steps, internal_batch_size=_AT_ONCE
        )
        with torch.no_grad():
            whole = scored(seen)
    height, width = pixels.shape[-2:]
    down, across, real = source_places(encoder, (width, height))
    rows, columns = -(-height // step), -(-width // step)
    cells = np.zeros((rows, columns))
    amounts = found[0].sum(0).detach().cpu().double().numpy()
    place = ((down * height / step).astype(int), (across * width / step).astype(int))
    np.add.at(cells, tuple(part[real] for part in place), amounts[real])
    size = (width, height)
    return HeatMap("gradients", target, against, cells, step, size, *whole.tolist())


def source_places(
    encoder: DualEncoder, size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return where in the image each pixel comes from that the encoder sees.

    Images whose colours say where they are go through the encoder's own preprocessing, so that this is right
    for any crop, any resizing, and patches in a strip.

    Args:
        encoder: The encoder.
        size: Width and height of the image.

    Returns:
        Places down and across in [0, 1) of the encoder's pixels `(H, W)`, and which of them are pixels at
        all.
    """
    from PIL import Image

    width, height = size
    ramp = np.zeros((3, height, width, 3), np.uint8)
    ramp[0, ..., 0] = np.linspace(0, 255, height).round()[:, None]
    ramp[0, ..., 1] = np.linspace(0, 255, width).round()[None]
    ramp[1] = 255
    places, white, black = (
        encoder.preprocess(Image.fromarray(rows)).double().numpy() for rows in ramp
    )
    span = white - black
    real = (span != 0).all(0)
    found = np.divide(places - black, span, out=np.zeros_like(span), where=span != 0)
    down, across = found[:2].clip(0, 1 - 1e-9)
    return down, across, real


def _pixels_of(image: Image) -> Tensor:
    """Return an RGB image as `(1, 3, H, W)` in [0, 255], shrunk if it is large."""
    small = image.convert("RGB")
    small.thumbnail((_LONGEST, _LONGEST))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float()


def _preprocessed(encoder: DualEncoder, pixels: Tensor) -> Tensor:
    from PIL import Image

    from rada.encoders.transforms import stack_pixels

    rows = pixels.round().byte().permute(0, 2, 3, 1).numpy()
    return stack_pixels([encoder.preprocess(Image.fromarray(row)) for row in rows])


def _step(pixels: Tensor, grid: int) -> int:
    """Return the width of a cell, so that both sides of the image have at least one."""
    height, width = pixels.shape[-2:]
    return max(1, min(-(-max(height, width) // grid), height, width))


def _cells(values: Tensor, step: int) -> NDArray[np.float64]:
    """Return the mean of each cell of a map `(H, W)`; cells at the edges may be smaller."""
    from torch.nn.functional import avg_pool2d

    pooled = avg_pool2d(values[None].double(), step, ceil_mode=True, count_include_pad=False)
    cells: NDArray[np.float64] = pooled[0].cpu().numpy()
    return cells
