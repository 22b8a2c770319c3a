"""Masks of a few likely classes of each image among many: a shortlist (ours, not in the paper).

Were the likely classes to meet each other alone, they would meet their like alone, and the joint softmax,
which shares its weight among all rows, would be another one than among all classes: measured, half of what
the head gains was lost. So the mask of a class is that of the paper's equations in a small class set that
stands for all of them: the landmarks, and the class itself.
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
    """Compute the mask of each listed class in the class set of the landmarks and itself.

    With ordinary differentiable operations: they are few.

    Args:
        image: `sqrt(s) f`, `(B, D)`.
        listed: the listed classes, `(B, C, D)`.
        landmarks: the landmarks, `(R, D)`.
        known: which of the listed are landmarks and need not be added, `(B, C)`.
        image_query: `query_image(image)`, `(B, D)`.
        weights: the other layers.
        num_heads: `H`, a divisor of `D`.
        temperature: tau, which divides the scores.

    Returns:
        As `rada.head.reference.composite_attention`, for the listed classes.
    """
    count = len(landmarks.text)
    tokens = image[:, None] * listed.text
    both = torch.cat([image[:, None] * landmarks.text, tokens], 1)

    width = image.shape[-1] // num_heads

    def heads(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], num_heads, width).transpose(-3, -2)

    def halves(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        found = heads(linear(both, weight, bias))
        return found[:, :, :count], found[:, :, count:]

    keys, own_key = (
        part / (temperature * math.sqrt(width)) for part in halves(weights.key, weights.key_bias)
    )
    values, own_value = halves(weights.value, weights.value_bias)
    known = known[:, None]  # (B, 1, C), for all heads
    shares = mixed = None
    for query, own_query in (
        (heads(landmarks.query), heads(listed.query)),
        halves(weights.rational, weights.rational_bias),
    ):
        found = _joint(query, own_query, keys, own_key, known)
        shares = found if shares is None else (shares[0] + found[0], shares[1] + found[1])
    assert shares is not None
    size = (count + (~known).to(tokens.dtype))[..., None] / 3
    row, own_row = _row(heads(image_query[:, None]), keys, own_key, known)
    mixed = (shares[0] * size + row / 3) @ values
    mixed = mixed + (shares[1][..., None] * size + own_row[..., None] / 3) * own_value
    change = linear(mixed.transpose(-3, -2).flatten(-2), weights.out, weights.out_bias).clamp(
        min=-1
    )
    return (change * tokens).sum(-1), change.abs().flatten(1).amax(-1), change


def _joint(
    query: Tensor, own_query: Tensor, keys: Tensor, own_key: Tensor, known: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the rows of the listed classes in a joint softmax each.

    On the landmarks, `(B, H, C, R)`, and on themselves, `(B, H, C)`.
    """
    rows = own_query @ keys.mT
    itself = (own_query * own_key).sum(-1)
    among = (query @ keys.mT).flatten(-2).logsumexp(-1)[..., None]
    added = torch.stack([(query @ own_key.mT).logsumexp(-2), rows.logsumexp(-1), itself])
    total = torch.logaddexp(among, added.logsumexp(0).masked_fill(known, -math.inf))
    return (rows - total[..., None]).exp(), (itself.masked_fill(known, -math.inf) - total).exp()


def _row(query: Tensor, keys: Tensor, own_key: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmaxes of the image's query on the landmarks and a listed class, as `_joint` does."""
    scores = query @ keys.mT
    itself = (query * own_key).sum(-1).masked_fill(known, -math.inf)
    total = torch.logaddexp(scores.logsumexp(-1), itself)
    return (scores - total[..., None]).exp(), (itself - total).exp()
