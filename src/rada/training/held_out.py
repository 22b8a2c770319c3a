"""What training saw of its own success: zero-shot against the head on shots that were held out.

Accuracy on the images that a head was trained on says little, since it learns them by heart. The choice
of the mask strength trains heads on a part of the shots and tests them on the rest, so its curves hold the
honest numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["held_out"]

_SHOTS = {
    "shots": "half of each class, in turn",
    "classes": "a quarter of each learned class, at least one",
}


def held_out(choice: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return zero-shot and head on held-out shots, from the choice of the strength.

    Args:
        choice: `StrengthChoice.to_dict()`, or None where the strength was given.

    Returns:
        `{"what", "part", "zero_shot", "adapted", "strength"}` for held-out images of learned classes (`what`
        is "shots") and for held-out classes ("classes"): which part was held out, accuracies in [0, 1]
        and the strength that was chosen. Empty where nothing was held out.

    Example:
        >>> choice = {"method": "shots", "strength": 1.0, "trained_strength": 1.0,
        ...           "strengths": [0.0, 1.0], "base_accuracy": [0.5, 0.75], "new_accuracy": []}
        >>> [(one["what"], one["zero_shot"], one["adapted"]) for one in held_out(choice)]
        [('shots', 0.5, 0.75)]
    """
    if choice is None or choice["method"] == "none":
        return []
    found = []
    trained = choice.get("trained_strength")
    if trained is not None:
        part = _SHOTS[choice["method"]]
        found.append(_entry("shots", part, choice["strengths"], choice["base_accuracy"], trained))
    if choice["method"] == "classes":
        curve, strength = choice["new_accuracy"], choice["strength"]
        found.append(_entry("classes", "a part, in turn", choice["strengths"], curve, strength))
    return found


def _entry(
    what: str, part: str, strengths: Sequence[float], curve: Sequence[float], strength: float
) -> dict[str, Any]:
    place = min(range(len(strengths)), key=lambda index: abs(strengths[index] - strength))
    return {
        "what": what,
        "part": part,
        "zero_shot": curve[0],
        "adapted": curve[place],
        "strength": strength,
    }
