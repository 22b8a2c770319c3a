"""WiSE-FT: the straight line between pretrained and tuned weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from rada.core.errors import ConfigError

__all__ = ["ALPHAS", "check_alphas", "interpolate"]

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The weights of the published curve."""


def check_alphas(values: Any) -> tuple[float, ...]:
    """Return points between the pretrained model (0) and the tuned one (1), each once, in order.

    Raises:
        ConfigError: If they are no list of numbers in [0, 1].

    Example:
        >>> check_alphas([1, 0.5, 0.5])
        (0.5, 1.0)
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f"wise should be a list of numbers in [0, 1], not {values!r}")
    found = set()
    for value in values:
        try:
            number = math.nan if isinstance(value, bool | str) else float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan
        if not 0 <= number <= 1:
            raise ConfigError(f"wise takes numbers in [0, 1], not {value!r}")
        found.add(number)
    return tuple(sorted(found))


def interpolate(
    start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """Return `(1 - alpha) * start + alpha * tuned`, name by name.

    With a RAda head, `start` holds the head whose mask is one (its last layer zero), so alpha = 0 is the
    zero-shot model. Integers (the counters of batch norms) are the tuned ones, unless alpha is 0.

    Args:
        start: Pretrained weights.
        tuned: Tuned weights of the same names and shapes.
        alpha: Weight of the tuned ones, in [0, 1]; at the ends the result is exact.

    Raises:
        ConfigError: If alpha is out of range or the weights are of different models.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022.

    Example:
        >>> import torch
        >>> interpolate({"w": torch.zeros(1)}, {"w": torch.ones(1)}, 0.25)["w"].item()
        0.25
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"the weight of the tuned model should be in [0, 1], not {alpha!r}")
    if start.keys() != tuned.keys():
        strange = sorted(start.keys() ^ tuned.keys())
        raise ConfigError(
            f"weights of two different models cannot be averaged: only one has {strange[0]!r}"
        )
    if alpha in (0, 1):
        return dict(tuned if alpha else start)
    return {
        name: start[name].lerp(value, alpha) if value.is_floating_point() else value
        for name, value in tuned.items()
    }
