"""What the attention hands to its output layer, for adaptation that changes this layer alone."""

from __future__ import annotations

import torch
from torch import Tensor

from rada.head.classes import apply_linear, prepare_classes
from rada.head.head import RAdaHead
from rada.head.kernels.chunk import ChunkConfig, ChunkInputs, attend
from rada.head.kernels.plan import default_budget, make_plan
from rada.head.reference import AttentionWeights

__all__ = ["mixed_values"]


@torch.no_grad()
def mixed_values(
    head: RAdaHead, image_features: Tensor, text_features: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the tokens `s R` and what the layer `out` reads of them, each `(B, K, D)`.

    The mask is `relu(1 + head.out(mixed))`. Without gradients.

    Args:
        head: the head; its layer `out` is not used.
        image_features: unit-norm, `(B, D)`.
        text_features: unit-norm, `(K, D)`.
        scale: the logit scale.

    Example:
        >>> head, one = RAdaHead(8, num_heads=2), torch.eye(8)
        >>> tokens, mixed = mixed_values(head, one[:3], one, 10.0)
        >>> tokens.shape, mixed.shape
        (torch.Size([3, 8, 8]), torch.Size([3, 8, 8]))
    """
    class_set = prepare_classes(text_features, scale, head.query_text)
    image = image_features * scale**0.5
    (batch, dim), classes = image.shape, len(text_features)
    settings = ChunkConfig(head.num_heads, head.temperature, head.memory_budget)
    layers = (head.query_rational, head.key, head.value, head.out)
    weights = AttentionWeights(
        *(p.to(image.dtype) for layer in layers for p in (layer.weight, layer.bias))
    )
    query = apply_linear(head.query_image, image)
    inputs = ChunkInputs(image, class_set.text, query, class_set.query, weights)
    plan = make_plan(
        batch,
        classes,
        dim,
        head.num_heads,
        itemsize=image.element_size(),
        budget=settings.memory_budget or default_budget(image.device.type),
        device_type=image.device.type,
    )
    tokens = image[:, None] * class_set.text
    mixed = torch.empty_like(tokens)
    for start in range(0, batch, plan.images):
        chunk = inputs.chunk(start, plan.images)
        rows = tokens[start : start + plan.images].flatten(0, 1)
        own = attend(rows, chunk, settings, plan).mixed
        mixed[start : start + plan.images] = own.view(-1, classes, dim)
    return tokens, mixed
