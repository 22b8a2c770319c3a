"""The mask attention of several heads in one pass, each with images and classes of its own.

For small heads the time goes into a thousand small operations, and S heads of the same width can share
each: images and classes are padded to those of the largest member, `(S, B, D)` and `(S, K, D)`, and the
maps computed together. Only the products with the heads' own matrices are done member by member, on the rows
that are an image and a class, so that nothing is multiplied that is padding. What comes out is what
`rada.head.attention.mask_attention` gives for each alone, to rounding.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rada.head.kernels.plan import default_budget, make_plan
from rada.head.kernels.scores import Operands, Padding
from rada.head.kernels.whole import whole_backward, whole_forward

__all__ = ["StackLayout", "StackWeights", "stacked_attention"]


class StackWeights(NamedTuple):
    """Weights of the S heads.

    Attributes:
        inner: Of the layers `query_rational`, `key` and `value`, one below the other, `(S, 3 D, D)`.
        inner_bias: `(S, 3 D)`.
        out: `(S, D, D)`.
        out_bias: `(S, D)`.
    """

    inner: Tensor
    inner_bias: Tensor
    out: Tensor
    out_bias: Tensor


class StackLayout:
    """Which of the `S B K` padded rows are an image and a class.

    Args:
        images: Images of each member.
        classes: Classes of each member.
        like: A tensor of the type and device of the features.

    Example:
        >>> layout = StackLayout((2, 1), (1, 2), torch.zeros(1))
        >>> layout.rows.tolist(), layout.parts
        ([0, 2, 4, 5], [slice(0, 2, None), slice(2, 4, None)])
    """

    def __init__(self, images: tuple[int, ...], classes: tuple[int, ...], like: Tensor) -> None:
        self.images, self.classes = images, classes
        self.members, self.batch, self.size = len(images), max(images), max(classes)
        self.ragged = (min(images), min(classes)) != (self.batch, self.size)
        counts = like.new_tensor(classes)
        self.is_image = _below(like.new_tensor(images), self.batch)
        self.is_class = _below(counts, self.size)
        valid = self.is_image[:, :, None] & self.is_class[:, None]
        self.rows = valid.flatten().nonzero().flatten()
        ends = [0]
        for count, size in zip(images, classes, strict=True):
            ends.append(ends[-1] + count * size)
        self.parts = [slice(start, end) for start, end in itertools.pairwise(ends)]
        self.counts = counts

    def pick(self, padded: Tensor) -> Tensor:
        """Return the rows `(n, X)` that count, of all `(S B K, X)`."""
        return padded.index_select(0, self.rows) if self.ragged else padded

    def put(self, rows: Tensor) -> Tensor:
        """Return rows at their places among zeros; the reverse of `pick`."""
        if not self.ragged:
            return rows
        shape = (self.members * self.batch * self.size, *rows.shape[1:])
        return rows.new_zeros(shape).index_copy_(0, self.rows, rows)

    def padding(self, num_heads: int) -> Padding | None:
        """Return the padding of the maps, of `S B H` pairs of image and attention head."""
        if min(self.classes) == self.size:
            return None
        is_class, pairs = self.is_class, self.batch * num_heads
        rows = torch.cat([is_class, is_class, torch.ones_like(is_class[:, :1])], 1)
        bias = self.counts.new_zeros(rows.shape + is_class.shape[1:])
        bias.masked_fill_(~(rows[:, :, None] & is_class[:, None]), -math.inf)
        return Padding(
            self.counts.repeat_interleave(pairs), bias.repeat_interleave(pairs, 0)
        )  # of few classes, so a copy for each pair is small


def _below(numbers: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=numbers.device) < numbers[:, None]


class _Settings(NamedTuple):
    layout: StackLayout
    num_heads: int
    temperature: float

    def operands(self, queries: Tensor, keys: Tensor, values: Tensor) -> Operands:
        """Return what the maps are computed from."""
        layout, width = self.layout, keys.shape[-1]
        plan = make_plan(
            layout.members * layout.batch,
            layout.size,
            width * self.num_heads,
            self.num_heads,
            itemsize=keys.element_size(),
            budget=default_budget(keys.device.type),
            device_type=keys.device.type,
        )
        factor = 1 / (self.temperature * math.sqrt(width))
        return Operands(queries, keys, values, factor, plan, layout.padding(self.num_heads))

    def split(self, rows: Tensor) -> Tensor:
        """`(S B K, D)` to `(S B H, K, d)`."""
        layout = self.layout
        split = rows.view(layout.members * layout.batch, layout.size, self.num_heads, -1)
        return split.transpose(1, 2).flatten(0, 1)

    def merge(self, parts: Tensor) -> Tensor:
        """`(S B H, K, d)` to `(S B K, D)`."""
        split = parts.view(-1, self.num_heads, *parts.shape[1:]).transpose(1, 2)
        return split.flatten(2).flatten(0, 1)

    def queries(self, rational: Tensor, text_query: Tensor, image_query: Tensor) -> Tensor:
        """Stack the queries, `(S B H, 2 K + 1, d)`, from those of the rows `(S B K, D)`."""
        layout, heads = self.layout, self.num_heads
        members, batch, size = layout.members, layout.batch, layout.size
        width = rational.shape[-1] // heads
        queries = rational.new_empty(members, batch, heads, 2 * size + 1, width)
        split = (heads, width)
        queries[:, :, :, :size] = rational.view(members, batch, size, *split).transpose(2, 3)
        queries[:, :, :, size:-1] = text_query.view(members, 1, size, *split).transpose(2, 3)
        queries[:, :, :, -1] = image_query.view(members, batch, *split)
        return queries.view(-1, 2 * size + 1, width)


class _StackedAttention(torch.autograd.Function):
    """Settings and tensors to `shift` and `peak`; the mathematics are those of `MaskAttention`."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        image, text, image_query, text_query, *own = tensors
        weights, layout = StackWeights(*own), settings.layout
        shape = (layout.members, layout.batch, layout.size)
        tokens = layout.pick(_tokens(image, text))
        inner = _linear(layout, tokens, weights.inner, weights.inner_bias)
        rational, keys, values = layout.put(inner).chunk(3, 1)
        queries = settings.queries(rational, text_query, image_query)
        operands = settings.operands(queries, settings.split(keys), settings.split(values))
        output, state = whole_forward(operands, False)
        mixed = layout.pick(settings.merge(output))
        change = _linear(layout, mixed, weights.out, weights.out_bias).clamp_(min=-1)
        shift = layout.put((tokens * change).sum(1)).view(shape)
        entry = change.abs().argmax(1)
        largest = change.gather(1, entry[:, None])[:, 0]
        peak, where = layout.put(largest.abs()).view(shape).max(2)
        ctx.settings, ctx.operands, ctx.state = settings, operands, state
        row = where + layout.size * torch.arange(peak.numel(), device=where.device).view_as(where)
        ctx.save_for_backward(*tensors, tokens, mixed, change, entry, largest, row)
        return shift, peak

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_shift: Tensor, d_peak: Tensor) -> tuple[Tensor | None, ...]:
        image, text, *_ = ctx.saved_tensors
        *own, tokens, mixed, change, entry, largest, row = ctx.saved_tensors[4:]
        settings, weights = ctx.settings, StackWeights(*own)
        layout: StackLayout = settings.layout
        slope = layout.pick(d_shift.reshape(-1, 1))
        d_out = tokens * slope
        at_peak = torch.zeros_like(d_shift).flatten()
        at_peak[row[layout.is_image]] = d_peak[layout.is_image]
        at_peak = layout.pick(at_peak[:, None]) * largest.sign()[:, None]
        d_out.scatter_add_(1, entry[:, None], at_peak).mul_(change > -1)
        d_weight, d_bias, d_mixed = _linear_backward(layout, d_out, mixed, weights.out)
        gradient = settings.split(layout.put(d_mixed))
        queries = ctx.operands.queries.clone()  # they become their gradient
        operands = ctx.operands._replace(queries=queries)
        d_queries, d_keys, d_values = whole_backward(operands, ctx.state, gradient)
        d_queries = d_queries.view(
            layout.members, layout.batch, settings.num_heads, *queries.shape[1:]
        )
        size = layout.size
        d_text_query = d_queries[:, :, :, size:-1].sum(1).transpose(1, 2).flatten(2)
        d_image_query = d_queries[:, :, :, -1].flatten(2)
        rational = d_queries[:, :, :, :size].reshape(-1, size, d_queries.shape[-1])
        d_inner = torch.cat([settings.merge(d) for d in (rational, d_keys, d_values)], 1)
        d_inner = layout.pick(d_inner)
        needs_tokens = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        found = _linear_backward(layout, d_inner, tokens, weights.inner, needs_tokens)
        d_image = d_text = None
        if needs_tokens:
            d_tokens = layout.put(found[2].addcmul_(change, slope))
            d_tokens = d_tokens.view(layout.members, layout.batch, size, -1)
            d_image, d_text = (
                (d_tokens * text[:, None]).sum(2),
                (d_tokens * image[:, :, None]).sum(1),
            )
        return None, d_image, d_text, d_image_query, d_text_query, *found[:2], d_weight, d_bias


def _tokens(image: Tensor, text: Tensor) -> Tensor:
    return (image[:, :, None] * text[:, None]).flatten(0, 2)


def _linear(layout: StackLayout, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply each member's layer to its rows."""
    out = rows.new_empty(len(rows), weight.shape[1])
    for number, part in enumerate(layout.parts):
        torch.addmm(bias[number], rows[part], weight[number].T, out=out[part])
    return out


def _linear_backward(
    layout: StackLayout, gradient: Tensor, read: Tensor, weight: Tensor, needs_rows: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of each member's weight and bias, and of the rows that it read."""
    d_weight, d_bias = torch.empty_like(weight), weight.new_empty(weight.shape[:2])
    rows = torch.empty_like(read) if needs_rows else read
    for number, part in enumerate(layout.parts):
        torch.mm(gradient[part].T, read[part], out=d_weight[number])
        torch.sum(gradient[part], 0, out=d_bias[number])
        if needs_rows:
            torch.mm(gradient[part], weight[number], out=rows[part])
    return d_weight, d_bias, rows


def stacked_attention(
    image: Tensor,
    text: Tensor,
    image_query: Tensor,
    text_query: Tensor,
    weights: StackWeights,
    layout: StackLayout,
    *,
    num_heads: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Compute how the masks move the logits, and how far they are from one, once differentiable.

    Args:
        image: `sqrt(s) f` of each member, `(S, B, D)`; what is no image may hold anything finite.
        text: `sqrt(s) h` of each member, `(S, K, D)`, likewise.
        image_query: `query_image(image)`, `(S, B, D)`.
        text_query: `query_text(text)`, `(S, K, D)`.
        weights: The layers that read the tokens.
        layout: Which rows count.
        num_heads: Attention heads.
        temperature: tau.

    Returns:
        `shift (S, B, K)` and `peak (S, B)` as from `mask_attention`, zero for what is none.
    """
    settings = _Settings(layout, num_heads, temperature)
    tensors = (t.contiguous() for t in (image, text, image_query, text_query, *weights))
    shift, peak = _StackedAttention.apply(settings, *tensors)
    return shift, peak
