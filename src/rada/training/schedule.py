"""The learning rate over the steps of a run: a linear warm-up and a cosine, or CoOp's epochs."""

from __future__ import annotations

import math

__all__ = ["epoch_cosine", "warmup_cosine"]

_WARM_RATE = 1e-5


def warmup_cosine(peak: float, step: int, total: int, warmup: float, final: float = 0.0) -> float:
    """Return the learning rate of a step.

    Args:
        peak: The largest rate.
        step: Counted from 0.
        total: Steps of the run.
        warmup: Part of the steps with a rising rate, in [0, 1).
        final: What the cosine falls to.

    Example:
        >>> [round(warmup_cosine(1.0, step, 4, 0.5), 3) for step in range(4)]
        [0.333, 0.667, 1.0, 0.5]
    """
    rising = int(warmup * total)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    part = (step - rising) / max(1, total - rising)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * part))


def epoch_cosine(peak: float, epoch: int, epochs: int) -> float:
    """Return the learning rate of an epoch as CoOp's code has it.

    The first epoch is at 1e-5. It comes before the cosine, which then begins at its own first value.

    Args:
        peak: The largest rate.
        epoch: Counted from 0.
        epochs: Epochs of the run.

    Example:
        >>> [round(epoch_cosine(1.0, epoch, 3), 5) for epoch in range(3)]
        [1e-05, 1.0, 0.75]
    """
    if epoch == 0:
        return _WARM_RATE
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
