"""Masks of a few likely classes of each image among many: a shortlist (ours, not in the paper).

Were the likely classes to meet each other alone, they would meet their like alone, and the joint softmax,
which shares its weight among all rows, would be another one than among all classes: measured, half of what
the head gains was lost. So a few classes, the landmarks, stand for all of them: they are what every listed
class attends to, and what its row of the joint softmax shares its weight with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear

from rada.head.classes import PreparedClasses
from rada.head.reference import AttentionWeights

__all__ = ["LANDMARKS", "landmark_places", "listed_attention"]

LANDMARKS = 64
"""Classes that stand for all; as many as a step of training draws."""


def landmark_places(text: Tensor) -> Tensor:
    """Return the landmarks of a class set: those at even steps along one fixed direction of the features.

    They depend on the features alone, not on the order of the classes. Of up to `LANDMARKS` classes all are.

    Args:
        text: Class features, `(K, D)`.

    Example:
        >>> landmark_places(torch.eye(3)).tolist(), len(landmark_places(torch.randn(1000, 8)))
        ([0, 1, 2], 64)
    """
    count = len(text)
    if count <= LANDMARKS:
        return torch.arange(count, device=text.device)
    # Any direction without a meaning does; this one needs no random numbers, which an export could not keep.
    steps = torch.arange(text.shape[1], dtype=torch.float64, device=text.device)
    order = (text.detach() @ steps.square().cos().to(text.dtype)).argsort(stable=True)
    places = (2 * torch.arange(LANDMARKS, device=text.device) + 1) * count // (2 * LANDMARKS)
    return order[places]


def listed_attention(
    image: Tensor,
    listed: PreparedClasses,
    landmarks: PreparedClasses,
    known: Tensor,
    image_query: Tensor,
    weights: AttentionWeights,
    *,
    num_heads: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the mask of each listed class, whose query stands beside those of the landmarks.

    With ordinary differentiable operations: they are few.

    Args:
        image: `sqrt(s) f`, `(B, D)`.
        listed: the listed classes, `(B, C, D)`.
        landmarks: the landmarks, `(R, D)`.
        known: which of the listed are landmarks, `(B, C)`.
        image_query: `query_image(image)`, `(B, D)`.
        weights: the other layers.
        num_heads: `H`, a divisor of `D`.
        temperature: tau, which divides the scores.

    Returns:
        As `rada.head.reference.composite_attention`, for the listed classes.
    """
    count, width = len(landmarks.text), image.shape[-1] // num_heads
    tokens, marks = image[:, None] * listed.text, image[:, None] * landmarks.text

    def heads(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], num_heads, width).transpose(-3, -2)

    keys = heads(linear(marks, weights.key, weights.key_bias)).mT / (temperature * math.sqrt(width))
    values = heads(linear(marks, weights.value, weights.value_bias))
    both = linear(torch.cat([marks, tokens], 1), weights.rational, weights.rational_bias)
    known = known[:, None]  # (B, 1, C), for all heads
    maps = _rows(heads(landmarks.query) @ keys, heads(listed.query) @ keys, known)
    maps = maps + _rows(heads(both[:, :count]) @ keys, heads(both[:, count:]) @ keys, known)
    row = (heads(image_query[:, None]) @ keys).softmax(-1)
    size = (count + (~known).to(tokens.dtype))[..., None]
    mixed = ((maps * size + row) / 3 @ values).transpose(-3, -2).flatten(-2)
    change = linear(mixed, weights.out, weights.out_bias).clamp(min=-1)
    return (change * tokens).sum(-1), change.abs().flatten(1).amax(-1), change


def _rows(scores: Tensor, own: Tensor, known: Tensor) -> Tensor:
    """Return the row of each listed class in the joint softmax of the landmarks' rows and itself.

    Args:
        scores: of the landmarks' queries, `(B, H, R, R)`.
        own: of the listed classes' queries, `(B, H, C, R)`.
        known: which of the listed are landmarks, so that their row is there already, `(B, 1, C)`.
    """
    among = scores.flatten(-2).logsumexp(-1)[..., None]
    added = own.logsumexp(-1).masked_fill(known, -math.inf)
    return (own - torch.logaddexp(among, added)[..., None]).exp()
