"""A plain float64 transcription of the head's equations, written for reading, not for speed.

It shares no code with the library. One image at a time, one head at a time, and the three
class-by-class maps written out in full (arXiv 2507.15480, section 3, with the joint softmax).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class OracleOutput(NamedTuple):
    """Logits `(B, K)`, max |M - 1| `(B,)` and mask `(B, K, D)`, of the mask that was applied."""

    logits: Tensor
    max_deviation: Tensor
    mask: Tensor


def joint_softmax(scores: Tensor, temperature: float) -> Tensor:
    """Softmax over all entries of a K x K map at once, times K."""
    rows, columns = scores.shape
    flat = torch.softmax(scores.reshape(-1) / temperature, dim=0)
    return rows * flat.reshape(rows, columns)


def image_mask(head: nn.Module, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """The mask M `(K, D)` of one image `(D,)`."""
    classes, dim = text.shape
    rational = image[None, :] * text
    tokens = scale * rational
    queries = [
        head.query_image(torch.sqrt(scale) * image)[None, :].repeat(classes, 1),
        head.query_text(torch.sqrt(scale) * text),
        head.query_rational(tokens),
    ]
    keys, values = head.key(tokens), head.value(tokens)
    width = dim // head.num_heads
    outputs = []
    for number in range(head.num_heads):
        part = slice(number * width, (number + 1) * width)
        average = torch.zeros(classes, classes, dtype=tokens.dtype)
        for query in queries:
            scores = query[:, part] @ keys[:, part].T / math.sqrt(width)
            average = average + joint_softmax(scores, head.temperature) / 3
        outputs.append(average @ values[:, part])
    return torch.relu(1 + head.out(torch.cat(outputs, dim=1)))


def oracle(
    head: nn.Module,
    image_features: Tensor,
    text_features: Tensor,
    scale: float | Tensor,
    strength: float = 1.0,
) -> OracleOutput:
    """Run the six layers of `head` (made float64 by the caller) through the equations."""
    scale = torch.as_tensor(scale, dtype=torch.float64).reshape(())
    logits, deviations, masks = [], [], []
    for image in image_features:
        full = image_mask(head, image, text_features, scale)
        mask = 1 + strength * (full - 1)
        rational = image[None, :] * text_features
        logits.append(scale * (mask * rational).sum(1))
        deviations.append((mask - 1).abs().max())
        masks.append(mask)
    return OracleOutput(torch.stack(logits), torch.stack(deviations), torch.stack(masks))
