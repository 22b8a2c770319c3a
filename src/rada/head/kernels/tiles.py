"""The maps in tiles, never held whole: memory linear in the classes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rada.head.kernels.plan import KernelPlan
from rada.head.kernels.scores import MapState, Operands, column, scores, sections

__all__ = ["tiled_backward", "tiled_forward"]


def tiled_forward(operands: Operands, bounded: bool) -> tuple[Tensor, MapState]:
    """Sum `E v` and `E` over tiles; arguments and result as for `maps_forward`."""
    shift = None if bounded else _maxima(operands)
    if shift is None and _has_row_kernel(operands.queries):
        product, row_total = _row_kernel(operands)
    else:
        product, row_total = _sums(operands, shift)
    total = torch.stack([rows.sum(1) for rows in sections(row_total)], 1)
    classes = operands.keys.shape[1]
    for rows, sums, size in zip(
        sections(product), total.unbind(1), (classes, classes, 1), strict=True
    ):
        rows.mul_(column(size / 3 / sums))
    rational, text, image = sections(product)
    output = (rational + text).add_(image)
    return output, MapState(total, shift, rational)


def _has_row_kernel(queries: Tensor) -> bool:
    return queries.device.type == "cpu" and hasattr(
        torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"
    )


def _row_kernel(operands: Operands) -> tuple[Tensor, Tensor]:
    """`E v` and the row sums of `E`, from the fused kernel's softmax and log-sum-exp.

    Only for bounded scores: there the exponential of a float32 log-sum-exp is accurate.
    """
    queries, keys, values, factor, _ = operands
    softmax, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries[None], keys[None], values[None], scale=factor
    )
    row_total = log_sum[0].exp()
    return softmax[0].mul_(row_total[..., None]), row_total


def _maxima(operands: Operands) -> Tensor:
    """Largest score of each map in base two, `(N, 3)`."""
    queries, keys, _, factor, plan = operands
    maxima = queries.new_full((len(keys), 3), -math.inf)
    for kind, rows in enumerate(sections(queries)):
        for top in _tiles(rows.shape[1], plan.rows):
            for left in _tiles(keys.shape[1], plan.columns):
                tile = _score_tile(rows[:, top], keys[:, left], factor)
                torch.maximum(maxima[:, kind], tile.amax((1, 2)), out=maxima[:, kind])
    return maxima


def _sums(operands: Operands, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """`E v`, `(N, 2 K + 1, d)`, and the row sums of `E`, `(N, 2 K + 1)`."""
    queries, keys, values, factor, plan = operands
    product = torch.zeros_like(queries)
    row_total = queries.new_zeros(queries.shape[:2])
    parts = zip(sections(queries), sections(product), sections(row_total), strict=True)
    for kind, (rows, rows_product, rows_total) in enumerate(parts):
        for top in _tiles(rows.shape[1], plan.rows):
            for left in _tiles(keys.shape[1], plan.columns):
                tile = _score_tile(rows[:, top], keys[:, left], factor)
                if shift is not None:
                    tile.sub_(column(shift[:, kind]))
                tile.exp2_()
                rows_total[:, top] += tile.sum(2)
                rows_product[:, top] += torch.bmm(tile, values[:, left])
    return product, row_total


def _tiles(size: int, step: int | None) -> list[slice]:
    step = step or size
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _score_tile(queries: Tensor, keys: Tensor, factor: float) -> Tensor:
    out = queries.new_empty(len(queries), queries.shape[1], keys.shape[1])
    return scores(queries, keys, factor, out)


def tiled_backward(
    operands: Operands, output: Tensor, state: MapState, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute tile after tile again; arguments and result as for `maps_backward`."""
    queries, keys, values, factor, plan = operands
    assert state.rational is not None
    classes = keys.shape[1]
    d_image, d_keys, d_values, image_inner = _image_row_backward(operands, gradient)
    weight = classes / 3 / state.total[:, :1, None]
    gradient = gradient * weight
    # sum(do o) over one map is K / 3 times its delta; sharp maps need it more exactly than this
    rational_inner = (state.rational * gradient).sum((1, 2))
    text_inner = (output * gradient).sum((1, 2)).sub_(image_inner * weight.flatten())
    means = torch.stack([rational_inner, text_inner - rational_inner], 1).mul_(3 / classes)
    d_queries = torch.empty_like(queries)
    d_queries[:, -1:] = d_image
    for number in range(len(keys)):
        item = _Item(
            queries[number, :-1].view(2, classes, -1),
            keys[number],
            values[number],
            gradient[number],
            None if state.shift is None else column(state.shift[number, :2]),
            factor,
            plan,
        )
        mean = means[number] if item.shift is None else _exact_means(item)
        ratio = float(state.total[number, 0] / state.total[number, 1])
        own = _item_backward(item, column(mean), ratio, d_keys[number], d_values[number])
        d_queries[number, :-1] = own.flatten(0, 1)
    return d_queries, d_keys, d_values


class _Item(NamedTuple):
    """One image and attention head, its rational and text maps.

    Attributes:
        queries: `(2, K, d)`.
        keys: `(K, d)`.
        values: `(K, d)`.
        gradient: of the output, times the rational map's weight, `(K, d)`.
        shift: maxima to subtract, `(2, 1, 1)`.
        factor: `c`.
        plan: sizes of the tiles.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    gradient: Tensor
    shift: Tensor | None
    factor: float
    plan: KernelPlan

    def exponentials(self, query: Tensor, key: Tensor, out: Tensor) -> Tensor:
        """`E` of query rows `(2, n, d)` and keys `(m, d)`, `(2, n, m)`."""
        scores(query, key.expand(2, -1, -1), self.factor, out)
        if self.shift is not None:
            out.sub_(self.shift)
        return out.exp2_()


def _image_row_backward(
    operands: Operands, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The image map's one row: gradients of its query, of keys and values, and `sum(do o)`."""
    queries, keys, values, factor, _ = operands
    query = queries[:, -1:]
    row = torch.bmm(query, keys.transpose(1, 2)).mul_(factor).softmax(-1)
    d_output = gradient.sum(1, keepdim=True)
    d_row = torch.bmm(d_output, values.transpose(1, 2))
    inner = (row * d_row).sum((1, 2))
    d_scores = row * (d_row - column(inner)) * (factor / 3)
    return (
        torch.bmm(d_scores, keys),
        torch.bmm(d_scores.transpose(1, 2), query),
        torch.bmm(row.transpose(1, 2), d_output / 3),
        inner / 3,
    )


def _exact_means(item: _Item) -> Tensor:
    """`delta = sum(E G) / sum(E)` of the rational and text maps, `(2,)`.

    For sharp maps `G - delta` all but cancels, and it does so exactly only if the sums are over the
    very tiles of `_item_backward`, rounding included.
    """
    total, mean = item.queries.new_zeros(2), item.queries.new_zeros(2)
    for top in _tiles(len(item.keys), item.plan.rows):
        query = item.queries[:, top].contiguous()
        for left in _tiles(len(item.keys), item.plan.columns):
            key = item.keys[left]
            tile = item.exponentials(query, key, query.new_empty(2, query.shape[1], len(key)))
            d_map = torch.mm(item.gradient[top], item.values[left].T)
            total += tile.sum((1, 2))
            mean += tile.mul_(d_map).sum((1, 2))
    return mean.div_(total)


def _item_backward(
    item: _Item, mean: Tensor, ratio: float, d_keys: Tensor, d_values: Tensor
) -> Tensor:
    """Add to the key and value gradients, return the queries' `(2, K, d)`.

    `mean` is `delta` times the rational map's weight, `ratio` the text map's weight relative to it.
    """
    classes = len(item.keys)
    relative = item.queries.new_tensor([1.0, ratio])[:, None, None]
    d_queries = torch.zeros_like(item.queries)
    size = 2 * min(item.plan.rows or classes, classes) * item.plan.columns
    buffer = item.queries.new_empty(3, size)
    for top in _tiles(classes, item.plan.rows):
        query, d_output = item.queries[:, top].contiguous(), item.gradient[top]
        weighted = (query * relative).flatten(0, 1)
        for left in _tiles(classes, item.plan.columns):
            key, value = item.keys[left], item.values[left]
            shape = (2, query.shape[1], len(key))
            maps, change, both = (b[: math.prod(shape)].view(shape) for b in buffer)
            item.exponentials(query, key, maps)
            average = torch.add(maps[0], maps[1], alpha=ratio, out=both[0])
            d_values[left].addmm_(average.T, d_output)
            d_map = torch.mm(d_output, value.T, out=both[0])
            maps.mul_(torch.sub(d_map, mean, out=change))
            d_queries[:, top] += torch.bmm(maps, key.expand(2, -1, -1))
            d_keys[left].addmm_(maps.flatten(0, 1).T, weighted, alpha=item.factor)
    return d_queries.mul_(relative * item.factor)
