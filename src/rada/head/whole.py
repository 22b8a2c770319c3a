"""The maps held whole, a group of them at a time: the fast way while they fit the caches."""

from __future__ import annotations

import torch
from torch import Tensor

from rada.head.scores import MapState, Operands, column, exponentiate, scores, sections

__all__ = ["whole_backward", "whole_forward"]


def _relative_weights(total: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of the rational map, and of the text and image maps relative to it, `(N, 1, 1)`."""
    rational, text, image = total.unbind(1)
    return (
        column(classes / 3 / rational),
        column(rational / text),
        column(rational / (classes * image)),
    )


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
        if shift is not None:
            torch.stack([s.amax((1, 2)) for s in sections(maps)], 1, out=shift[part])
        exponentiate(maps, None if shift is None else shift[part])
        rational, text, image = sections(maps)
        torch.stack([s.sum((1, 2)) for s in (rational, text, image)], 1, out=total[part])
        weight, text_weight, image_weight = _relative_weights(total[part], classes)
        torch.addcmul(rational, text, text_weight, out=text)
        image.mul_(image_weight)
        product = torch.bmm(maps[:, classes:], values[part])
        torch.add(product[:, :-1], product[:, -1:], out=output[part]).mul_(weight)
    return output, MapState(total, shift, None)


def whole_backward(
    operands: Operands, state: MapState, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute every map of a group again; arguments and result as for `maps_backward`."""
    queries, keys, values, factor, plan = operands
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
        maps = scores(queries[part], keys[part], factor, buffer[:left])
        exponentiate(maps, None if state.shift is None else state.shift[part])
        rational, text, image = sections(maps)
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
            section.mul_(torch.sub(own, column(mean), out=change))
        weighted = queries[part].clone()
        _product(maps, keys[part], factor, d_queries[part])
        for stack in (weighted, d_queries[part]):
            _, text_rows, image_row = sections(stack)
            text_rows.mul_(text_weight)
            image_row.mul_(image_weight)
        _product(maps.transpose(1, 2), weighted, factor, d_keys[part])
    return d_queries, d_keys, d_values


def _product(left: Tensor, right: Tensor, factor: float, out: Tensor) -> None:
    torch.baddbmm(out, left, right, beta=0, alpha=factor, out=out)
