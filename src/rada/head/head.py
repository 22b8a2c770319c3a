"""The head as a module: inputs checked, six linear layers, typed output."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rada.core.errors import ConfigError, FeatureError
from rada.head.attention import mask_attention, transforms_active
from rada.head.classes import PreparedCache, PreparedClasses, apply_linear, prepare_classes
from rada.head.kernels.chunk import ChunkConfig
from rada.head.reference import AttentionWeights

__all__ = ["HeadOutput", "RAdaHead", "rational_matrix"]


def rational_matrix(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Return `R[b, k, d] = image_features[b, d] * text_features[k, d]`.

    The sum of `R` over `d` is the cosine that a dual encoder predicts with; `R` keeps what each
    dimension gives to it (arXiv 2507.15480, section 3).

    Args:
        image_features: unit-norm, `(B, D)`.
        text_features: unit-norm, `(K, D)`.

    Returns:
        The rational matrix of each image, `(B, K, D)`.

    Raises:
        FeatureError: the two are not matrices of one width.

    Example:
        >>> rational_matrix(torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[[0.6000, 0.0000],
                 [0.0000, 0.8000]]])
    """
    _check_features(image_features, text_features)
    return image_features[:, None, :] * text_features[None, :, :]


@dataclass(frozen=True)
class HeadOutput:
    """What the head predicts for B images and K classes.

    Attributes:
        logits: `(B, K)`, the scale included.
        max_deviation: `(B,)`, the largest `|M - 1|` of each image, of the mask that was applied.
        mask: `(B, K, D)`, the mask that was applied, or None if it was not asked for.
    """

    logits: Tensor
    max_deviation: Tensor
    mask: Tensor | None = None


class RAdaHead(nn.Module):
    """Rational adaptation: an attention layer over the rational matrix that masks its entries.

    At initialisation the mask is exactly one, so the logits are the zero-shot logits. The number of
    parameters, `6 (D^2 + D)`, does not depend on the classes: a head works on any class set.

    Args:
        dim: width `D` of the features.
        num_heads: attention heads, a divisor of `dim`.
        temperature: divides the attention scores; positive.
        memory_budget: bytes that the working memory of one call should stay under.
            None: chosen from the free memory.

    Raises:
        ConfigError: a value out of range, or `dim` is not a multiple of `num_heads`.

    Example:
        >>> head = RAdaHead(64)
        >>> image = nn.functional.normalize(torch.randn(2, 64), dim=-1)
        >>> text = nn.functional.normalize(torch.randn(5, 64), dim=-1)
        >>> output = head(image, text, scale=100.0)
        >>> bool((output.logits == 100.0 * (image @ text.T)).all())
        True
        >>> float(output.max_deviation.detach().max())
        0.0
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        temperature: float = 1.0,
        *,
        memory_budget: int | None = None,
    ) -> None:
        super().__init__()
        _check_config(dim, num_heads, temperature, memory_budget)
        self.dim = dim
        self.num_heads = num_heads
        self.temperature = float(temperature)
        self.memory_budget = memory_budget
        self.query_image = nn.Linear(dim, dim)
        self.query_text = nn.Linear(dim, dim)
        self.query_rational = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self._class_sets = PreparedCache()

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"dim={self.dim}, num_heads={self.num_heads}, temperature={self.temperature}"

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        scale: float | Tensor,
        strength: float = 1.0,
        *,
        return_mask: bool = False,
    ) -> HeadOutput:
        """Predict the classes of a batch of images.

        Args:
            image_features: unit-norm, `(B, D)`.
            text_features: unit-norm, one row per candidate class, `(K, D)`. The logit of a class
                depends on the other candidates, so pass the classes that are meant.
            scale: the encoder's logit scale, already exponentiated; a positive number or a
                one-element tensor, which receives a gradient if it requires one.
            strength: lambda in the applied mask `1 + lambda (M - 1)`; 0 is zero-shot.
            return_mask: also return the `(B, K, D)` mask.

        Returns:
            Logits, largest deviation of the applied mask from one, and the mask if asked for.

        Raises:
            FeatureError: features of the wrong shape, width or type.
            ConfigError: a scale that is not positive or a strength that is not finite.
        """
        _check_features(image_features, text_features, self.dim)
        _check_scale(scale, strength)
        with torch.autocast(image_features.device.type, enabled=False):
            return self._predict(image_features, text_features, scale, strength, return_mask)

    def _predict(
        self,
        image_features: Tensor,
        text_features: Tensor,
        scale: float | Tensor,
        strength: float,
        return_mask: bool,
    ) -> HeadOutput:
        dtype = self._compute_dtype()
        image, text = image_features.to(dtype), text_features.to(dtype)
        if isinstance(scale, Tensor):
            scale = scale.to(device=image.device, dtype=dtype).reshape(())
        zero_shot = scale * (image @ text.T)
        image = image * scale**0.5
        class_set = self._classes(text, scale)
        settings = ChunkConfig(self.num_heads, self.temperature, self.memory_budget, return_mask)
        layers = (self.query_rational, self.key, self.value, self.out)
        weights = AttentionWeights(
            *(p.to(dtype) for layer in layers for p in (layer.weight, layer.bias))
        )
        shift, peak, change = mask_attention(
            image,
            class_set.text,
            apply_linear(self.query_image, image),
            class_set.query,
            weights,
            settings,
        )
        return HeadOutput(
            logits=zero_shot + strength * shift,
            max_deviation=abs(strength) * peak,
            mask=None if change is None else 1 + strength * change,
        )

    def _compute_dtype(self) -> torch.dtype:
        """The parameters' type, but at least float32: half-precision maps have noisy gradients."""
        return torch.promote_types(self.out.weight.dtype, torch.float32)

    def _classes(self, text: Tensor, scale: float | Tensor) -> PreparedClasses:
        if transforms_active() or torch.compiler.is_compiling():
            return prepare_classes(text, scale, self.query_text)
        return self._class_sets.get(text, scale, self.query_text)


def _check_config(dim: int, num_heads: int, temperature: float, memory_budget: int | None) -> None:
    for name, value in (("dim", dim), ("num_heads", num_heads)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} should be a positive integer, but it is {value!r}")
    if dim % num_heads:
        raise ConfigError(f"dim should be a multiple of num_heads, but {dim} % {num_heads} != 0")
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


def _check_features(image: Tensor, text: Tensor, dim: int | None = None) -> None:
    for name, features in (("image_features", image), ("text_features", text)):
        if not isinstance(features, Tensor):
            raise FeatureError(
                f"{name} should be a torch.Tensor, but it is a {type(features).__name__}: "
                "convert it with torch.as_tensor"
            )
        if features.ndim != 2:
            raise FeatureError(
                f"{name} should have two dimensions (rows, width), but its shape is "
                f"{tuple(features.shape)}"
            )
        if not features.is_floating_point():
            raise FeatureError(f"{name} should be of a floating type, but it is {features.dtype}")
        if dim is not None and features.shape[1] != dim:
            raise FeatureError(
                f"{name} has width {features.shape[1]}, but the head was built for {dim}: use the "
                "features of the encoder that the head belongs to"
            )
    if image.shape[1] != text.shape[1]:
        raise FeatureError(
            f"image_features has width {image.shape[1]}, but text_features has {text.shape[1]}: "
            "both must come from one encoder"
        )
    if text.shape[0] == 0:
        raise FeatureError("text_features has no rows: at least one class is needed")
    if image.device != text.device:
        raise FeatureError(
            f"image_features is on {image.device}, but text_features is on {text.device}"
        )


def _check_scale(scale: float | Tensor, strength: float) -> None:
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
