"""The verdict of a report: one sentence that says what the adaptation brought, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rada.evaluation.comparison import pooled_difference
from rada.report.rows import SeedSummary, main_row, name_of
from rada.report.text import ARROW, count, percent, points

__all__ = ["cautions", "verdict"]


def verdict(result: Mapping[str, Any], seeds: SeedSummary | None = None) -> str:
    """Return the verdict: accuracy before and after, the difference with its interval, the classes.

    A class, or all new classes together, is called better or worse where the 95 % interval of the paired
    difference (Agresti and Min) leaves out zero, and unchanged otherwise.

    Args:
        result: The dictionary of `rada.evaluation.compare`, with "shots" and "new_classes" where known.
        seeds: The accuracy over several seeds, where there are.

    Example:
        >>> from rada.evaluation import compare
        >>> before = [[1.0, 0.0]] * 200
        >>> after = [[1.0, 0.0]] * 100 + [[0.0, 1.0]] * 100
        >>> result = compare(before, after, [0] * 100 + [1] * 100, ["cat", "dog"])
        >>> verdict(result | {"shots": 16}).replace("\u00a0", " ")
        '16 images a class: 50.0 % → 100.0 %, +50.0 points (+42.5 to +56.5); 1 of 2 classes better.'
    """
    key = main_row(result)
    zero_shot, row = result["zero_shot"], result[key]
    if key == "zero_shot":
        low, high = (percent(bound) for bound in row["interval"])
        return (
            f"{name_of(result, key)}: {percent(row['accuracy'])} of "
            f"{count(result['images'], 'test image')} right ({low} to {high})."
        )
    shots = result.get("shots")
    lead = f"{count(shots, 'image')} a class" if shots else name_of(result, key)
    before = percent(zero_shot["accuracy"])
    parts = _class_parts(result)
    if seeds is not None:
        mean, deviation = seeds.accuracy["mean"], percent(seeds.accuracy["std"], sign=False)
        first = (
            f"{count(seeds.shots, 'image')} a class, mean of {count(len(seeds.values), 'seed')}: "
            f"{before} {ARROW} {percent(mean)}, {points(mean - zero_shot['accuracy'])} points "
            f"(± {deviation} over the seeds)"
        )
        parts = [f"the saved model: {parts[0]}", *parts[1:]] if parts else []
        return "; ".join([first, *parts]) + "."
    changed = row["against_zero_shot"]
    low, high = (points(bound) for bound in changed["interval"])
    first = (
        f"{lead}: {before} {ARROW} {percent(row['accuracy'])}, {points(changed['difference'])} points "
        f"({low} to {high})"
    )
    if _side(changed["interval"]) == 0:
        first += ", no certain difference"
    return "; ".join([first, *parts]) + "."


def cautions(result: Mapping[str, Any]) -> list[str]:
    """Say what makes the accuracy of a result say less than it seems to.

    Example:
        >>> cautions({"seen_in_training": 0, "images": 8, "near_duplicates": [{}]})
        ['1 of the 8 test images is a near duplicate of a training image: the accuracy is too high.']
    """
    images, said = result["images"], []
    seen, doubled = result.get("seen_in_training") or 0, len(result.get("near_duplicates") or ())
    if seen:
        said.append(
            f"{seen:,} of the {count(images, 'test image')} {_be(seen)} trained on: the accuracy says little."
        )
    if doubled:
        what = "is a near duplicate" if doubled == 1 else "are near duplicates"
        least = "At least " if result.get("near_duplicates_unchecked") else ""
        said.append(
            f"{least}{doubled:,} of the {count(images, 'test image')} {what} of a training image: the "
            "accuracy is too high."
        )
    return said


def _be(number: int) -> str:
    return "was" if number == 1 else "were"


def _class_parts(result: Mapping[str, Any]) -> list[str]:
    """Say which classes changed for certain, and what became of those that were not trained."""
    entries: Sequence[Mapping[str, Any]] = result.get("changed_classes") or ()
    if not entries:
        return []
    sides = [_side(entry["interval"]) for entry in entries]
    total = count(len(entries), "class", "classes")
    better, worse = sides.count(1), sides.count(-1)
    said = [f"{better} of {total} better"] if better else []
    if worse:
        said.append(f"{worse} worse" if better else f"{worse} of {total} worse")
    parts = [", ".join(said) or "no class for certain better or worse"]
    new = set(result.get("new_classes") or ())
    mine = [entry for entry in entries if entry["class"] in new]
    pooled = pooled_difference(mine)
    if pooled is not None:
        low, high = (points(bound) for bound in pooled.interval)
        what = "new classes" if len(mine) < len(entries) else "all of them new to it:"
        if _side(pooled.interval) == 0:
            parts.append(f"{what} unchanged ({low} to {high})")
        else:
            parts.append(f"{what} {points(pooled.difference)} ({low} to {high})")
    return parts


def _side(interval: Sequence[float]) -> int:
    """Return 1 for an interval above zero, -1 for one below, and else 0."""
    return 1 if interval[0] > 0 else -1 if interval[1] < 0 else 0
