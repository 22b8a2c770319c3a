"""A small separable problem on features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rada import Features

SCALE = 20.0
NAMES = tuple(f"class {index}" for index in range(6))


def toy(
    classes: int = 6, shots: int = 4, dim: int = 16, views: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Separable images whose class features point elsewhere: zero-shot is poor."""
    generator = torch.Generator().manual_seed(seed)
    text = normalize(torch.randn(classes, dim, generator=generator), dim=-1)
    centres = normalize(text + 1.5 * torch.randn(classes, dim, generator=generator) / 4, dim=-1)
    labels = torch.arange(classes).repeat(shots)
    shape = (len(labels), dim) if views is None else (len(labels), views, dim)
    noise = torch.randn(shape, generator=generator) / 20
    images = centres[labels] if views is None else centres[labels][:, None]
    return normalize(images + noise, dim=-1), labels, text


def toy_features() -> Features:
    """Those of `toy`, with names."""
    images, labels, text = toy()
    return Features(images, labels, NAMES, text_features=text, scale=SCALE)
