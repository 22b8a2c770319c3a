"""What training saw of its own success, on shots that were held out.

Accuracy on the images that a model was trained on says little, since it learns them by heart. The choice
of the strength trains on a part of the shots and tests on the rest, so its curves hold the honest numbers:
of zero-shot, of a linear probe on the same shots, and of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rada.evaluation.metrics import wilson_interval

__all__ = ["held_out"]

_SHOTS = {
    "shots": "half of each class, in turn",
    "classes": "a quarter of each learned class, at least one",
}


def held_out(choice: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return zero-shot, linear probe and model on held-out shots, from the choice of the strength.

    Args:
        choice: `StrengthChoice.to_dict()`, or None where the strength was given.

    Returns:
        One entry for held-out images of learned classes (`what` is "shots") and one for held-out classes
        ("classes"); empty where nothing was held out. Each has `part` (which part was held out),
        `images` (how many), `strength` (that was chosen) and the accuracies in [0, 1] `zero_shot`,
        `adapted` and, of learned classes, `linear_probe`, which is None where none was fitted;
        `intervals` holds the 95 % Wilson interval of each.

    Example:
        >>> choice = {"method": "shots", "strength": 1.0, "trained_strength": 1.0, "points": [[0.0], [1.0]],
        ...           "point": [1.0], "base_images": 4, "base_accuracy": [0.5, 0.75], "linear_probe": 0.5}
        >>> [(one["what"], one["zero_shot"], one["adapted"]) for one in held_out(choice)]
        [('shots', 0.5, 0.75)]
    """
    if choice is None or choice["method"] == "none":
        return []
    found = []
    if choice.get("base_accuracy") and choice.get("point"):
        points, curve = list(map(list, choice["points"])), choice["base_accuracy"]
        chosen = curve[points.index(list(choice["point"]))]
        rows = {
            "zero_shot": curve[0],
            "linear_probe": choice.get("linear_probe"),
            "adapted": chosen,
        }
        part, strength = _SHOTS[choice["method"]], choice["trained_strength"]
        found.append(_entry("shots", part, choice["base_images"], strength, rows))
    if choice.get("new_accuracy") and choice.get("new_images"):
        curve, strength = choice["new_accuracy"], choice["strength"]
        place = min(range(len(curve)), key=lambda one: abs(choice["strengths"][one] - strength))
        rows = {"zero_shot": curve[0], "adapted": curve[place]}
        found.append(_entry("classes", "a part, in turn", choice["new_images"], strength, rows))
    return found


def _entry(
    what: str, part: str, images: int, strength: float, rows: Mapping[str, float | None]
) -> dict[str, Any]:
    intervals = {
        name: list(wilson_interval(round(one * images), images))
        for name, one in rows.items()
        if one is not None
    }
    return {
        "what": what,
        "part": part,
        "images": images,
        "strength": strength,
        **rows,
        "intervals": intervals,
    }
