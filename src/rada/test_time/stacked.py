"""Many heads at once, one for each image: parameters stacked along a first axis.

For several steps, for trained heads, where every layer has a gradient from the first step on, and
for the online mode.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from rada.test_time.config import TTTConfig
from rada.test_time.one_step import EPSILON
from rada.test_time.start import Chosen, Start

__all__ = ["StackedHeads", "adapt_by_stack", "stack_bytes"]

_BETAS = (0.9, 0.999)
"""AdamW's, in PyTorch."""


def stack_bytes(start: Start, views: int) -> int:
    """Return the bytes that one image with `views` views takes."""
    classes, dim = start.text.shape
    parameters = 5 * 6 * dim * (dim + 1)  # themselves, gradient, two moments, scratch
    maps = 8 * start.head.num_heads * classes * classes
    return start.text.element_size() * (parameters + views * (maps + 20 * classes * dim))


def adapt_by_stack(start: Start, original: Tensor, chosen: Chosen) -> tuple[Tensor, Tensor]:
    """Adapt to all images together; arguments and result as for `adapt_by_loop`."""
    heads = StackedHeads(start, len(original))
    for _ in range(start.config.steps):
        heads.step(chosen.views)
    with torch.no_grad():
        logits, deviation = heads.predict(start.targets(original, chosen.views))
    return start.answer(logits), deviation.amax(-1)


class StackedHeads:
    """n heads with their AdamW states, all from the same start.

    Args:
        start: The head to begin with.
        count: n.

    Attributes:
        parameters: By name, `(n, ...)`.
    """

    def __init__(self, start: Start, count: int) -> None:
        self.start = start
        self._initial = {name: p.detach() for name, p in start.head.named_parameters()}
        self.parameters = {
            name: p.expand(count, *p.shape).clone() for name, p in self._initial.items()
        }
        self._first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._steps = start.text.new_zeros(count)

    def predict(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(n, m, K)` and largest deviations `(n, m)` of views `(n, m, D)`."""
        start = self.start

        def one(parameters: dict[str, Tensor], own: Tensor) -> tuple[Tensor, Tensor]:
            arguments = (own, start.text, start.scale, start.strength)
            output = functional_call(start.head, parameters, arguments)
            return output.logits, output.max_deviation

        if len(views) == 1:
            # Without the transform the head's own form runs, which never holds a map of all classes.
            alone = one({name: p[0] for name, p in self.parameters.items()}, views[0])
            return alone[0][None], alone[1][None]
        logits, deviation = vmap(one)(self.parameters, views)
        return logits, deviation

    def step(self, views: Tensor, active: Tensor | None = None) -> None:
        """Take one step on the kept views `(n, m, D)`; heads that are not `active` stay as they are."""
        names = list(self.parameters)
        with torch.enable_grad():
            for name in names:
                self.parameters[name].requires_grad_(True)
            loss = self.start.loss(*self.predict(views)).sum()
            found = torch.autograd.grad(loss, [self.parameters[name] for name in names])
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
        if active is None or bool(active.all()):
            active = None
            self._steps += 1
        else:
            self._steps += active
        for name, gradient in zip(names, found, strict=True):
            self._update(name, gradient, active)

    def _update(self, name: str, gradient: Tensor, active: Tensor | None) -> None:
        config: TTTConfig = self.start.config
        parameter, first, second = self.parameters[name], self._first[name], self._second[name]
        column = (-1, *(1,) * (gradient.ndim - 1))
        if active is not None:
            rows = active.view(column)
            before = [tensor.clone() for tensor in (parameter, first, second)]
        first.lerp_(gradient, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        steps = self._steps.double()
        bias_first = (1 - _BETAS[0] ** steps).to(gradient.dtype).view(column)
        bias_second = (1 - _BETAS[1] ** steps).sqrt().to(gradient.dtype).view(column)
        denominator = second.sqrt().div_(bias_second).add_(EPSILON).mul_(bias_first)
        parameter.mul_(1 - config.learning_rate * config.weight_decay)
        parameter.addcdiv_(first, denominator, value=-config.learning_rate)
        if active is not None:
            for tensor, old in zip((parameter, first, second), before, strict=True):
                tensor.copy_(torch.where(rows, tensor, old))

    def pull(self, part: float) -> None:
        """Move every parameter by a part of its way back to the start."""
        for name, parameter in self.parameters.items():
            parameter.lerp_(self._initial[name].expand_as(parameter), part)

    def restore(self, rows: Tensor) -> None:
        """Put the heads marked in `rows (n,)` back to the start, optimiser state included."""
        self._steps[rows] = 0
        for name, parameter in self.parameters.items():
            parameter[rows] = self._initial[name]
            self._first[name][rows] = 0
            self._second[name][rows] = 0

    def finite(self) -> Tensor:
        """Return which heads have finite parameters, `(n,)`."""
        flags = [p.flatten(1).sum(1).isfinite() for p in self.parameters.values()]
        return torch.stack(flags).all(0)

    def distance(self) -> Tensor:
        """Return the largest change of any parameter of each head, `(n,)`."""
        changes = [
            (p - self._initial[name]).flatten(1).abs().amax(1)
            for name, p in self.parameters.items()
        ]
        largest = torch.stack(changes).amax(0)
        return largest
