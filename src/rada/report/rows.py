"""Which rows a result has, which of them is best, and which classes fail: for pages and terminals alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rada.evaluation.spread import mean_std
from rada.report.text import MAIN_ROWS, count, percent, row_name, shorten

__all__ = [
    "SeedSummary",
    "best_rows",
    "compared_rows",
    "failures",
    "main_row",
    "name_of",
    "over_seeds",
    "rows_of",
    "why_epochs",
]

MOST_FAILURES = 5
"""So many failing classes are named; of more, the number is said."""
FAILING = 0.2
"""A class of which a smaller part is recognised fails, however small chance is."""


def rows_of(result: Mapping[str, Any]) -> list[str]:
    """Return the keys of the rows of a result, zero-shot first."""
    return list(result.get("rows") or ("zero_shot", "adapted"))


def main_row(result: Mapping[str, Any]) -> str:
    """Return the row that a result is about: the head's, without one that of test-time training.

    Example:
        >>> main_row({"rows": ["zero_shot"]}), main_row({"rows": ["zero_shot", "adapted", "x"]})
        ('zero_shot', 'adapted')
    """
    rows = rows_of(result)
    return next((key for key in ("adapted", "test_time") if key in rows), "zero_shot")


def name_of(result: Mapping[str, Any], key: str) -> str:
    """Return the name under which a row of a result is shown."""
    return row_name(key, result.get("row_names"))


def why_epochs(config: Mapping[str, Any], effective: object, epochs: int) -> str:
    """Say why a run made other epochs than its configuration names; "" where it did not.

    Args:
        config: The configuration.
        effective: What the method tells of the length of the run; "reason" where it changed it itself.
        epochs: How many there were.

    Example:
        >>> why_epochs({"epochs": 10, "min_steps": 300}, {}, 150)
        'min_steps asks for more than 10'
    """
    asked = config.get("epochs")
    if not isinstance(asked, int) or asked == epochs:
        return ""
    reason = effective.get("reason") if isinstance(effective, Mapping) else None
    if isinstance(reason, str):
        return reason
    if asked == 0 and "steps_per_shot" in config:
        return f"{config['steps_per_shot']} steps for each image of a class"
    if epochs > asked and config.get("min_steps"):
        return f"min_steps asks for more than {asked}"
    return f"{asked} asked for"


def compared_rows(result: Mapping[str, Any]) -> list[str]:
    """Return zero-shot and the main row, or zero-shot alone."""
    return list(dict.fromkeys(("zero_shot", main_row(result))))


def best_rows(result: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return, for each metric, the rows with the best value as it is shown; none of a single row.

    Example:
        >>> rows = {"a": {"accuracy": 0.5, "balanced_accuracy": 0.4, "ece": 0.1},
        ...         "b": {"accuracy": 0.6, "balanced_accuracy": 0.4, "ece": 0.2}}
        >>> found = best_rows(rows | {"rows": ["a", "b"]})
        >>> found["accuracy"], sorted(found["balanced_accuracy"]), found["ece"]
        ({'b'}, ['a', 'b'], {'a'})
    """
    rows = rows_of(result)
    found: dict[str, set[str]] = {}
    for metric, sign in (("accuracy", 1), ("balanced_accuracy", 1), ("ece", -1)):
        shown = {key: sign * round(100 * result[key][metric], 1) for key in rows}
        best = {key for key, value in shown.items() if value == max(shown.values())}
        found[metric] = best if len(rows) > 1 else set()
    return found


class SeedSummary(NamedTuple):
    """Accuracy of the method of a page over several seeds.

    Attributes:
        shots: Images of each class.
        accuracy: Mean and standard deviation, as `Spread.to_dict`.
        values: The accuracy of each seed.
    """

    shots: int
    accuracy: dict[str, Any]
    values: list[float]


def over_seeds(runs: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> SeedSummary | None:
    """Return the default method's accuracy over the seeds with the result's shots; None of a single seed.

    Example:
        >>> runs = [{"method": "rada_probe", "shots": 4, "seed": 1, "accuracy": 0.5},
        ...         {"method": "rada_probe", "shots": 4, "seed": 2, "accuracy": 0.6}]
        >>> over_seeds(runs, {"shots": 4}).values
        [0.5, 0.6]
    """
    mine = [run for run in runs if run.get("method") in MAIN_ROWS and run.get("shots")]
    shots = result.get("shots") or max((run["shots"] for run in mine), default=0)
    values = [run["accuracy"] for run in mine if run["shots"] == shots and "accuracy" in run]
    if len(values) < 2:
        return None
    return SeedSummary(shots, mean_std(values).to_dict(), values)


def failures(result: Mapping[str, Any]) -> list[str]:
    """Say in sentences which classes the main row does not recognise.

    A class fails where fewer of its test images are recognised than guessing would, or than a fifth.
    """
    key, classes = main_row(result), result["classes"]
    limit = max(result["chance"], FAILING)
    rows = [
        (entry["accuracy"], k)
        for k, entry in enumerate(result[key]["per_class"])
        if entry["accuracy"] is not None and entry["accuracy"] < limit
    ]
    if len(classes) < 2 or not rows:
        return []
    rows.sort()
    said = [_failure(result, key, k) for _, k in rows[:MOST_FAILURES]]
    if len(rows) > MOST_FAILURES:
        said.append(f"It fails on {count(len(rows), 'class', 'classes')} in all.")
    return said


def _failure(result: Mapping[str, Any], key: str, index: int) -> str:
    counts: Sequence[int] = result[key]["confusion"][index]
    images, right = sum(counts), counts[index]
    errors = np.array(counts)
    errors[index] = 0
    other = int(errors.argmax())
    names = [shorten(name, 48) for name in result["classes"]]
    before = result["zero_shot"]["per_class"][index]["accuracy"]
    beside = "" if key == "zero_shot" else f", zero-shot {percent(before)}"
    part = "most" if 2 * errors[other] > images else "the largest part"
    return (
        f"{name_of(result, key)} fails on “{names[index]}”: it recognises {right:,} of "
        f"{count(images, 'test image')} ({percent(right / images)}{beside}) and takes {part} of them "
        f"for “{names[other]}”."
    )
