"""The three class-by-class maps of the head: joint softmax, average, product with the values.

For one image and one attention head, with `c = 1 / (tau sqrt(d))`, queries `q_m` of the three kinds
`m` and shared keys `k` and values `v`:

    E_m = exp(c q_m k^T)        Z_m = sum of all entries of E_m
    o = sum_m w_m E_m v         w_m = K / (3 Z_m); the image's single row has 1 / (3 Z_m)

and backward, from `do`, with `G = do v^T` and `delta_m = sum(E_m G) / Z_m`:

    dv = sum_m w_m E_m^T do,    dS_m = w_m E_m (G - delta_m),    dq_m = c dS_m k,
    dk = c sum_m dS_m^T q_m

The queries are stacked into `(2 K + 1, d)`: K rational rows, K text rows and the image's row, which
stands for K equal ones. Exponentials are taken in base two, which is the faster one. The joint
maximum is subtracted only where the scores are not known to be small, and it is kept apart from the
sum: in float32 their logarithms added up would cost sharp maps all accuracy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rada.head.plan import Plan

__all__ = ["MapState", "maps_backward", "maps_forward"]

_LOG2_E = math.log2(math.e)
_SAFE_EXPONENT = 40.0
"""Scores below this, in base two, need no maximum: sums stay far from float32's 2^127."""


class MapState(NamedTuple):
    """What the backward pass needs to compute the maps again.

    Attributes:
        total: sums `Z` of the rational, text and image map, `(N, 3)`.
        shift: maxima that were subtracted, in base two, `(N, 3)`, or None if nothing was.
        rational: the rational map's share of the output, `(N, K, d)`; only from tiles.
    """

    total: Tensor
    shift: Tensor | None
    rational: Tensor | None


def maps_forward(
    queries: Tensor, keys: Tensor, values: Tensor, factor: float, plan: Plan
) -> tuple[Tensor, MapState]:
    """Attend with all three maps.

    Args:
        queries: stacked, `(N, 2 K + 1, d)`, for N pairs of image and attention head.
        keys: `(N, K, d)`, with any strides.
        values: `(N, K, d)`, with any strides.
        factor: `c = 1 / (tau sqrt(d))`.
        plan: sizes of the pieces.

    Returns:
        The output, `(N, K, d)`, and the state for `maps_backward`.
    """
    bounded = _is_bounded(queries, keys, factor)
    if plan.rows is None:
        return _whole_forward(queries, keys, values, factor, plan, bounded)
    return _tiled_forward(queries, keys, values, factor, plan, bounded)


def maps_backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    state: MapState,
    gradient: Tensor,
    factor: float,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries `(N, 2 K + 1, d)`, keys and values `(N, K, d)`.

    Args:
        queries: as in the forward pass.
        keys: as in the forward pass.
        values: as in the forward pass.
        output: what the forward pass returned.
        state: what the forward pass returned.
        gradient: of the output, `(N, K, d)`.
        factor: as in the forward pass.
        plan: as in the forward pass.
    """
    if plan.rows is None:
        return _whole_backward(queries, keys, values, state, gradient, factor, plan)
    return _tiled_backward(queries, keys, values, output, state, gradient, factor, plan)


def _is_bounded(queries: Tensor, keys: Tensor, factor: float) -> bool:
    """Whether Cauchy and Schwarz promise that every score is small."""
    longest = torch.linalg.vector_norm(queries, dim=-1).amax()
    return float(longest * torch.linalg.vector_norm(keys, dim=-1).amax()) * factor * _LOG2_E <= (
        _SAFE_EXPONENT
    )


def _sections(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split `(N, 2 K + 1, ...)` into its rational, text and image rows."""
    classes = rows.shape[1] // 2
    return rows[:, :classes], rows[:, classes:-1], rows[:, -1:]


def _column(numbers: Tensor) -> Tensor:
    return numbers[:, None, None]


def _scores(queries: Tensor, keys: Tensor, factor: float, out: Tensor) -> Tensor:
    """Scores in base two."""
    return torch.baddbmm(
        out, queries, keys.transpose(1, 2), beta=0, alpha=factor * _LOG2_E, out=out
    )


def _exponentiate(scores: Tensor, shift: Tensor | None) -> Tensor:
    if shift is not None:
        for number, section in enumerate(_sections(scores)):
            section.sub_(_column(shift[:, number]))
    return scores.exp2_()


def _relative_weights(total: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of the rational map, and of the text and image maps relative to it, `(N, 1, 1)`."""
    rational, text, image = total.unbind(1)
    return (
        _column(classes / 3 / rational),
        _column(rational / text),
        _column(rational / (classes * image)),
    )


def _whole_forward(
    queries: Tensor, keys: Tensor, values: Tensor, factor: float, plan: Plan, bounded: bool
) -> tuple[Tensor, MapState]:
    number, classes, width = keys.shape
    output = queries.new_empty(number, classes, width)
    total = queries.new_empty(number, 3)
    shift = None if bounded else torch.empty_like(total)
    buffer = queries.new_empty(min(plan.maps, number), 2 * classes + 1, classes)
    for start in range(0, number, plan.maps):
        part = slice(start, start + plan.maps)
        maps = _scores(queries[part], keys[part], factor, buffer[: number - start])
        if shift is not None:
            torch.stack([s.amax((1, 2)) for s in _sections(maps)], 1, out=shift[part])
        _exponentiate(maps, None if shift is None else shift[part])
        rational, text, image = _sections(maps)
        torch.stack([s.sum((1, 2)) for s in (rational, text, image)], 1, out=total[part])
        weight, text_weight, image_weight = _relative_weights(total[part], classes)
        torch.addcmul(rational, text, text_weight, out=text)
        image.mul_(image_weight)
        product = torch.bmm(maps[:, classes:], values[part])
        torch.add(product[:, :-1], product[:, -1:], out=output[part]).mul_(weight)
    return output, MapState(total, shift, None)


def _whole_backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    state: MapState,
    gradient: Tensor,
    factor: float,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor]:
    number, classes, width = keys.shape
    d_queries = torch.empty_like(queries)
    d_keys, d_values = (queries.new_empty(number, classes, width) for _ in range(2))
    group = min(plan.maps, number)
    buffer = queries.new_empty(group, 2 * classes + 1, classes)
    shared = queries.new_empty(group, classes + 1, classes)
    scratch = queries.new_empty(group, classes, classes)
    for start in range(0, number, plan.maps):
        part = slice(start, start + plan.maps)
        left = number - start
        maps = _scores(queries[part], keys[part], factor, buffer[:left])
        _exponentiate(maps, None if state.shift is None else state.shift[part])
        rational, text, image = _sections(maps)
        total = state.total[part]
        weight, text_weight, image_weight = _relative_weights(total, classes)
        average = shared[:left]
        torch.addcmul(rational, text, text_weight, out=average[:, :-1])
        torch.mul(image, image_weight, out=average[:, -1:])
        d_output = queries.new_empty(average.shape[0], classes + 1, width)
        torch.mul(gradient[part], weight, out=d_output[:, :-1])
        torch.sum(d_output[:, :-1], 1, out=d_output[:, -1])
        torch.bmm(average.transpose(1, 2), d_output, out=d_values[part])
        d_map = torch.bmm(d_output, values[part].transpose(1, 2), out=average)
        for section, sums in zip((rational, text, image), total.unbind(1), strict=True):
            own = d_map[:, -1:] if section is image else d_map[:, :-1]
            change = scratch[:left, : section.shape[1]]
            mean = torch.mul(section, own, out=change).sum((1, 2)).div_(sums)
            section.mul_(torch.sub(own, _column(mean), out=change))
        weighted = queries[part].clone()
        _product(maps, keys[part], factor, d_queries[part])
        for stack in (weighted, d_queries[part]):
            _, text_rows, image_row = _sections(stack)
            text_rows.mul_(text_weight)
            image_row.mul_(image_weight)
        _product(maps.transpose(1, 2), weighted, factor, d_keys[part])
    return d_queries, d_keys, d_values


def _product(left: Tensor, right: Tensor, factor: float, out: Tensor) -> None:
    torch.baddbmm(out, left, right, beta=0, alpha=factor, out=out)


def _tiled_forward(
    queries: Tensor, keys: Tensor, values: Tensor, factor: float, plan: Plan, bounded: bool
) -> tuple[Tensor, MapState]:
    """Never hold a map: sum `E v` and `E` over tiles, one map at a time."""
    shift = None if bounded else _tiled_maxima(queries, keys, factor, plan)
    if shift is None and _has_row_kernel(queries):
        product, row_total = _row_kernel(queries, keys, values, factor)
    else:
        product, row_total = _tiled_sums(queries, keys, values, factor, plan, shift)
    total = torch.stack([s.sum(1) for s in _sections(row_total)], 1)
    classes = keys.shape[1]
    for section, sums, size in zip(
        _sections(product), total.unbind(1), (classes, classes, 1), strict=True
    ):
        section.mul_(_column(size / 3 / sums))
    rational, text, image = _sections(product)
    output = (rational + text).add_(image)
    return output, MapState(total, shift, rational)


def _has_row_kernel(queries: Tensor) -> bool:
    return queries.device.type == "cpu" and hasattr(
        torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"
    )


def _row_kernel(
    queries: Tensor, keys: Tensor, values: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    """`E v` and the row sums of `E`, from the fused kernel's softmax and log-sum-exp.

    Only for bounded scores: there the exponential of a float32 log-sum-exp is accurate.
    """
    softmax, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries[None], keys[None], values[None], scale=factor
    )
    row_total = log_sum[0].exp()
    return softmax[0].mul_(row_total[..., None]), row_total


def _tiles(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _tiled_maxima(queries: Tensor, keys: Tensor, factor: float, plan: Plan) -> Tensor:
    number, classes, _ = keys.shape
    maxima = queries.new_full((number, 3), -math.inf)
    for kind, section in enumerate(_sections(queries)):
        for row in _tiles(section.shape[1], plan.rows or 1):
            for column in _tiles(classes, plan.columns):
                for item in range(number):
                    scores = section[item, row] @ keys[item, column].T
                    best = scores.mul_(factor * _LOG2_E).amax()
                    torch.maximum(maxima[item, kind], best, out=maxima[item, kind])
    return maxima


def _tiled_sums(
    queries: Tensor, keys: Tensor, values: Tensor, factor: float, plan: Plan, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    product = torch.zeros_like(queries)
    row_total = queries.new_zeros(queries.shape[:2])
    for kind, section in enumerate(_sections(queries)):
        offset = kind * keys.shape[1]
        for item in range(keys.shape[0]):
            for row in _tiles(section.shape[1], plan.rows or 1):
                rows = slice(row.start + offset, row.stop + offset)
                for column in _tiles(keys.shape[1], plan.columns):
                    tile = (section[item, row] @ keys[item, column].T).mul_(factor * _LOG2_E)
                    if shift is not None:
                        tile.sub_(shift[item, kind])
                    tile.exp2_()
                    row_total[item, rows] += tile.sum(1)
                    product[item, rows].addmm_(tile, values[item, column])
    return product, row_total


def _tiled_backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    state: MapState,
    gradient: Tensor,
    factor: float,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor]:
    assert state.rational is not None
    classes = keys.shape[1]
    d_image, d_keys, d_values, image_inner = _image_row_backward(
        queries[:, -1:], keys, values, gradient, factor
    )
    weight = classes / 3 / state.total[:, :1, None]
    gradient = gradient * weight
    if state.shift is None:
        rational_inner = (state.rational * gradient).sum((1, 2))
        text_inner = (
            (output * gradient).sum((1, 2)) - rational_inner - image_inner * weight.flatten()
        )
        mean = torch.stack([rational_inner, text_inner], 1).mul_(3 / classes)
    else:
        mean = _tiled_means(queries, keys, values, state.shift, gradient, factor, plan)
    d_queries = torch.empty_like(queries)
    d_queries[:, -1:] = d_image
    for item in range(keys.shape[0]):
        d_queries[item, :-1] = _tiled_backward_item(
            queries[item, :-1].view(2, classes, -1),
            keys[item],
            values[item],
            gradient[item],
            float(state.total[item, 0] / state.total[item, 1]),
            _column(mean[item]),
            None if state.shift is None else _column(state.shift[item, :2]),
            (d_keys[item], d_values[item]),
            factor,
            plan,
        ).flatten(0, 1)
    return d_queries, d_keys, d_values


def _tiled_means(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    shift: Tensor,
    gradient: Tensor,
    factor: float,
    plan: Plan,
) -> Tensor:
    """`delta = sum(E G) / sum(E)` of the rational and text maps, `(N, 2)`.

    For sharp maps `G - delta` all but cancels, and it does so exactly only if the sums are over the
    very tiles of `_tiled_backward_item`, rounding included.
    """
    number, classes, _ = keys.shape
    totals, means = queries.new_zeros(number, 2), queries.new_zeros(number, 2)
    for item in range(number):
        pair = queries[item, :-1].view(2, classes, -1)
        for row in _tiles(classes, plan.rows or classes):
            query = pair[:, row].contiguous()
            for column in _tiles(classes, plan.columns):
                tile = _exponential_tile(
                    query, keys[item, column], _column(shift[item, :2]), factor
                )
                d_map = gradient[item, row] @ values[item, column].T
                totals[item] += tile.sum((1, 2))
                means[item] += tile.mul_(d_map).sum((1, 2))
    return means.div_(totals)


def _exponential_tile(
    query: Tensor, key: Tensor, shift: Tensor | None, factor: float, out: Tensor | None = None
) -> Tensor:
    """`E` of the rational and text rows in `query (2, n, d)` and some keys, `(2, n, m)`."""
    if out is None:
        out = query.new_empty(2, query.shape[1], key.shape[0])
    _scores(query, key.expand(2, -1, -1), factor, out)
    if shift is not None:
        out.sub_(shift)
    return out.exp2_()


def _image_row_backward(
    query: Tensor, keys: Tensor, values: Tensor, gradient: Tensor, factor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The image map's one row: gradients of its query, of keys and values, and `sum(do o)`."""
    row = torch.bmm(query, keys.transpose(1, 2)).mul_(factor).softmax(-1)
    d_output = gradient.sum(1, keepdim=True)
    d_row = torch.bmm(d_output, values.transpose(1, 2))
    inner = (row * d_row).sum((1, 2))
    d_scores = row * (d_row - _column(inner)) * (factor / 3)
    return (
        torch.bmm(d_scores, keys),
        torch.bmm(d_scores.transpose(1, 2), query),
        torch.bmm(row.transpose(1, 2), d_output / 3),
        inner / 3,
    )


def _tiled_backward_item(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    gradient: Tensor,
    ratio: float,
    mean: Tensor,
    shift: Tensor | None,
    into: tuple[Tensor, Tensor],
    factor: float,
    plan: Plan,
) -> Tensor:
    """One image and head: add to its key and value gradients, return the queries' `(2, K, d)`.

    `gradient` and `mean` come multiplied with the rational map's weight; `ratio` is the text map's
    weight relative to it.
    """
    d_keys, d_values = into
    classes, width = keys.shape
    relative = queries.new_tensor([1.0, ratio])[:, None, None]
    d_queries = torch.zeros_like(queries)
    rows = min(plan.rows or classes, classes)
    buffer = queries.new_empty(3, 2 * rows * plan.columns)
    for row in _tiles(classes, rows):
        query, d_output = queries[:, row].contiguous(), gradient[row]
        weighted = (query * relative).flatten(0, 1)
        d_query = torch.zeros_like(query)
        for column in _tiles(classes, plan.columns):
            key, value = keys[column], values[column]
            shape = (2, query.shape[1], key.shape[0])
            maps, change, both = (b[: math.prod(shape)].view(shape) for b in buffer.unbind(0))
            _exponential_tile(query, key, shift, factor, maps)
            average = torch.add(maps[0], maps[1], alpha=ratio, out=both[0])
            d_values[column].addmm_(average.T, d_output)
            d_map = torch.mm(d_output, value.T, out=both[0])
            maps.mul_(torch.sub(d_map, mean, out=change))
            d_query.baddbmm_(maps, key.expand(2, -1, -1), alpha=factor)
            d_keys[column].addmm_(maps.flatten(0, 1).T, weighted, alpha=factor)
        torch.mul(d_query, relative, out=d_queries[:, row])
    return d_queries
