"""What is done to an image before the graph, in words that a program without rada can follow."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from rada.core.errors import EncoderError
from rada.encoders.transforms import EvalTransform, height_width

if TYPE_CHECKING:
    from PIL.Image import Image

    from rada.encoders import DualEncoder
    from rada.encoders.protocol import Transform

__all__ = ["Preprocessing", "describe_preprocessing"]

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_LEVEL = 1.01  # a level of 255, and some rounding: two libraries' resizing may differ by so much
_PROBES = ((61, 47), (40, 75), (64, 64), (333, 250))


@dataclass(frozen=True)
class Preprocessing:
    """From an upright RGB image to the input of the graph, `(height, width, 3)` of uint8.

    The graph itself subtracts the mean and divides by the deviation.

    Attributes:
        resize: New height and width; of both only the first counts where `shorter_side`.
        shorter_side: Whether the shorter side gets the length `resize[0]` and the shape is kept:
            the longer one gets `int(resize[0] * longer / shorter)`.
        interpolation: Name of Pillow's resampling filter.
        crop: Height and width that are cut out of the middle; equal to `resize` where nothing is cut.
        crop_rounding: How half a pixel is rounded where the middle lies between two: "even" or "down".
        mean: Of each channel, of values between 0 and 1.
        std: Likewise.
    """

    resize: tuple[int, int]
    shorter_side: bool
    interpolation: str
    crop: tuple[int, int]
    crop_rounding: Literal["even", "down"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain JSON."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    def __call__(self, image: Image) -> np.ndarray[Any, Any]:
        """Resize and crop with Pillow; what a program without rada does."""
        from PIL.Image import Resampling

        height, width = self.resize
        if self.shorter_side:
            width, height = (height * side // min(image.size) for side in image.size)
        image = image.resize((width, height), Resampling[self.interpolation.upper()])
        round_half = round if self.crop_rounding == "even" else int
        top = round_half((height - self.crop[0]) / 2)
        left = round_half((width - self.crop[1]) / 2)
        return np.asarray(image.crop((left, top, left + self.crop[1], top + self.crop[0])))

    def normalise(self, images: Tensor) -> Tensor:
        """Turn `(B, height, width, 3)` into float32 pixels `(B, 3, height, width)`, in the graph."""
        mean, std = (torch.tensor(values, device=images.device) for values in (self.mean, self.std))
        return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def describe_preprocessing(encoder: DualEncoder) -> Preprocessing:
    """Describe what an encoder does to images, and check the description on images of several shapes.

    Raises:
        EncoderError: If it does something else than resize, crop the middle and normalise.

    Example:
        >>> from rada import CustomEncoder
        >>> encoder = CustomEncoder(lambda x: x.mean((2, 3)), lambda t: torch.eye(3), 1.0, 3)
        >>> describe_preprocessing(encoder).crop
        (224, 224)
    """
    found = _described(encoder.preprocess)
    if found is not None:
        for rounding in ("even", "down"):
            candidate = Preprocessing(**found, crop_rounding=rounding)
            if _difference(candidate, encoder.preprocess) <= _LEVEL:
                return candidate
    raise EncoderError(
        f"what {encoder.name!r} does to images is not: resize, crop the middle, normalise; so a program "
        "without rada could not repeat it. Export the model from features instead"
    )


def _difference(found: Preprocessing, preprocess: Transform) -> float:
    """Return the largest difference to the encoder's own pixels, in levels of 255."""
    from PIL import Image

    random, largest = np.random.default_rng(0), 0.0
    for width, height in _PROBES:
        coarse = random.integers(0, 256, (6, 8, 3), np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        wanted = preprocess(image)
        pixels = found.normalise(torch.from_numpy(found(image).copy())[None])[0]
        if pixels.shape != wanted.shape:
            return float("inf")
        levels = (pixels - wanted) * torch.tensor(found.std)[:, None, None] * 255
        largest = max(largest, float(levels.abs().max()))
    return largest


def _described(preprocess: Any) -> dict[str, Any] | None:
    """Return the fields that a transform's own settings tell; None where they tell something else."""
    if isinstance(preprocess, EvalTransform):
        return {
            "resize": (preprocess.resize,) * 2,
            "shorter_side": True,
            "interpolation": preprocess.interpolation,
            "crop": preprocess.size,
            "mean": preprocess.mean,
            "std": preprocess.std,
        }
    settings = getattr(preprocess, "settings", None)
    if isinstance(settings, str):
        return _of_open_clip(json.loads(settings))
    processor = getattr(preprocess, "processor", None)
    return None if processor is None else _of_transformers(processor.to_dict())


def _of_open_clip(settings: dict[str, Any]) -> dict[str, Any] | None:
    size = height_width(settings["size"])
    shorter = settings.get("resize_mode", "shortest") == "shortest"
    if settings.get("resize_mode") == "longest" or (shorter and size[0] != size[1]):
        return None
    return {
        "resize": size,
        "shorter_side": shorter,
        "interpolation": settings.get("interpolation", "bicubic"),
        "crop": size,
        "mean": tuple(settings["mean"]),
        "std": tuple(settings["std"]),
    }


def _of_transformers(settings: dict[str, Any]) -> dict[str, Any] | None:
    size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    if not settings.get("do_resize", True) or not {"shortest_edge", "height"} & size.keys():
        return None
    shorter = "shortest_edge" in size
    resize = (size["shortest_edge"],) * 2 if shorter else (size["height"], size["width"])
    cut = resize
    if settings.get("do_center_crop"):
        cut = (crop["height"], crop["width"])
    factor = (
        255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255
    )
    offset = 1.0 if settings.get("rescale_offset") else 0.0
    mean, std = settings.get("image_mean"), settings.get("image_std")
    if not settings.get("do_normalize", True) or mean is None or std is None:
        mean, std = (0.0,) * 3, (1.0,) * 3
    if settings.get("include_top"):  # EfficientNet's processor divides once more
        std = tuple(s * again for s, again in zip(std, settings["image_std"], strict=True))
    return {
        "resize": resize,
        "shorter_side": shorter,
        "interpolation": _RESAMPLING.get(settings.get("resample", 3), "bicubic"),
        "crop": cut,
        # (factor x - offset - mean) / std, with x between 0 and 1
        "mean": tuple((m + offset) / factor for m in mean),
        "std": tuple(s / factor for s in std),
    }
