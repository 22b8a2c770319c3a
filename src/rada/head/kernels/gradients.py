"""One chunk of images, backwards: its share of every gradient that is needed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rada.head.kernels.chunk import (
    Activations,
    ChunkConfig,
    ChunkInputs,
    merge_heads,
    split_heads,
    stack_queries,
)
from rada.head.kernels.maps import MapState, maps_backward
from rada.head.kernels.plan import KernelPlan
from rada.head.reference import AttentionWeights

__all__ = ["Gradients", "OutputGradients"]


class OutputGradients(NamedTuple):
    """Gradients of what `MaskAttention` returns, None where there is none."""

    shift: Tensor | None
    peak: Tensor | None
    change: Tensor | None

    def part(self, images: slice) -> OutputGradients:
        """Return those of some images."""
        return OutputGradients(*(None if g is None else g[images] for g in self))


class Gradients:
    """Sums over the chunks of the gradients that are needed, None where they are not.

    Args:
        inputs: of the whole batch.
        needed: for each of `inputs.flat()`.
    """

    def __init__(self, inputs: ChunkInputs, needed: tuple[bool, ...]) -> None:
        made = [
            torch.zeros_like(tensor, memory_format=torch.contiguous_format) if need else None
            for tensor, need in zip(inputs.flat(), needed, strict=True)
        ]
        self.image, self.text, self.image_query, self.text_query = made[:4]
        self.layers = dict(zip(AttentionWeights._fields, made[4:], strict=True))
        self._need_maps = any(needed[:4]) or any(needed[4:-2])
        self._need_tokens = self.image is not None or self.text is not None

    def flat(self) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of the inputs."""
        own = (self.image, self.text, self.image_query, self.text_query)
        return (*own, *self.layers.values())

    def add_chunk(
        self,
        inputs: ChunkInputs,
        kept: Activations,
        outer: OutputGradients,
        part: slice,
        settings: ChunkConfig,
        plan: KernelPlan,
    ) -> None:
        """Add the gradients of one chunk.

        Args:
            inputs: of the chunk.
            kept: its activations.
            outer: gradients of its outputs.
            part: its images.
            settings: of the head.
            plan: as in the forward pass.
        """
        images, num_heads, dim = len(inputs.image), settings.num_heads, inputs.image.shape[1]
        d_out = _mask_gradient(inputs, kept, outer)
        self._add_layer("out", d_out, kept.mixed)
        if not self._need_maps:
            return
        d_mixed = split_heads(torch.mm(d_out, inputs.weights.out), images, num_heads)
        del d_out
        d_queries, d_keys, d_values = maps_backward(
            stack_queries(kept.rational_query, inputs, num_heads),
            kept.keys,
            kept.values,
            # whole maps do not read the output, and for several images this would copy it
            kept.mixed if plan.rows is None else split_heads(kept.mixed, images, num_heads),
            MapState(kept.total, kept.shift, kept.rational),
            d_mixed,
            settings.factor(dim),
            plan,
        )
        del d_mixed
        classes = inputs.classes
        d_queries = d_queries.view(images, num_heads, 2 * classes + 1, -1)
        if self.text_query is not None:
            own = d_queries[:, :, classes:-1].transpose(1, 2)
            if inputs.own_classes:
                self.text_query[part] = own.reshape(images, classes, dim)
            else:
                self.text_query += own.sum(0).reshape(classes, dim)
        if self.image_query is not None:
            self.image_query[part] = d_queries[:, :, -1].reshape(images, dim)
        rational = d_queries[:, :, :classes].flatten(0, 1)
        self._add_layers(inputs, kept, outer, part, (rational, d_keys, d_values))

    def _add_layer(self, name: str, gradient: Tensor, read: Tensor) -> None:
        """Add a linear layer's weight and bias gradient, from its output's and what it read."""
        weight, bias = self.layers[name], self.layers[f"{name}_bias"]
        if weight is not None:
            weight.addmm_(gradient.T, read)
        if bias is not None:
            bias += gradient.sum(0)

    def _add_layers(
        self,
        inputs: ChunkInputs,
        kept: Activations,
        outer: OutputGradients,
        part: slice,
        parts: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Add what flows into the tokens through the three layers that read them."""
        images, weights, tokens = len(inputs.image), inputs.weights, inputs.tokens()
        d_tokens = None
        if self._need_tokens:
            d_tokens = torch.zeros_like(tokens)
            if outer.shift is not None:
                assert kept.change is not None
                torch.mul(kept.change, outer.shift.reshape(-1, 1), out=d_tokens)
        read = (weights.rational, weights.key, weights.value)
        for name, gradient, weight in zip(("rational", "key", "value"), parts, read, strict=True):
            rows = merge_heads(gradient, images)
            self._add_layer(name, rows, tokens)
            if d_tokens is not None:
                d_tokens.addmm_(rows, weight)
        if d_tokens is None:
            return
        d_tokens = d_tokens.view(images, *inputs.text.shape[-2:])
        if self.image is not None:
            self.image[part] = (d_tokens * inputs.text).sum(1)
        if self.text is not None:
            d_text = d_tokens * inputs.image[:, None]
            if inputs.own_classes:
                self.text[part] = d_text
            else:
                self.text += d_text.sum(0)


def _mask_gradient(inputs: ChunkInputs, kept: Activations, outer: OutputGradients) -> Tensor:
    """Gradient of what the layer `out` returns, as rows `(images K, D)`."""
    images = len(inputs.image)
    gradient = inputs.tokens().view(images, *inputs.text.shape[-2:])
    gradient.mul_(0.0 if outer.shift is None else outer.shift[..., None])
    if outer.change is not None:
        gradient += outer.change
    if outer.peak is not None:
        numbers = torch.arange(images, device=gradient.device)
        gradient.flatten(1)[numbers, kept.peak_entry] += outer.peak * kept.peak_sign
    rows = gradient.flatten(0, 1)
    return rows if kept.is_open is None else rows.mul_(kept.is_open)
