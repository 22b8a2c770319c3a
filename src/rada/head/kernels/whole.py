"""The maps held whole, a group of them at a time: the fast way while they fit the caches."""

from __future__ import annotations

import torch
from torch import Tensor

from rada.head.kernels.scores import MapState, Operands, column, scores

__all__ = ["whole_backward", "whole_forward"]


def whole_forward(operands: Operands, bounded: bool) -> tuple[Tensor, MapState]:
    """Compute every map of a group at once; arguments and result as for `maps_forward`."""
    queries, keys, values, factor, plan = operands
    number, classes, width = keys.shape
    output = queries.new_empty(number, classes, width)
    total = queries.new_empty(number, 3)
    shift = None if bounded else torch.empty_like(total)
    buffer = queries.new_empty(min(plan.maps, number), 2 * classes + 1, classes)
    for start in range(0, number, plan.maps):
        part = slice(start, start + plan.maps)
        maps = scores(queries[part], keys[part], factor, buffer[: number - start])
        pair, image = _split(maps)
        if shift is not None:
            torch.amax(pair, (2, 3), out=shift[part, :2])
            torch.amax(image, (1, 2), out=shift[part, 2])
        _exponentiate(maps, None if shift is None else shift[part])
        torch.sum(pair, (2, 3), out=total[part, :2])
        torch.sum(image, (1, 2), out=total[part, 2])
        weight, text_weight, image_weight = _weights(total[part], classes)
        torch.addcmul(pair[:, 0], pair[:, 1], text_weight, out=pair[:, 1])
        image.mul_(image_weight)
        product = torch.bmm(maps[:, classes:], values[part])
        torch.add(product[:, :-1], product[:, -1:], out=output[part]).mul_(weight)
    return output, MapState(total, shift, None)


def whole_backward(
    operands: Operands, state: MapState, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute every map of a group again; arguments and result as for `maps_backward`.

    The queries' memory becomes their gradient's.
    """
    queries, keys, values, factor, plan = operands
    number, classes, width = keys.shape
    d_keys, d_values = (queries.new_empty(number, classes, width) for _ in range(2))
    group = min(plan.maps, number)
    buffer = queries.new_empty(group, 2 * classes + 1, classes)
    shared = queries.new_empty(group, classes + 1, classes)
    scratch = queries.new_empty(group, 2, classes, classes)
    d_buffer = queries.new_empty(group, classes + 1, width)
    for start in range(0, number, plan.maps):
        part, left = slice(start, start + plan.maps), number - start
        maps = scores(queries[part], keys[part], factor, buffer[:left])
        _exponentiate(maps, None if state.shift is None else state.shift[part])
        pair, image = _split(maps)
        total = state.total[part]
        weight, text_weight, image_weight = _weights(total, classes)
        average, d_output = shared[:left], d_buffer[:left]
        torch.addcmul(pair[:, 0], pair[:, 1], text_weight, out=average[:, :-1])
        torch.mul(image, image_weight, out=average[:, -1:])
        torch.mul(gradient[part], weight, out=d_output[:, :-1])
        torch.sum(d_output[:, :-1], 1, out=d_output[:, -1])
        torch.bmm(average.transpose(1, 2), d_output, out=d_values[part])
        d_map = torch.bmm(d_output, values[part].transpose(1, 2), out=average)
        _differentiate(pair, d_map[:, None, :-1], total[:, :2], scratch[:left])
        _differentiate(image[:, None], d_map[:, None, -1:], total[:, 2:], scratch[:left, :1, :1])
        # only now: weighted before, sharp maps would not cancel exactly
        pair[:, 1].mul_(text_weight)
        image.mul_(image_weight)
        _product(maps.transpose(1, 2), queries[part], factor, d_keys[part])
        _product(maps, keys[part], factor, queries[part])
    return queries, d_keys, d_values


def _split(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Views of `(N, 2 K + 1, K)`: rational and text maps `(N, 2, K, K)`, image row `(N, 1, K)`."""
    classes = maps.shape[2]
    return maps[:, :-1].view(-1, 2, classes, classes), maps[:, -1:]


def _exponentiate(maps: Tensor, shift: Tensor | None) -> None:
    if shift is not None:
        pair, image = _split(maps)
        pair.sub_(shift[:, :2, None, None])
        image.sub_(shift[:, 2:, None])
    maps.exp2_()


def _weights(total: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of the rational map, and of the text and image maps relative to it, `(N, 1, 1)`."""
    rational, text, image = total.unbind(1)
    return (
        column(classes / 3 / rational),
        column(rational / text),
        column(rational / (classes * image)),
    )


def _differentiate(maps: Tensor, d_map: Tensor, total: Tensor, scratch: Tensor) -> None:
    """Turn `E` into `E (G - delta)` in place; `total` is the sum of each map's entries."""
    mean = torch.mul(maps, d_map, out=scratch).sum((2, 3)).div_(total)
    maps.mul_(torch.sub(d_map, mean[..., None, None], out=scratch))


def _product(left: Tensor, right: Tensor, factor: float, out: Tensor) -> None:
    torch.baddbmm(out, left, right, beta=0, alpha=factor, out=out)
