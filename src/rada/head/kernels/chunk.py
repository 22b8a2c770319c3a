"""One chunk of images, forwards: tokens, three linear layers, the maps and the output layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rada.head.kernels.maps import MapState, maps_forward
from rada.head.kernels.plan import KernelPlan
from rada.head.reference import AttentionWeights

__all__ = [
    "Activations",
    "Attended",
    "ChunkConfig",
    "ChunkInputs",
    "attend",
    "merge_heads",
    "peak_of",
    "run_chunk",
    "split_heads",
    "stack_queries",
]


class ChunkConfig(NamedTuple):
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


class ChunkInputs(NamedTuple):
    """The differentiable inputs; see `rada.head.attention.mask_attention` for each."""

    image: Tensor
    text: Tensor
    image_query: Tensor
    text_query: Tensor
    weights: AttentionWeights

    @classmethod
    def from_flat(cls, tensors: Sequence[Tensor]) -> ChunkInputs:
        """Undo `flat`."""
        image, text, image_query, text_query, *weights = tensors
        return cls(image, text, image_query, text_query, AttentionWeights(*weights))

    def flat(self) -> tuple[Tensor, ...]:
        """Return every tensor in order."""
        return (self.image, self.text, self.image_query, self.text_query, *self.weights)

    def chunk(self, start: int, size: int) -> ChunkInputs:
        """Return the inputs of `size` images."""
        part = slice(start, start + size)
        chunk = self._replace(image=self.image[part], image_query=self.image_query[part])
        if not self.own_classes:
            return chunk
        return chunk._replace(text=self.text[part], text_query=self.text_query[part])

    @property
    def classes(self) -> int:
        """The number of classes, K."""
        return self.text.shape[-2]

    @property
    def own_classes(self) -> bool:
        """Whether every image has classes of its own, `(B, K, D)`."""
        return self.text.ndim == 3

    def tokens(self) -> Tensor:
        """Return `X = s R` as rows, `(images K, D)`."""
        return (self.image[:, None] * self.text).flatten(0, 1)


class Attended(NamedTuple):
    """The attention of a chunk; rows are `(images K, D)`, parts `(images H, K, d)`."""

    mixed: Tensor
    rational_query: Tensor
    keys: Tensor
    values: Tensor
    state: MapState


class Activations(NamedTuple):
    """What the backward pass uses of one chunk; of `M - 1`, much less than all of it.

    Attributes:
        mixed: as in `Attended`, like the next three.
        rational_query: queries.
        keys: keys.
        values: values.
        total: as in `MapState`, like the next two.
        shift: maxima.
        rational: share of the output.
        change: `M - 1`, `(images K, D)`; only where the tokens need a gradient.
        peak_entry: position of the largest `|M - 1|` among the `K D` of its image, `(images,)`.
        peak_sign: sign of that entry, `(images,)`.
        is_open: where the mask is not held at zero, `(images K, D)`; None if that is everywhere.
    """

    mixed: Tensor
    rational_query: Tensor
    keys: Tensor
    values: Tensor
    total: Tensor
    shift: Tensor | None
    rational: Tensor | None
    change: Tensor | None
    peak_entry: Tensor
    peak_sign: Tensor
    is_open: Tensor | None

    @classmethod
    def of(
        cls, attended: Attended, change: Tensor, peak: Tensor, where: Tensor, keep_change: bool
    ) -> Activations:
        """Gather them from the attention, `M - 1` `(images, K, D)` and its `peak_of`."""
        numbers, rows = torch.arange(len(change), device=change.device), change.flatten(0, 1)
        row = change[numbers, where]
        entry = row.abs().argmax(-1)
        return cls(
            attended.mixed,
            attended.rational_query,
            attended.keys,
            attended.values,
            *attended.state,
            change=rows if keep_change else None,
            peak_entry=where * rows.shape[1] + entry,
            peak_sign=row[numbers, entry].sign(),
            is_open=rows > -1 if bool((peak >= 1).any()) else None,
        )


def split_heads(rows: Tensor, images: int, num_heads: int) -> Tensor:
    """`(images K, D)` to `(images H, K, d)`: a view if there is one image, else a copy."""
    split = rows.view(images, rows.shape[0] // images, num_heads, -1)
    return split.transpose(1, 2).flatten(0, 1)


def merge_heads(parts: Tensor, images: int) -> Tensor:
    """`(images H, K, d)` to `(images K, D)`."""
    split = parts.reshape(images, -1, *parts.shape[1:]).transpose(1, 2)
    return split.flatten(2).flatten(0, 1)


def stack_queries(rational: Tensor, inputs: ChunkInputs, num_heads: int) -> Tensor:
    """Rational, text and image queries of a chunk, `(images H, 2 K + 1, d)`."""
    images, classes = inputs.image.shape[0], inputs.classes
    width = rational.shape[1] // num_heads
    queries = rational.new_empty(images, num_heads, 2 * classes + 1, width)
    split = (-1, num_heads, width)
    queries[:, :, :classes] = rational.view(images, *split).transpose(1, 2)
    queries[:, :, classes:-1] = inputs.text_query.view(-1, classes, *split[1:]).transpose(1, 2)
    queries[:, :, -1] = inputs.image_query.view(split)
    return queries.flatten(0, 1)


def attend(
    tokens: Tensor, inputs: ChunkInputs, settings: ChunkConfig, plan: KernelPlan
) -> Attended:
    """Run a chunk up to what the layer `out` reads.

    Args:
        tokens: `inputs.tokens()`.
        inputs: of the images of the chunk.
        settings: of the head.
        plan: sizes of the pieces.

    Returns:
        The mixed values, `(images K, D)`, and what they were made from.
    """
    images, num_heads, weights = inputs.image.shape[0], settings.num_heads, inputs.weights
    rational = torch.addmm(weights.rational_bias, tokens, weights.rational.T)
    keys = torch.addmm(weights.key_bias, tokens, weights.key.T)
    keys = split_heads(keys, images, num_heads)
    values = torch.addmm(weights.value_bias, tokens, weights.value.T)
    values = split_heads(values, images, num_heads)
    queries = stack_queries(rational, inputs, num_heads)
    if not settings.keep:
        rational = rational.new_empty(0)
    parts, state = maps_forward(queries, keys, values, settings.factor(tokens.shape[1]), plan)
    del queries
    return Attended(merge_heads(parts, images), rational, keys, values, state)


def peak_of(change: Tensor) -> tuple[Tensor, Tensor]:
    """Largest `|M - 1|` of each image and the class it is found at, of `M - 1` `(images, K, D)`."""
    peak, where = torch.maximum(change.amax(-1), change.amin(-1).neg_()).max(-1)
    return peak, where


def run_chunk(
    tokens: Tensor, inputs: ChunkInputs, settings: ChunkConfig, plan: KernelPlan
) -> tuple[Tensor, Attended | None]:
    """Return `M - 1` as `(images K, D)`, and the attention if `settings.keep`."""
    attended: Attended | None = attend(tokens, inputs, settings, plan)
    assert attended is not None
    mixed = attended.mixed
    if not settings.keep:
        attended = None
    weights = inputs.weights
    return torch.addmm(weights.out_bias, mixed, weights.out.T).clamp_(min=-1), attended
