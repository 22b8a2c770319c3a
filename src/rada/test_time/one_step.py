"""One step from the untrained head, for many images at once, without autograd through the head.

There the mask is one and `out` is zero, so that only `out` has a gradient: with the tokens
`X = s R (K, D)` of a view, the mixed values `Z (K, D)` that `out` reads, and the gradient `G (K,)` of the
loss in the view's logits,

    dL/dW = sum over views and classes of  (G X)^T Z,    dL/db = sum of  G X.

AdamW's first step from a zero state turns a gradient g into `-lr g / (|g| + eps)`. Weight decay does
nothing to `out`, which is zero, and the same to the other layers of every image, so they stay shared.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from rada.head import RAdaHead
from rada.head.mixed import mixed_values
from rada.test_time.start import Chosen, Start

__all__ = ["adapt_in_one_step", "one_step_bytes"]

EPSILON = 1e-8
"""AdamW's, in PyTorch."""


def one_step_bytes(start: Start, views: int) -> int:
    """Return the bytes that one image with `views` kept views takes."""
    classes, dim = start.text.shape
    return start.text.element_size() * (2 * dim * dim + 8 * (views + 1) * classes * dim)


@torch.no_grad()
def adapt_in_one_step(start: Start, original: Tensor, chosen: Chosen) -> tuple[Tensor, Tensor]:
    """Adapt to each image; arguments and result as for `adapt_by_loop`."""
    weight, bias = _step(start, chosen.views)
    targets = start.targets(original, chosen.views)
    head = _decayed(start)
    tokens, mixed = _rows(head, targets, start)
    change = torch.baddbmm(bias[:, None], mixed, weight.transpose(1, 2)).clamp_(min=-1)
    peaks = start.strength * change.abs().amax((1, 2))
    shift = change.mul_(tokens).sum(-1).unflatten(1, (targets.shape[1], -1))
    logits = start.scale * targets @ start.text.T + start.strength * shift
    return start.answer(logits), peaks


def _step(start: Start, views: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight `(n, D, D)` and bias `(n, D)` of each image's `out` after the step."""
    gradient = _logit_gradient(start, views)
    tokens, mixed = _rows(start.head, views, start)
    pushed = tokens.mul_(gradient.flatten(1)[..., None])
    weight = torch.bmm(pushed.transpose(1, 2), mixed)
    bias = pushed.sum(1)
    for tensor in (weight, bias):
        tensor.div_(tensor.abs().add_(EPSILON)).mul_(-start.config.learning_rate)
    return weight, bias


def _logit_gradient(start: Start, views: Tensor) -> Tensor:
    """Gradient of each image's loss in what the mask adds to the logits, `(n, m, K)`."""
    with torch.enable_grad():
        logits = (start.scale * views @ start.text.T).requires_grad_(True)
        # At a mask of one the smoothness term is at its minimum and has no gradient.
        loss = start.loss(logits, logits.new_zeros(logits.shape[:2])).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient * start.strength


def _rows(head: RAdaHead, views: Tensor, start: Start) -> tuple[Tensor, Tensor]:
    """Tokens and mixed values of `(n, m, D)`, each `(n, m K, D)`."""
    tokens, mixed = mixed_values(head, views.flatten(0, 1), start.text, start.scale)
    shape = (len(views), -1, views.shape[-1])
    return tokens.view(shape), mixed.view(shape)


def _decayed(start: Start) -> RAdaHead:
    """Return the shared layers as weight decay leaves them."""
    decay = start.config.learning_rate * start.config.weight_decay
    if decay == 0:
        return start.head
    head = copy.deepcopy(start.head)
    for parameter in head.parameters():
        parameter.mul_(1 - decay)
    return head
