"""Mean and standard deviation over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Spread", "aggregate_runs", "mean_std"]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of several runs.

    Attributes:
        mean: The mean.
        std: The standard deviation with n - 1 in the denominator; None for a single run, which says
            nothing about spread.
        runs: Number of runs, n.
    """

    mean: float
    std: float | None
    runs: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"mean": self.mean, "std": self.std, "runs": self.runs}


def mean_std(values: Iterable[float]) -> Spread:
    """Return mean and sample standard deviation.

    Raises:
        ValueError: If there are no values, or one of them is not finite.

    Example:
        >>> mean_std([0.5, 0.6, 0.7]).mean
        0.6
        >>> mean_std([0.5]).std is None
        True
    """
    numbers = [float(value) for value in values]
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"mean and standard deviation need finite numbers, not {numbers}")
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(statistics.fmean(numbers), std, len(numbers))


def aggregate_runs(
    runs: Iterable[Mapping[str, Any]],
    *,
    by: tuple[str, ...] = ("method", "shots"),
    metrics: tuple[str, ...] = ("accuracy", "balanced_accuracy"),
) -> list[dict[str, Any]]:
    """Average runs over everything that is not named in `by`, which is usually the seed.

    Args:
        runs: One mapping a run, such as {"method": "rada", "shots": 4, "seed": 1, "accuracy": 0.6}.
        by: Keys that tell groups apart.
        metrics: Numbers to average; one that no run of a group has is left out of that group.

    Returns:
        One dictionary a group in order of first appearance: the keys of `by`, and for each metric
        the dictionary of its `Spread`.

    Example:
        >>> run = {"method": "rada", "shots": 1}
        >>> runs = [run | {"seed": 1, "accuracy": 0.5}, run | {"seed": 2, "accuracy": 0.7}]
        >>> aggregate_runs(runs, metrics=("accuracy",))[0]["accuracy"]["mean"]
        0.6
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run.get(key) for key in by), []).append(run)
    table = []
    for key, members in groups.items():
        row: dict[str, Any] = dict(zip(by, key, strict=True))
        for metric in metrics:
            values = [run[metric] for run in members if run.get(metric) is not None]
            if values:
                row[metric] = mean_std(values).to_dict()
        table.append(row)
    return table
