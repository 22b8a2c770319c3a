"""Checks of what a head is given; each error names the value and what is needed."""

from __future__ import annotations

import math

from torch import Tensor

from rada.core.errors import ConfigError, FeatureError

__all__ = ["check_config", "check_features", "check_scale", "check_shortlist"]


def check_config(dim: int, num_heads: int, temperature: float, memory_budget: int | None) -> None:
    """Check what a head is built from."""
    for name, value in (("dim", dim), ("num_heads", num_heads)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} should be a positive integer, but it is {value!r}")
    if dim % num_heads:
        raise ConfigError(
            f"dim should be a multiple of num_heads, but {dim} % {num_heads} != 0: choose a number of heads "
            f"that divides {dim}, such as {math.gcd(dim, num_heads)}"
        )
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise ConfigError(f"temperature should be a number, but it is {temperature!r}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"temperature should be positive and finite, but it is {temperature!r}")
    if memory_budget is not None and (
        isinstance(memory_budget, bool) or not isinstance(memory_budget, int) or memory_budget < 1
    ):
        raise ConfigError(
            f"memory_budget should be a positive number of bytes or None, but it is "
            f"{memory_budget!r}"
        )


def check_features(image: Tensor, text: Tensor, dim: int | None = None) -> None:
    """Check the features of images and classes."""
    for name, features in (("image_features", image), ("text_features", text)):
        if not isinstance(features, Tensor):
            raise FeatureError(
                f"{name} should be a torch.Tensor, but it is a {type(features).__name__}: "
                "convert it with torch.as_tensor"
            )
        own_classes = dim is not None and features is text and features.ndim == 3
        if features.ndim != 2 and not own_classes:
            raise FeatureError(
                f"{name} should have two dimensions (rows, width), but its shape is "
                f"{tuple(features.shape)}"
            )
        if not features.is_floating_point():
            raise FeatureError(f"{name} should be of a floating type, but it is {features.dtype}")
        if dim is not None and features.shape[-1] != dim:
            raise FeatureError(
                f"{name} has width {features.shape[-1]}, but the head was built for {dim}: use the "
                "features of the encoder that the head belongs to"
            )
    if image.shape[1] != text.shape[-1]:
        raise FeatureError(
            f"image_features has width {image.shape[1]}, but text_features has {text.shape[-1]}: "
            "both must come from one encoder"
        )
    if text.ndim == 3 and len(text) != len(image):
        raise FeatureError(
            f"text_features has classes for {len(text)} images (its shape is {tuple(text.shape)}), but "
            f"there are {len(image)} images"
        )
    if text.shape[-2] == 0:
        raise FeatureError("text_features has no rows: at least one class is needed")
    if image.device != text.device:
        raise FeatureError(
            f"image_features is on {image.device}, but text_features is on {text.device}"
        )


def check_shortlist(shortlist: int | None, text: Tensor) -> None:
    """Check the length of a shortlist."""
    if shortlist is None:
        return
    if isinstance(shortlist, bool) or not isinstance(shortlist, int) or shortlist < 1:
        raise ConfigError(
            f"shortlist should be a positive number of classes or None, but it is {shortlist!r}"
        )
    if text.ndim == 3:
        raise ConfigError(
            "a shortlist is chosen from one class set, but text_features has one for each image: "
            "leave shortlist out"
        )


def check_scale(scale: float | Tensor, strength: float) -> None:
    """Check the scale of the logits and the strength."""
    if isinstance(scale, Tensor):
        if scale.numel() != 1 or not scale.is_floating_point():
            raise ConfigError(
                "scale should be a number or a floating tensor of one element, but it is a "
                f"{scale.dtype} tensor of shape {tuple(scale.shape)}"
            )
    elif isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ConfigError(f"scale should be a number or a tensor, but it is {scale!r}")
    elif not (math.isfinite(scale) and scale > 0):
        raise ConfigError(
            f"scale should be positive and finite, but it is {scale!r}: pass exp(logit_scale)"
        )
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise ConfigError(f"strength should be a number, but it is {strength!r}")
    if not math.isfinite(strength):
        raise ConfigError(f"strength should be finite, but it is {strength!r}")
