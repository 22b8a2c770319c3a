"""The entry to the mask attention: the fast form, or the plain one where only that can serve."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from rada.head.kernels.chunk import ChunkConfig
from rada.head.kernels.function import MaskAttention
from rada.head.reference import AttentionWeights, composite_attention

__all__ = ["mask_attention", "transforms_active"]


def transforms_active() -> bool:
    """Whether a `torch.func` transform or an export is looking on."""
    # PyTorch has `is_exporting` from 2.7 on.
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(torch._C._are_functorch_transforms_active() or exporting())


def mask_attention(
    image: Tensor,
    text: Tensor,
    image_query: Tensor,
    text_query: Tensor,
    weights: AttentionWeights,
    settings: ChunkConfig,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute how the mask moves the logits, and how far it is from one.

    Args:
        image: `sqrt(s) f`, `(B, D)`.
        text: `sqrt(s) h`, `(K, D)`, or `(B, K, D)` for classes that differ by image.
        image_query: `query_image(image)`, `(B, D)`.
        text_query: `query_text(text)`, of the same shape.
        weights: the layers `query_rational`, `key`, `value` and `out`.
        settings: heads, temperature, memory budget, and whether `M - 1` is returned.

    Returns:
        `shift (B, K)`, the sum over `d` of `(M - 1) s R`; `peak (B,)`, the maximum of `|M - 1|`;
        and `M - 1`, `(B, K, D)`, or None.
    """
    if transforms_active():
        shift, peak, change = composite_attention(
            image,
            text,
            image_query,
            text_query,
            weights,
            num_heads=settings.num_heads,
            temperature=settings.temperature,
        )
        return shift, peak, change if settings.with_change else None
    inputs = *(t.contiguous() for t in (image, text, image_query, text_query)), *weights
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    return _fast(settings._replace(keep=keep), *inputs)


def _apply(settings: ChunkConfig, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    shift, peak, change = MaskAttention.apply(settings, *tensors)
    return shift, peak, change


def _fast(settings: ChunkConfig, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Apply it; compiled callers run it as it is, since its work is matrix products."""
    # Without the compiler there is no compiled caller, and importing it takes as long as all of torch.
    if "torch._dynamo" not in sys.modules:
        return _apply(settings, *tensors)
    if "apply" not in _outside_compilers:
        _outside_compilers["apply"] = torch.compiler.disable(_apply)
    return _outside_compilers["apply"](settings, *tensors)


_outside_compilers: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor | None]]] = {}
