"""The learning rate over the steps of a run: a linear warm-up, then a cosine to zero."""

from __future__ import annotations

import math

__all__ = ["warmup_cosine"]


def warmup_cosine(peak: float, step: int, total: int, warmup: float) -> float:
    """Return the learning rate of a step.

    Args:
        peak: The largest rate.
        step: Counted from 0.
        total: Steps of the run.
        warmup: Part of the steps with a rising rate, in [0, 1).

    Example:
        >>> [round(warmup_cosine(1.0, step, 4, 0.5), 3) for step in range(4)]
        [0.333, 0.667, 1.0, 0.5]
    """
    rising = int(warmup * total)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    part = (step - rising) / max(1, total - rising)
    return peak * 0.5 * (1 + math.cos(math.pi * part))
