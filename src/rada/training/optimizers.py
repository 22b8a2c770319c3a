"""PyTorch's optimisers, without the import of its compiler.

PyTorch hides some methods of an optimiser from its compiler and imports it to do so, which takes as long as
importing all the rest of torch. Nothing is compiled here: these are the methods before they were hidden.

Example:
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = AdamW([weight], lr=0.5, weight_decay=0.0, fused=True)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> [round(value, 6) for value in weight.tolist()]
    [0.5, 0.5]
"""

from __future__ import annotations

import inspect

import torch

__all__ = ["LBFGS", "SGD", "Adam", "AdamW"]


class _Uncompiled:
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class SGD(_Uncompiled, torch.optim.SGD):
    """`torch.optim.SGD`."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Adam(_Uncompiled, torch.optim.Adam):
    """`torch.optim.Adam`."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class AdamW(_Uncompiled, torch.optim.AdamW):
    """`torch.optim.AdamW`."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class LBFGS(_Uncompiled, torch.optim.LBFGS):
    """`torch.optim.LBFGS`."""
