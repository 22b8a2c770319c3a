"""The mask attention as one differentiable function with a hand-written backward pass.

It runs over chunks of images (`chunk`, `gradients`) and reduces the mask of each at once to the two
numbers that the caller needs, so the `(B, K, D)` mask exists for one chunk only
unless it is asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rada.head.kernels.chunk import Activations, ChunkConfig, ChunkInputs, peak_of, run_chunk
from rada.head.kernels.gradients import Gradients, OutputGradients
from rada.head.kernels.plan import default_budget, make_plan
from rada.head.reference import AttentionWeights, composite_attention

__all__ = ["MaskAttention"]

_INPUTS = 4 + len(AttentionWeights._fields)


class MaskAttention(torch.autograd.Function):
    """Settings and `ChunkInputs.flat()` to `shift`, `peak` and `M - 1`.

    See `rada.head.attention.mask_attention` for the meaning of each.
    """

    @staticmethod
    def forward(ctx: Any, settings: ChunkConfig, *tensors: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Run over chunks of images; keep activations if a gradient is needed and they fit."""
        inputs = ChunkInputs.from_flat(tensors)
        image, (batch, dim), classes = inputs.image, inputs.image.shape, inputs.classes
        plan = make_plan(
            batch,
            classes,
            dim,
            settings.num_heads,
            itemsize=image.element_size(),
            budget=settings.memory_budget or default_budget(image.device.type),
            device_type=image.device.type,
            keep=settings.keep,
        )
        own = settings._replace(keep=plan.keep)
        shift, peak = image.new_empty(batch, classes), image.new_empty(batch)
        whole = image.new_empty(batch, classes, dim) if settings.with_change else None
        kept: list[Activations] = []
        for start in range(0, batch, plan.images):
            chunk = inputs.chunk(start, plan.images)
            part = slice(start, start + plan.images)
            tokens = chunk.tokens()
            rows, attended = run_chunk(tokens, chunk, own, plan)
            change = rows.view(-1, classes, dim)
            peak[part], where = peak_of(change)
            torch.sum(tokens.mul_(rows).view_as(change), -1, out=shift[part])
            if whole is not None:
                whole[part] = change
            if attended is not None:
                kept.append(Activations.of(attended, change, peak[part], where, _need_tokens(ctx)))
        ctx.settings, ctx.plan = settings, plan
        ctx.save_for_backward(*tensors, *(t for chunk_kept in kept for t in chunk_kept))
        ctx.set_materialize_grads(False)
        return shift, peak, whole

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; twice differentiable through the plain form."""
        saved: tuple[Any, ...] = ctx.saved_tensors
        inputs, given = ChunkInputs.from_flat(saved[:_INPUTS]), OutputGradients(*outer)
        needed = ctx.needs_input_grad[1:]
        if all(g is None for g in given):
            return (None,) * (1 + _INPUTS)
        if torch.is_grad_enabled():
            return None, *_composite_backward(inputs, needed, given, ctx.settings)
        size = len(Activations._fields)
        kept = [Activations(*saved[at : at + size]) for at in range(_INPUTS, len(saved), size)]
        gradients, plan, settings = Gradients(inputs, needed), ctx.plan, ctx.settings
        with torch.autocast(inputs.image.device.type, enabled=False):
            for number, start in enumerate(range(0, len(inputs.image), plan.images)):
                chunk = inputs.chunk(start, plan.images)
                part = slice(start, start + plan.images)
                activations = kept[number] if plan.keep else _again(ctx, chunk)
                gradients.add_chunk(chunk, activations, given.part(part), part, settings, plan)
        return None, *gradients.flat()


def _need_tokens(ctx: Any) -> bool:
    """Whether the features of images or classes need a gradient."""
    _, image, text, *_ = ctx.needs_input_grad
    return bool(image or text)


def _again(ctx: Any, chunk: ChunkInputs) -> Activations:
    """Compute the activations of a chunk that were not kept."""
    rows, attended = run_chunk(chunk.tokens(), chunk, ctx.settings._replace(keep=True), ctx.plan)
    assert attended is not None
    change = rows.view(len(chunk.image), -1, rows.shape[1])
    return Activations.of(attended, change, *peak_of(change), _need_tokens(ctx))


def _composite_backward(
    inputs: ChunkInputs, needed: tuple[bool, ...], outer: OutputGradients, settings: ChunkConfig
) -> tuple[Tensor | None, ...]:
    """The gradients as a differentiable graph, for gradients of gradients."""
    results = composite_attention(
        *inputs, num_heads=settings.num_heads, temperature=settings.temperature
    )
    pairs = [(r, g) for r, g in zip(results, outer, strict=True) if g is not None]
    found = iter(
        torch.autograd.grad(
            [r for r, _ in pairs],
            [t for t, need in zip(inputs.flat(), needed, strict=True) if need],
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return tuple(next(found) if need else None for need in needed)
