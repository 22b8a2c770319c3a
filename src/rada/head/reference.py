"""The mask attention of RAda written with ordinary operations, which PyTorch differentiates.

The fast form (`rada.head.kernels.function`) computes the same. This one serves `torch.func` transforms,
export and gradients of gradients.

Notation: `B` images, `K` classes, `D` dimensions, `H` heads of width `d = D / H`. With the scale
`s`, the caller passes `image = sqrt(s) f` and `text = sqrt(s) h`, so that the token matrix of an
image is `X[b] = image[b] * text = s R[b]`, `(K, D)`.

Source: "One Last Attention for Your Vision-Language Model", ICCV 2025, arXiv 2507.15480.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import linear

__all__ = ["AttentionWeights", "composite_attention"]


class AttentionWeights(NamedTuple):
    """Weights `(D, D)` and biases `(D,)` of the four layers that read the tokens of an image."""

    rational: Tensor
    rational_bias: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor
    out: Tensor
    out_bias: Tensor


def composite_attention(
    image: Tensor,
    text: Tensor,
    image_query: Tensor,
    text_query: Tensor,
    weights: AttentionWeights,
    *,
    num_heads: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the mask with ordinary differentiable operations, for all images at once.

    Args:
        image: `sqrt(s) f`, `(B, D)`.
        text: `sqrt(s) h`, `(K, D)`, or `(B, K, D)` for classes that differ by image.
        image_query: `query_image(image)`, `(B, D)`.
        text_query: `query_text(text)`, of the same shape.
        weights: the four other layers.
        num_heads: `H`, a divisor of `D`.
        temperature: tau, which divides the scores.

    Returns:
        `shift (B, K)`, the sum over `d` of `(M - 1) X`; `peak (B,)`, the maximum of `|M - 1|`; and
        `M - 1` itself, `(B, K, D)`.
    """

    def heads(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], num_heads, -1).transpose(-3, -2)

    tokens = image[:, None] * text
    key = heads(linear(tokens, weights.key, weights.key_bias))
    value = heads(linear(tokens, weights.value, weights.value_bias))
    rational = heads(linear(tokens, weights.rational, weights.rational_bias))
    key = key.transpose(-2, -1) / (temperature * math.sqrt(key.shape[-1]))

    def joint(scores: Tensor) -> Tensor:
        return scores.flatten(-2).softmax(-1).reshape(scores.shape)

    maps = joint(heads(text_query) @ key) + joint(rational @ key)
    row = (heads(image_query[:, None]) @ key).softmax(-1)
    mixed = (maps * (text.shape[-2] / 3) + row / 3) @ value
    mixed = mixed.transpose(-3, -2).flatten(-2)
    change = linear(mixed, weights.out, weights.out_bias).clamp(min=-1)
    return (change * tokens).sum(-1), change.abs().flatten(1).amax(-1), change
