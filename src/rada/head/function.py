"""The mask attention as one differentiable function with a hand-written backward pass.

It runs over chunks of images. Per chunk it forms the tokens, three linear layers, the maps
(`rada.head.maps`) and the output layer, and reduces the mask at once to the two numbers that the
caller needs, so the `(B, K, D)` mask exists for one chunk only unless it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rada.head.maps import MapState, maps_backward, maps_forward
from rada.head.plan import Plan, default_budget, make_plan
from rada.head.reference import AttentionWeights, composite_attention

__all__ = ["MaskAttention", "Settings"]

_INPUTS = 4 + len(AttentionWeights._fields)


class Settings(NamedTuple):
    """What is not differentiable.

    Attributes:
        num_heads: `H`.
        temperature: tau.
        memory_budget: bytes; None stands for `default_budget`.
        with_change: whether `M - 1` is returned.
        keep: whether activations are kept for a backward pass, if they fit.
    """

    num_heads: int
    temperature: float
    memory_budget: int | None = None
    with_change: bool = False
    keep: bool = False

    def factor(self, dim: int) -> float:
        """Return what multiplies the scores, `1 / (tau sqrt(d))`."""
        return 1 / (self.temperature * math.sqrt(dim // self.num_heads))


class _Activations(NamedTuple):
    """Results of one chunk that its backward pass uses."""

    rational_query: Tensor
    keys: Tensor
    values: Tensor
    mixed: Tensor
    change: Tensor
    total: Tensor
    shift: Tensor | None
    rational: Tensor | None


class _Inputs(NamedTuple):
    """The differentiable inputs, in the order of `MaskAttention.forward`."""

    image: Tensor
    text: Tensor
    image_query: Tensor
    text_query: Tensor
    weights: AttentionWeights

    @classmethod
    def from_flat(cls, tensors: Sequence[Tensor]) -> _Inputs:
        image, text, image_query, text_query, *weights = tensors
        return cls(image, text, image_query, text_query, AttentionWeights(*weights))

    def flat(self) -> tuple[Tensor, ...]:
        return (self.image, self.text, self.image_query, self.text_query, *self.weights)

    def chunk(self, start: int, size: int) -> _Inputs:
        part = slice(start, start + size)
        return self._replace(image=self.image[part], image_query=self.image_query[part])


def _split_heads(rows: Tensor, images: int, num_heads: int) -> Tensor:
    """`(images K, D)` to `(images H, K, d)`: a view if there is one image, else a copy."""
    split = rows.view(images, rows.shape[0] // images, num_heads, -1)
    return split.transpose(1, 2).flatten(0, 1)


def _merge_heads(parts: Tensor, images: int) -> Tensor:
    """`(images H, K, d)` to `(images K, D)`."""
    split = parts.reshape(images, -1, *parts.shape[1:]).transpose(1, 2)
    return split.flatten(2).flatten(0, 1)


def _stack_queries(rational: Tensor, inputs: _Inputs, num_heads: int) -> Tensor:
    """Rational, text and image queries of a chunk, `(images H, 2 K + 1, d)`."""
    images, classes = inputs.image.shape[0], inputs.text.shape[0]
    width = rational.shape[1] // num_heads
    queries = rational.new_empty(images, num_heads, 2 * classes + 1, width)
    split = (-1, num_heads, width)
    queries[:, :, :classes] = rational.view(images, *split).transpose(1, 2)
    queries[:, :, classes:-1] = inputs.text_query.view(split).transpose(0, 1)
    queries[:, :, -1] = inputs.image_query.view(split)
    return queries.flatten(0, 1)


def _tokens(inputs: _Inputs) -> Tensor:
    return (inputs.image[:, None] * inputs.text).flatten(0, 1)


def _run_chunk(
    tokens: Tensor, inputs: _Inputs, settings: Settings, plan: Plan, *, keep: bool
) -> tuple[Tensor, _Activations | None]:
    """Return `M - 1` as `(images K, D)`, and the activations if they are to be kept."""
    images, num_heads, weights = inputs.image.shape[0], settings.num_heads, inputs.weights
    rational = torch.addmm(weights.rational_bias, tokens, weights.rational.T)
    queries = _stack_queries(rational, inputs, num_heads)
    keys = _split_heads(torch.addmm(weights.key_bias, tokens, weights.key.T), images, num_heads)
    values = _split_heads(
        torch.addmm(weights.value_bias, tokens, weights.value.T), images, num_heads
    )
    if not keep:
        del rational
    parts, state = maps_forward(queries, keys, values, settings.factor(tokens.shape[1]), plan)
    del queries
    if not keep:
        del keys, values
    mixed = _merge_heads(parts, images)
    del parts
    change = torch.addmm(weights.out_bias, mixed, weights.out.T).clamp_(min=-1)
    if not keep:
        return change, None
    return change, _Activations(rational, keys, values, mixed, change, *state)


def _peak(change: Tensor) -> tuple[Tensor, Tensor]:
    """Largest `|M - 1|` of each image, and the class that it is found at, `(images,)` each."""
    rows = torch.maximum(change.amax(-1), change.amin(-1).neg_())
    peak, where = rows.max(-1)
    return peak, where


class _Gradients:
    """Sums over the chunks of the gradients that are needed, None where they are not."""

    def __init__(self, inputs: _Inputs, needed: tuple[bool, ...]) -> None:
        made = [
            torch.zeros_like(tensor, memory_format=torch.contiguous_format) if need else None
            for tensor, need in zip(inputs.flat(), needed, strict=True)
        ]
        self.image, self.text, self.image_query, self.text_query = made[:4]
        self.layers = dict(zip(AttentionWeights._fields, made[4:], strict=True))
        self.maps = any(needed[:4]) or any(needed[4:-2])
        self.tokens = self.image is not None or self.text is not None

    def add_layer(self, name: str, gradient: Tensor, read: Tensor) -> None:
        """Add a linear layer's weight and bias gradient, from its output's and what it read."""
        weight, bias = self.layers[name], self.layers[f"{name}_bias"]
        if weight is not None:
            weight.addmm_(gradient.T, read)
        if bias is not None:
            bias += gradient.sum(0)

    def flat(self) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of the inputs."""
        own = (self.image, self.text, self.image_query, self.text_query)
        return (*own, *self.layers.values())


class MaskAttention(torch.autograd.Function):
    """`(image, text, image_query, text_query, *weights)` to `shift`, `peak` and `M - 1`.

    See `rada.head.attention.mask_attention` for the meaning of each.
    """

    @staticmethod
    def forward(ctx: Any, settings: Settings, *tensors: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Run over chunks of images; keep activations if a gradient is needed and they fit."""
        inputs = _Inputs.from_flat(tensors)
        image, text = inputs.image, inputs.text
        (batch, dim), classes = image.shape, text.shape[0]
        budget = settings.memory_budget or default_budget(image.device.type)
        plan = make_plan(
            batch,
            classes,
            dim,
            settings.num_heads,
            itemsize=image.element_size(),
            budget=budget,
        )
        keep = plan.keep and settings.keep
        shift, peak = image.new_empty(batch, classes), image.new_empty(batch)
        changes, kept = [], []
        for start in range(0, batch, plan.images):
            chunk = inputs.chunk(start, plan.images)
            part = slice(start, start + plan.images)
            tokens = _tokens(chunk)
            change, activations = _run_chunk(tokens, chunk, settings, plan, keep=keep)
            if activations is not None:
                kept.append(activations)
            mask_change = change.view(-1, classes, dim)
            peak[part] = _peak(mask_change)[0]
            if settings.with_change:
                changes.append(mask_change)
            torch.sum(tokens.mul_(change).view_as(mask_change), -1, out=shift[part])
        whole = None
        if settings.with_change:
            whole = torch.cat(changes) if changes else image.new_empty(0, classes, dim)
        ctx.settings, ctx.plan = settings, plan
        ctx.save_for_backward(peak, *tensors, *(t for chunk in kept for t in chunk))
        ctx.set_materialize_grads(False)
        return shift, peak, whole

    @staticmethod
    def backward(
        ctx: Any, d_shift: Tensor | None, d_peak: Tensor | None, d_change: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; twice differentiable through the plain form."""
        peak, *saved = ctx.saved_tensors
        inputs = _Inputs.from_flat(saved[:_INPUTS])
        needed = ctx.needs_input_grad[1:]
        outer = (d_shift, d_peak, d_change)
        if all(g is None for g in outer):
            return (None,) * (1 + _INPUTS)
        if torch.is_grad_enabled():
            return None, *_composite_backward(inputs, needed, outer, ctx.settings)
        size = len(_Activations._fields)
        kept = [_Activations(*saved[at : at + size]) for at in range(_INPUTS, len(saved), size)]
        gradients = _Gradients(inputs, needed)
        plan = ctx.plan
        with torch.autocast(peak.device.type, enabled=False):
            for number, start in enumerate(range(0, peak.shape[0], plan.images)):
                part = slice(start, start + plan.images)
                chunk = inputs.chunk(start, plan.images)
                tokens = _tokens(chunk)
                activations = kept[number] if kept else None
                if activations is None:
                    activations = _run_chunk(tokens, chunk, ctx.settings, plan, keep=True)[1]
                assert activations is not None
                own = tuple(None if g is None else g[part] for g in outer)
                _chunk_backward(
                    gradients, chunk, tokens, activations, own, part, ctx.settings, plan
                )
        return None, *gradients.flat()


def _composite_backward(
    inputs: _Inputs,
    needed: tuple[bool, ...],
    outer: tuple[Tensor | None, ...],
    settings: Settings,
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


def _mask_gradient(tokens: Tensor, change: Tensor, outer: tuple[Tensor | None, ...]) -> Tensor:
    """Gradient of the output layer's result, `(images, K, D)`; the three arguments likewise."""
    d_shift, d_peak, d_change = outer
    gradient = torch.zeros_like(tokens) if d_shift is None else tokens * d_shift[..., None]
    if d_change is not None:
        gradient += d_change
    peak, where = _peak(change)
    if d_peak is not None:
        images = torch.arange(len(peak), device=peak.device)
        row = change[images, where]
        entry = row.abs().argmax(-1)
        gradient[images, where, entry] += d_peak * row[images, entry].sign()
    if bool((peak >= 1).any()):
        gradient.mul_(change > -1)
    return gradient


def _chunk_backward(
    gradients: _Gradients,
    inputs: _Inputs,
    tokens: Tensor,
    kept: _Activations,
    outer: tuple[Tensor | None, ...],
    part: slice,
    settings: Settings,
    plan: Plan,
) -> None:
    """Add the gradients of one chunk of images."""
    images, classes, dim = inputs.image.shape[0], inputs.text.shape[0], tokens.shape[1]
    weights, num_heads = inputs.weights, settings.num_heads
    shape = (images, classes, dim)
    change = kept.change.view(shape)
    d_out = _mask_gradient(tokens.view(shape), change, outer).view_as(tokens)
    gradients.add_layer("out", d_out, kept.mixed)
    if not gradients.maps:
        return
    d_mixed = torch.mm(d_out, weights.out)
    del d_out
    d_queries, d_keys, d_values = maps_backward(
        _stack_queries(kept.rational_query, inputs, num_heads),
        kept.keys,
        kept.values,
        _split_heads(kept.mixed, images, num_heads) if plan.rows is not None else kept.mixed,
        MapState(kept.total, kept.shift, kept.rational),
        _split_heads(d_mixed, images, num_heads),
        settings.factor(dim),
        plan,
    )
    del d_mixed
    d_queries = d_queries.view(images, num_heads, 2 * classes + 1, dim // num_heads)
    if gradients.text_query is not None:
        summed = d_queries[:, :, classes:-1].sum(0)
        gradients.text_query += summed.transpose(0, 1).reshape(classes, dim)
    if gradients.image_query is not None:
        gradients.image_query[part] = d_queries[:, :, -1].reshape(images, dim)
    d_tokens = None
    if gradients.tokens and outer[0] is not None:
        d_tokens = (change * outer[0][..., None]).view_as(tokens)
    elif gradients.tokens:
        d_tokens = torch.zeros_like(tokens)
    parts = (
        ("rational", d_queries[:, :, :classes].flatten(0, 1), weights.rational),
        ("key", d_keys, weights.key),
        ("value", d_values, weights.value),
    )
    for name, part_gradient, weight in parts:
        merged = _merge_heads(part_gradient, images)
        gradients.add_layer(name, merged, tokens)
        if d_tokens is not None:
            d_tokens.addmm_(merged, weight)
    if d_tokens is None:
        return
    d_tokens = d_tokens.view(shape)
    if gradients.image is not None:
        gradients.image[part] = (d_tokens * inputs.text).sum(1)
    if gradients.text is not None:
        gradients.text += (d_tokens * inputs.image[:, None]).sum(0)
