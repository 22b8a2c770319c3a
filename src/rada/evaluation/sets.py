"""Test sets: images to evaluate on, among the classes that they share with training."""

from __future__ import annotations

from dataclasses import dataclass

from rada.core.errors import DataError
from rada.core.warn import warn
from rada.data import ImageSplit, fold_name
from rada.data.checks import check_labelled

__all__ = ["IN_DISTRIBUTION", "TestSet", "shared_classes"]

IN_DISTRIBUTION = "in_distribution"
"""Name of the test set that is not shifted."""


@dataclass(frozen=True, eq=False)
class TestSet:
    """Images to test on.

    Attributes:
        name: What to call it.
        split: The images; labels count in `classes`.
        classes: The candidates, by their names in training.
        note: What was left out; "" if nothing.
    """

    __test__ = False  # pytest would take it for a class of tests

    name: str
    split: ImageSplit
    classes: tuple[str, ...]
    note: str = ""


def shared_classes(name: str, split: ImageSplit, classes: tuple[str, ...]) -> TestSet:
    """Return the images of the classes that a test set shares with training.

    Names are the same but for case, underscores and hyphens. A difference is said aloud.

    Args:
        name: What to call the test set.
        split: Its images.
        classes: The training classes.

    Raises:
        DataError: If two of its classes have the same name, fewer than two are shared, or an image
            has no label.
    """
    check_labelled(split.labels, split.ids, f"testing on {name!r}")
    wanted = {fold_name(known): known for known in classes}
    found: dict[str, int] = {}
    for label, own in enumerate(split.classes):
        if fold_name(own) in found:
            first = split.classes[found[fold_name(own)]]
            raise DataError(
                f"{name!r} has the classes {first!r} and {own!r}, which differ by case or underscores "
                "alone: rename or join one of them"
            )
        found[fold_name(own)] = label
    shared = [key for key in wanted if key in found]
    if len(shared) < 2:
        raise DataError(
            f"{name!r} shares {len(shared)} classes with training, at least 2 are needed; it has "
            f"{', '.join(map(repr, split.classes[:5]))}, training has "
            f"{', '.join(map(repr, classes[:5]))}"
        )
    kept = split.select_classes([found[key] for key in shared])
    names = tuple(wanted[key] for key in shared)
    note = ""
    if len(shared) < max(len(wanted), len(found)):
        absent = [known for key, known in wanted.items() if key not in found]
        strange = [split.classes[label] for key, label in found.items() if key not in wanted]
        parts = [f"it lacks {_some(absent)}"] if absent else []
        parts += [f"its {_some(strange)} was not trained and is left out"] if strange else []
        note = f"{name}: evaluated among {len(shared)} shared classes; {'; '.join(parts)}"
        warn(note, UserWarning, stacklevel=3)
    return TestSet(name, kept.rename(names), names, note)


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
