"""The head as a module: inputs checked, six linear layers, typed output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rada.head.attention import mask_attention, transforms_active
from rada.head.checks import check_config, check_features, check_scale, check_shortlist
from rada.head.classes import PreparedCache, PreparedClasses, apply_linear, prepare_classes
from rada.head.kernels.chunk import ChunkConfig
from rada.head.listed import landmark_places, listed_attention
from rada.head.reference import AttentionWeights

__all__ = ["HeadOutput", "RAdaHead", "rational_matrix", "shortlist_size"]

_LISTED_NUMBERS = 1 << 20
"""Numbers of tokens and maps of several images that are held at once: few enough for the caches."""
_FEW = 8
"""Of fewer than one in so many of the classes it pays to project them anew."""
_ALL_UP_TO, _OF_MANY = 256, 64
"""A shortlist "auto": all classes up to so many, and how many of more."""


def shortlist_size(shortlist: int | str | None, classes: int) -> int | None:
    """Return how many of the candidates get a mask of each image, None for all.

    Args:
        shortlist: A number, "auto" or None.
        classes: Number of candidates.

    Example:
        >>> shortlist_size("auto", 256), shortlist_size("auto", 1000), shortlist_size(16, 10)
        (None, 64, None)
    """
    if shortlist is None:
        return None
    size = (
        int(shortlist) if shortlist != "auto" else (_OF_MANY if classes > _ALL_UP_TO else classes)
    )
    return size if size < classes else None


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
    check_features(image_features, text_features)
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
        check_config(dim, num_heads, temperature, memory_budget)
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
        shortlist: int | None = None,
    ) -> HeadOutput:
        """Predict the classes of a batch of images.

        Args:
            image_features: unit-norm, `(B, D)`.
            text_features: unit-norm, one row per candidate class, `(K, D)`. The logit of a class
                depends on the other candidates, so pass the classes that are meant. Or `(B, K, D)`: K
                candidates of its own for each image.
            scale: the encoder's logit scale, already exponentiated; a positive number or a
                one-element tensor, which receives a gradient if it requires one.
            strength: lambda in the applied mask `1 + lambda (M - 1)`; 0 is zero-shot.
            return_mask: also return the `(B, K, D)` mask.
            shortlist: only so many classes of each image, those with the highest zero-shot logits, get a
                mask, each by attending to 64 landmarks, which stand for all; for all others the mask is
                one (ours, not in the paper). None for all.

        Returns:
            Logits, largest deviation of the applied mask from one, and the mask if asked for.

        Raises:
            FeatureError: features of the wrong shape, width or type.
            ConfigError: a scale that is not positive or a strength that is not finite.
        """
        check_features(image_features, text_features, self.dim)
        check_scale(scale, strength)
        check_shortlist(shortlist, text_features)
        with torch.autocast(image_features.device.type, enabled=False):
            if shortlist is None or shortlist >= text_features.shape[-2]:
                return self._predict(image_features, text_features, scale, strength, return_mask)
            return self._listed(
                image_features, text_features, scale, shortlist, strength, return_mask
            )

    def _predict(
        self,
        image_features: Tensor,
        text_features: Tensor,
        scale: float | Tensor,
        strength: float,
        return_mask: bool,
    ) -> HeadOutput:
        image, text, scale = self._cast(image_features, text_features, scale)
        if text.ndim == 3:
            zero_shot = scale * (text @ image[:, :, None])[..., 0]
            class_set = prepare_classes(text, scale, self.query_text)
        else:
            zero_shot = scale * (image @ text.T)
            class_set = self._classes(text, scale)
        return self._masked(image * scale**0.5, zero_shot, class_set, strength, return_mask)

    def _cast(
        self, image: Tensor, text: Tensor, scale: float | Tensor
    ) -> tuple[Tensor, Tensor, float | Tensor]:
        dtype = self._compute_dtype()
        if isinstance(scale, Tensor):
            scale = scale.to(device=image.device, dtype=dtype).reshape(())
        return image.to(dtype), text.to(dtype), scale

    def _listed(
        self,
        image_features: Tensor,
        text_features: Tensor,
        scale: float | Tensor,
        count: int,
        strength: float,
        return_mask: bool,
    ) -> HeadOutput:
        """Give the first `count` classes of each image their masks, all others one."""
        image, text, scale = self._cast(image_features, text_features, scale)
        zero_shot = scale * (image @ text.T)
        image = image * scale**0.5
        places = zero_shot.detach().topk(count, 1).indices.sort(1).values
        marks = landmark_places(text)
        # Of a few images the classes that are needed are projected; of many, once for a class set.
        few = _FEW * (places.numel() + len(marks)) <= len(text)
        class_set = None if few else self._classes(text, scale)

        def taken(rows: Tensor) -> PreparedClasses:
            if class_set is None:
                return prepare_classes(text[rows], scale, self.query_text)
            return PreparedClasses(class_set.text[rows], class_set.query[rows])

        landmarks, weights = taken(marks), self._weights(image.dtype)

        def part(own: Tensor, base: Tensor, chosen: Tensor) -> HeadOutput:
            shift, peak, change = listed_attention(
                own,
                taken(chosen),
                landmarks,
                torch.isin(chosen, marks),
                apply_linear(self.query_image, own),
                weights,
                num_heads=self.num_heads,
                temperature=self.temperature,
            )
            logits = base.scatter_add(1, chosen, strength * shift)
            mask = None
            if return_mask:
                mask = change.new_ones(*base.shape, self.dim)
                mask = mask.scatter(1, chosen[..., None].expand_as(change), 1 + strength * change)
            return HeadOutput(logits, abs(strength) * peak, mask)

        if torch.is_grad_enabled() or transforms_active():
            return part(image, zero_shot, places)
        # Class features are copied for each image: for a few images at a time.
        an_image = (count + len(marks)) * (self.dim + self.num_heads * len(marks))
        size = max(1, _LISTED_NUMBERS // an_image)
        parts = zip(image.split(size), zero_shot.split(size), places.split(size), strict=True)
        return _joined([part(*own) for own in parts])

    def _weights(self, dtype: torch.dtype) -> AttentionWeights:
        layers = (self.query_rational, self.key, self.value, self.out)
        return AttentionWeights(
            *(p.to(dtype) for layer in layers for p in (layer.weight, layer.bias))
        )

    def _masked(
        self,
        image: Tensor,
        zero_shot: Tensor,
        class_set: PreparedClasses,
        strength: float,
        return_mask: bool,
    ) -> HeadOutput:
        settings = ChunkConfig(self.num_heads, self.temperature, self.memory_budget, return_mask)
        shift, peak, change = mask_attention(
            image,
            class_set.text,
            apply_linear(self.query_image, image),
            class_set.query,
            self._weights(image.dtype),
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


def _joined(parts: list[HeadOutput]) -> HeadOutput:
    if len(parts) == 1:
        return parts[0]
    masks = [part.mask for part in parts if part.mask is not None]
    return HeadOutput(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.max_deviation for part in parts]),
        torch.cat(masks) if masks else None,
    )
